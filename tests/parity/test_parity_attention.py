"""Attention is that of torch: fused and layer by layer, outputs, weights and gradients. Needs the extra [parity]."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from support import relative_error

from zoo.layers import attention_masks
from zoo.layers.attention import attention_pool, dot_product_attention, dot_scores, general_scores
from zoo.layers.multi_head_attention import Attention
from zoo.weights import convert, torch_layouts

pytestmark = pytest.mark.parity
torch.set_num_threads(1)  # matrices so small that threads would only wait for each other

B, T, S, N, H = 3, 5, 7, 4, 6
LENGTHS = np.array([7, 2, 4])


def draw(*shape, seed=0):
  return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


MASKS = {
  "all": None,
  "causal": attention_masks.causal(T, S),
  "padding": attention_masks.valid_length(LENGTHS, S),
  "bool": draw(B, N, T, S) + 2 * np.eye(T, S) > 0,  # no query is fully masked: torch gives nan
}


@pytest.mark.parametrize("num_heads", [N, 2, 1], ids=["multi-head", "grouped", "multi-query"])
@pytest.mark.parametrize("mask", MASKS)
def test_scaled_dot_product_attention(num_heads, mask):
  inputs = draw(B, T, N, H), draw(B, S, num_heads, H, seed=1), draw(B, S, num_heads, H, seed=2)
  tensors = [torch.tensor(x, requires_grad=True) for x in inputs]
  options = dict(is_causal=True) if mask == "causal" else {}  # as torch makes it: from the first query and key on
  if mask in ("padding", "bool"):
    options["attn_mask"] = torch.tensor(np.asarray(MASKS[mask]))
  q, k, v = (x.transpose(1, 2) for x in tensors)
  theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, **options, enable_gqa=num_heads < N).transpose(
    1, 2
  )
  torch.sin(theirs).sum().backward()

  def loss(q, k, v):
    out, _ = dot_product_attention(q, k, v, mask=MASKS[mask])
    return jnp.sin(out).sum(), out

  gradients, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*inputs)
  assert relative_error(out, theirs.detach()) < 1e-5
  for gradient, x in zip(gradients, tensors, strict=True):
    assert relative_error(gradient, x.grad) < 1e-5


def test_attention_of_one_head():
  """The dot product unscaled, as fused attention has it; the bilinear form, as torch.nn.Bilinear has it."""
  q, k, v, wide = draw(B, T, H), draw(B, S, H, seed=1), draw(B, S, H, seed=2), draw(B, S, 9)
  out, _ = attention_pool(dot_scores(q, k), v[:, :, None])
  theirs = torch.nn.functional.scaled_dot_product_attention(*map(torch.tensor, (q, k, v)), scale=1.0)
  assert relative_error(out[:, :, 0], theirs) < 1e-5
  bilinear = torch.nn.Bilinear(H, 9, 1, bias=False)
  pairs = (x.expand(B, T, S, -1) for x in (torch.tensor(q)[:, :, None], torch.tensor(wide)[:, None]))
  scores = general_scores(q, wide, bilinear.weight[0].detach().numpy())
  assert relative_error(scores[:, 0], bilinear(*pairs)[..., 0].detach()) < 1e-5


@pytest.mark.parametrize("kind", ["self", "causal", "cross"])
def test_multihead_attention(kind):
  """Of the layer, with padding; the same table that reads whole models reads its weights and its gradients."""
  x, y = torch.tensor(draw(B, T if kind == "cross" else S, N * H)), torch.tensor(draw(B, S, N * H, seed=1))
  theirs = torch.nn.MultiheadAttention(N * H, N, batch_first=True)
  for i, p in enumerate(theirs.parameters()):
    p.data = 0.4 * torch.tensor(draw(*p.shape, seed=i))
  y = y if kind == "cross" else x
  real = np.arange(S) < LENGTHS[:, None]
  causal = torch.triu(torch.ones(S, S, dtype=torch.bool), 1) if kind == "causal" else None  # True = may not attend
  mask = attention_masks.valid_length(LENGTHS, S) & (attention_masks.causal(S, S) if kind == "causal" else True)
  options = dict(key_padding_mask=torch.tensor(~real), attn_mask=causal, average_attn_weights=False)
  wanted, wanted_weights = theirs(x, y, y, **options)
  torch.sin(wanted).sum().backward()

  layer = Attention(N)
  table = (
    *torch_layouts.heads_packed("", *(f"attn/{name}" for name in "qkv")),
    *torch_layouts.heads_out(r"out_proj", "attn/out"),
  )
  table = [rule._replace(pattern=rule.pattern.removeprefix(r"\.")) for rule in table]
  arguments = (x.numpy(), None if kind != "cross" else y.numpy())
  template = {"attn": jax.eval_shape(layer.init, jax.random.key(0), *arguments)["params"]}

  def converted(value):
    return convert({k: value(p).detach().numpy() for k, p in theirs.named_parameters()}, table, template)["attn"]

  def loss(params):
    out, weights, _ = layer.apply({"params": params}, *arguments, mask=mask)
    return jnp.sin(out).sum(), (out, weights)

  gradients, (out, weights) = jax.jit(jax.grad(loss, has_aux=True))(converted(lambda p: p))
  assert relative_error(out, wanted.detach()) < 1e-5
  assert relative_error(weights, wanted_weights.detach()) < 1e-5
  expected = converted(lambda p: p.grad)
  # Over the largest of all: biases of keys have gradient 0, for a softmax does not see them.
  largest = max(np.abs(g).max() for g in jax.tree.leaves(expected))
  errors = jax.tree.map(lambda a, b: float(np.abs(a - b).max() / largest), gradients, expected)
  assert max(jax.tree.leaves(errors)) < 1e-5, errors
