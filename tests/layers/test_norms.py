"""Norms are their formulas; running statistics are those of the real tokens; PowerNorm is its paper's algorithm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from support import draw, raises
from test_layers import KEY, run

from zoo.layers import norms
from zoo.layers.norms import KINDS, BatchNorm, PowerNorm, RMSNorm, norm, power_normalise

ALPHA, EPSILON = 0.9, 1e-5


def test_rms_norm():
  x = 3 + draw(2, 3, 8)
  y, p = run(RMSNorm(epsilon=EPSILON), x)
  assert list(p) == ["scale"]
  wanted = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + EPSILON) * p["scale"]
  np.testing.assert_allclose(y, wanted, rtol=1e-5)


def train(layer, variables, x, real=None):
  """Output and new statistics of a training step."""
  y, rest = layer.apply(variables, x, real, mutable=["batch_stats"])
  return y, rest["batch_stats"]


def test_batch_norm_of_the_real_tokens():
  x, real = 5 + 2 * draw(3, 4, 6), np.arange(4) < np.array([[4], [2], [0]])
  layer = BatchNorm(epsilon=EPSILON)
  variables = layer.init(KEY, x)
  y, statistics = train(layer, variables, x, real)
  tokens = x[real].astype(np.float64)
  mean, variance = tokens.mean(0), tokens.var(0)
  np.testing.assert_allclose(y, (x - mean) / np.sqrt(variance + EPSILON), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(statistics["mean"], 0.1 * mean, rtol=1e-5)
  np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * variance, rtol=1e-5)
  # Evaluation: the running statistics, whatever is in the batch.
  y = layer.apply({**variables, "batch_stats": statistics}, x, real)
  wanted = (x - statistics["mean"]) / np.sqrt(statistics["var"] + EPSILON)
  np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["batch", "power"])
def test_padding_changes_no_statistic(kind):
  layer = norm(kind)
  x, real = draw(2, 5, 6), np.arange(5) < np.array([[3], [3]])
  x[~real] = 1e6
  variables = layer.init(KEY, x)
  backward = variables.get("backward_stats", {})

  def loss(backward, x, real):
    y, rest = layer.apply({**variables, "backward_stats": backward}, x, real, mutable=["batch_stats"])
    weight = 1 if real is None else real[..., None]
    return (jnp.sin(y) * weight).sum(), (y, rest["batch_stats"])

  padded_gradients, (padded, padded_statistics) = jax.grad(loss, has_aux=True)(backward, x, real)
  gradients, (y, statistics) = jax.grad(loss, has_aux=True)(backward, x[:, :3], None)
  np.testing.assert_allclose(padded[:, :3], y, rtol=1e-5, atol=1e-6)
  for a, b in ((padded_statistics, statistics), (padded_gradients, gradients)):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), a, b)


@pytest.mark.parametrize("masked", [False, True])
def test_power_norm_is_algorithm_2_over_several_steps(masked):
  width, rate, layer = 6, 0.05, PowerNorm(epsilon=EPSILON, momentum=ALPHA)
  real = np.arange(4) < np.array([[4], [2], [3]]) if masked else np.ones((3, 4), bool)
  variables = layer.init(KEY, draw(3, 4, width))
  params, statistics, backward = (variables[name] for name in ("params", "batch_stats", "backward_stats"))

  @jax.jit
  def step(params, statistics, backward, x, target):
    def loss(params, backward, x):
      variables = {"params": params, "batch_stats": statistics, "backward_stats": backward}
      y, rest = layer.apply(variables, x, real if masked else None, mutable=["batch_stats"])
      return 0.5 * (real[..., None] * jnp.square(y - target)).sum(), (y, rest["batch_stats"])

    (of_params, change, of_x), (y, new) = jax.grad(loss, (0, 1, 2), has_aux=True)(params, backward, x)
    params = jax.tree.map(lambda p, g: p - rate * g, params, of_params)
    return params, new, jax.tree.map(jnp.add, backward, change), y, of_x

  gamma, beta, psi2, nu = np.ones(width), np.zeros(width), np.ones(width), np.zeros(width)
  for i in range(6):
    x, target = (1 + i) * draw(3, 4, width, seed=i), draw(3, 4, width, seed=100 + i)
    params, statistics, backward, y, of_x = step(params, statistics, backward, x, target)
    # The same in float64, token by token, with batches of real tokens [B, D] as in the paper.
    tokens = [t for t in np.ndindex(3, 4) if real[t]]
    psi2_batch = sum(x[t].astype(np.float64) ** 2 for t in tokens) / len(tokens)
    hat = x.astype(np.float64) / np.sqrt(psi2 + EPSILON)
    np.testing.assert_allclose(y, gamma * hat + beta, rtol=1e-4, atol=1e-5)
    of_y = real[..., None] * (gamma * hat + beta - target)
    of_hat = gamma * of_y
    wanted = real[..., None] * (of_hat - nu * hat) / np.sqrt(psi2_batch + EPSILON)  # none for padding
    np.testing.assert_allclose(of_x, wanted, rtol=1e-3, atol=1e-5)
    big_gamma = sum(hat[t] * hat[t] for t in tokens) / len(tokens)
    big_lambda = sum(of_hat[t] * hat[t] for t in tokens) / len(tokens)
    nu = nu * (1 - (1 - ALPHA) * big_gamma) + (1 - ALPHA) * big_lambda
    psi2 = ALPHA * psi2 + (1 - ALPHA) * psi2_batch
    gamma, beta = gamma - rate * (of_y * hat).sum((0, 1)), beta - rate * of_y.sum((0, 1))
    np.testing.assert_allclose(statistics["square"], psi2, rtol=1e-5)
    np.testing.assert_allclose(backward["gradient"], nu, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(params["scale"], gamma, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(params["bias"], beta, rtol=1e-4, atol=1e-5)
  assert np.abs(nu).min() > 0.01  # it had something to carry


def test_with_settled_statistics_the_backward_pass_is_the_exact_one():
  x, cotangent = draw(5, 7, 4), draw(5, 7, 4, seed=1)

  def exact(x):
    return x / jnp.sqrt(jnp.square(x).mean((0, 1)))

  normal, pull = jax.vjp(exact, x)
  square, mean = np.square(x).mean((0, 1)), (cotangent * normal).mean((0, 1))
  ours, our_pull = jax.vjp(lambda x, nu: power_normalise(x, None, square, square, nu, 0.1), x, mean)
  np.testing.assert_allclose(ours, normal, rtol=1e-5)
  of_x, change = our_pull(jnp.asarray(cotangent))
  np.testing.assert_allclose(of_x, pull(cotangent)[0], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(change, 0, atol=1e-6)  # and nu is where it wants to be


class Layers(nn.Module):
  """Three times a dense layer and a PowerNorm, in a loop or a scan, as `zoo.layers.stack` runs blocks."""

  scan: bool

  @nn.compact
  def __call__(self, x):
    if not self.scan:
      for i in range(3):
        x, _ = Block(name=f"block_{i:02d}")(x, None)
      return x
    axes = {"params": 0, "batch_stats": 0, "backward_stats": 0}
    stacked = nn.scan(nn.remat(Block), variable_axes=axes, split_rngs={"params": True}, length=3)
    return stacked(name="blocks")(x, None)[0]


class Block(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    return PowerNorm(name="norm")(nn.Dense(4, name="up")(x)), None


def test_gradient_statistics_come_out_of_a_scan_and_of_many_devices():
  x = draw(8, 3, 4)
  params = {"up": {"kernel": draw(3, 4, 4), "bias": draw(3, 4)}, "norm": {"scale": 1 + draw(3, 4), "bias": draw(3, 4)}}
  statistics = {"norm": {"square": np.square(draw(3, 4)) + 1}}
  backward = {"norm": {"gradient": draw(3, 4)}}

  def loss(scan, backward, x):
    def layout(tree):
      return {"blocks": tree} if scan else {f"block_{i:02d}": jax.tree.map(lambda a, i=i: a[i], tree) for i in range(3)}

    variables = {
      "params": layout(params), "batch_stats": layout(statistics), "backward_stats": layout(backward)
    }  # fmt: skip
    y, rest = Layers(scan).apply(variables, x, mutable=["batch_stats"])
    new = rest["batch_stats"]
    if not scan:
      new = {"blocks": jax.tree.map(lambda *blocks: jnp.stack(blocks), *(new[name] for name in sorted(new)))}
    return jnp.sin(y).sum(), new["blocks"]

  step = jax.jit(jax.grad(loss, (1, 2), has_aux=True), static_argnums=0)
  wanted = step(False, backward, x)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
  for found in (step(True, backward, x), step(True, backward, sharded)):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found, wanted)
  assert all((np.abs(g) > 1e-4).any() for g in jax.tree.leaves(wanted[0][0]["norm"]["gradient"]))


def test_power_norm_evaluates_with_the_running_mean():
  x, layer = draw(2, 3, 4), PowerNorm(epsilon=EPSILON)
  statistics, backward = {"square": 4.0 * np.ones(4)}, {"gradient": np.ones(4)}
  params = {"scale": draw(4), "bias": draw(4, seed=1)}
  y = layer.apply({"params": params, "batch_stats": statistics, "backward_stats": backward}, x)
  np.testing.assert_allclose(y, x / np.sqrt(4 + EPSILON) * params["scale"] + params["bias"], rtol=1e-5)


def test_initialising_leaves_the_statistics_at_their_start():
  variables = PowerNorm().init(KEY, 7 * draw(2, 3, 4))
  np.testing.assert_array_equal(variables["batch_stats"]["square"], np.ones(4))
  np.testing.assert_array_equal(variables["backward_stats"]["gradient"], np.zeros(4))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_one_call_and_float32_statistics(kind):
  x, real = (10 + draw(2, 3, 4)).astype(jnp.bfloat16), np.ones((2, 3), bool)
  layer = norm(kind, epsilon=1e-3, dtype=jnp.bfloat16, name="norm1")
  assert isinstance(layer, KINDS[kind]) and (layer.epsilon, layer.name) == (1e-3, "norm1")
  variables = layer.init(KEY, x, real)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
  y, statistics = layer.apply(variables, x, real, mutable=["batch_stats"])
  exact, wanted = norm(kind, epsilon=1e-3).apply(variables, x.astype(jnp.float32), real, mutable=["batch_stats"])
  assert y.dtype == jnp.bfloat16
  np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))
  jax.tree.map(np.testing.assert_array_equal, statistics, wanted)  # not rounded on the way
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(statistics))
  np.testing.assert_array_equal(layer.apply(variables, x), layer.apply(variables, x, real))


@pytest.mark.parametrize("kind", ["layer", "rms", "batch"])
def test_other_norms_have_no_statistics_of_the_backward_pass(kind):
  assert "backward_stats" not in norm(kind).init(KEY, draw(2, 3, 4))


def test_an_unknown_norm():
  with raises(ValueError, "'layr'", "'layer'", *KINDS):
    norms.norm("layr")
