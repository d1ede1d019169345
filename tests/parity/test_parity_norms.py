"""Norms are those of torch.nn: outputs, gradients and running statistics. Needs the extra [parity]."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from zoo.layers.norms import norm

pytestmark = pytest.mark.parity


def draw(*shape, seed=0):
  return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("kind, theirs", [("layer", torch.nn.LayerNorm), ("rms", torch.nn.RMSNorm)])
def test_norms_of_a_token(kind, theirs):
  x, scale, bias = 3 + draw(2, 5, 8), draw(8), draw(8, seed=1)
  theirs = theirs(8, eps=1e-5)
  params = {"scale": scale} | ({"bias": bias} if kind == "layer" else {})
  with torch.no_grad():
    for name, parameter in theirs.named_parameters():
      parameter.copy_(torch.tensor(params[{"weight": "scale"}.get(name, name)]))
  tensor = torch.tensor(x, requires_grad=True)
  torch.sin(theirs(tensor)).sum().backward()
  apply = norm(kind, epsilon=1e-5).apply
  np.testing.assert_allclose(apply({"params": params}, x), theirs(tensor).detach(), rtol=1e-5, atol=1e-5)
  gradient = jax.grad(lambda x: jnp.sin(apply({"params": params}, x)).sum())(x)
  np.testing.assert_allclose(gradient, tensor.grad, rtol=1e-4, atol=1e-5)


def test_batch_norm_of_all_tokens():
  layer, theirs = norm("batch", epsilon=1e-5), torch.nn.BatchNorm1d(8, eps=1e-5)
  variables = layer.init(jax.random.key(0), draw(2, 5, 8))
  tokens = 20
  for i in range(3):
    x = 3 + (1 + i) * draw(4, 5, 8, seed=i)
    tensor = torch.tensor(x, requires_grad=True)
    out = theirs(tensor.reshape(tokens, 8)).reshape(4, 5, 8)
    torch.sin(out).sum().backward()

    def loss(x, variables):
      y, rest = layer.apply(variables, x, mutable=["batch_stats"])
      return jnp.sin(y).sum(), (y, rest)

    gradient, (y, rest) = jax.grad(loss, has_aux=True)(x, variables)
    np.testing.assert_allclose(y, out.detach(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradient, tensor.grad, rtol=1e-3, atol=1e-5)
    variables = variables | rest
    statistics = variables["batch_stats"]
    np.testing.assert_allclose(statistics["mean"], theirs.running_mean, rtol=1e-5)
  # PyTorch's running variance has one token less in the divisor; its start, 1 x 0.9^3, has not.
  unbiased = 0.9**3 + (statistics["var"] - 0.9**3) * tokens / (tokens - 1)
  np.testing.assert_allclose(unbiased, theirs.running_var, rtol=1e-5)
  theirs.eval()
  theirs.running_var.copy_(torch.tensor(np.asarray(statistics["var"])))
  x = draw(4, 5, 8, seed=9)
  wanted = theirs(torch.tensor(x).reshape(tokens, 8)).reshape(4, 5, 8).detach()
  np.testing.assert_allclose(layer.apply(variables, x), wanted, rtol=1e-5, atol=1e-5)
