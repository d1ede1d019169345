"""The layers every family is built of, each against its closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm
from support import draw, raises

from zoo.layers import attention_masks
from zoo.layers.activations import ACTIVATIONS
from zoo.layers.block import Block, BlockInputs
from zoo.layers.dropout import Dropout, DropPath, drop_path_rates, dropout
from zoo.layers.mlp import Mlp
from zoo.layers.multi_head_attention import Attention, Cache
from zoo.layers.norms import LayerNorm
from zoo.layers.patch_embed import patchify, take_tokens, unpatchify
from zoo.layers.pooling import AttentionPool

KEY = {"params": jax.random.key(0)}


def run(layer, *args, rngs=None, **kwargs):
  """Initialised, with every parameter random, and applied; returns output and parameters."""
  shapes = jax.eval_shape(functools.partial(layer.init, KEY, **kwargs), *args)
  leaves, treedef = jax.tree.flatten(shapes)
  variables = jax.tree.unflatten(treedef, [draw(*leaf.shape, seed=i) / 4 for i, leaf in enumerate(leaves)])
  apply = jax.jit(functools.partial(layer.apply, rngs=rngs, **kwargs))
  return apply(variables, *args), variables.get("params", {})


def layer_norm(x, p, epsilon):
  x = np.asarray(x, np.float64)
  normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
  return normed * p["scale"] + p["bias"]


def test_layer_norm():
  x = 1e3 + draw(2, 3, 8)  # far from 0, where E[x^2] - E[x]^2 has no digits left
  y, params = run(LayerNorm(epsilon=1e-6), x)
  np.testing.assert_allclose(y, layer_norm(x, params, 1e-6), rtol=1e-3, atol=1e-3)
  # Statistics are those of float32 also where the compute type is not.
  y, params = run(LayerNorm(dtype=jnp.bfloat16), (100 + draw(2, 8)).astype(jnp.bfloat16))
  assert y.dtype == jnp.bfloat16 and params["scale"].dtype == np.float32
  np.testing.assert_allclose(
    y.astype(np.float32), layer_norm((100 + draw(2, 8)).astype(jnp.bfloat16), params, 1e-6), atol=0.01
  )


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.05)])
@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 3, 8)])
def test_the_gradient_of_layer_norm_is_that_of_the_formula(shape, dtype, tolerance):
  x, dy = jnp.asarray(5 + draw(*shape), dtype), jnp.asarray(draw(*shape, seed=1), dtype)
  layer, params = LayerNorm(epsilon=1e-3, dtype=dtype), dict(scale=1 + draw(8) / 4, bias=draw(8, seed=2))

  def formula(x, params):
    x = x.astype(jnp.float32)
    normed = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-3)
    return normed * params["scale"] + params["bias"]

  _, wanted = jax.vjp(formula, x, params)
  _, got = jax.vjp(lambda x, params: layer.apply({"params": params}, x), x, params)
  for a, b in zip(jax.tree.leaves(got(dy)), jax.tree.leaves(wanted(dy.astype(jnp.float32))), strict=True):
    assert a.dtype == b.dtype and a.shape == b.shape
    np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-7), (jnp.bfloat16, 2**-8)])
def test_gelu_is_the_normal_distribution_function_times_x(dtype, tolerance):
  x = jnp.linspace(-12, 12, 2001).astype(dtype)
  y, back = jax.vjp(ACTIVATIONS["gelu"], x)
  (slope,) = back(jnp.ones_like(x))
  assert y.dtype == slope.dtype == dtype
  x = np.asarray(x, np.float64)
  np.testing.assert_allclose(np.float64(y), x * norm.cdf(x), rtol=tolerance, atol=1e-6)
  np.testing.assert_allclose(np.float64(slope), norm.cdf(x) + x * norm.pdf(x), rtol=2 * tolerance, atol=2e-6)


def test_gelu_is_exact_and_gelu_tanh_is_not():
  x = jnp.linspace(-4, 4, 101)
  exact = 0.5 * x * (1 + jax.lax.erf(x / np.sqrt(2)))
  tanh = 0.5 * x * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
  np.testing.assert_allclose(ACTIVATIONS["gelu"](x), exact, atol=1e-6)
  np.testing.assert_allclose(ACTIVATIONS["gelu_tanh"](x), tanh, atol=1e-6)
  assert np.abs(exact - tanh).max() > 1e-4


@pytest.mark.parametrize("shape", [(10_000,), (50, 200), (5, 41, 50), (2, 3, 1, 2000)], ids=str)
def test_dropout(shape):
  x = 1 + np.abs(draw(*shape))
  y, _ = run(Dropout(0.3), x, rngs={"dropout": jax.random.key(0)})
  kept = np.asarray(y) != 0
  assert abs(kept.mean() - 0.7) < 0.02
  np.testing.assert_allclose(y[kept], x[kept] / (1 - 77 / 256), rtol=1e-6)  # 0.3, rounded to a multiple of 1/256


def test_dropout_is_unbiased():
  many = np.asarray(jax.jit(lambda key: dropout(jnp.ones((100, 64, 100)), 0.1, key))(jax.random.key(1)))
  assert abs(many.mean() - 1) < 4 * np.sqrt(0.1 / 0.9 / many.size)
  assert dropout(jnp.ones(3, jnp.bfloat16), 0.1, jax.random.key(0)).dtype == jnp.bfloat16


def test_without_a_rate_or_a_key_nothing_is_dropped():
  x = draw(3, 5)
  for layer, rngs in ((Dropout(0.3), None), (Dropout(0.0), {"dropout": jax.random.key(0)})):
    assert layer.apply({}, x, rngs=rngs) is x


def test_drop_path_drops_whole_examples():
  x = 1 + np.abs(draw(2000, 3, 2))
  apply = jax.jit(lambda rate, seed: DropPath().apply({}, x, rate, rngs={"dropout": jax.random.key(seed)}))
  y = np.asarray(apply(0.25, 0))
  kept_B = y[:, 0, 0] != 0
  assert abs(kept_B.mean() - 0.75) < 0.04
  np.testing.assert_allclose(y, np.where(kept_B[:, None, None], x / 0.75, 0), rtol=1e-6)
  np.testing.assert_array_equal(apply(0.0, 0), x)  # a traced rate of 0 is 0
  assert (apply(0.25, 1) != y).any()
  assert DropPath().apply({}, x, 0.25) is x
  assert DropPath().apply({}, x, None, rngs={"dropout": jax.random.key(0)}) is x
  assert DropPath().apply({}, x.astype(jnp.bfloat16), 0.5, rngs={"dropout": jax.random.key(0)}).dtype == (jnp.bfloat16)


def test_drop_path_rates_grow_linearly_from_zero():
  np.testing.assert_allclose(drop_path_rates(0.3, 4), [0, 0.1, 0.2, 0.3])
  np.testing.assert_array_equal(drop_path_rates(0.3, 1), [0])


def attention(x, y, p):
  """The layer written out in NumPy."""
  q, k, v = (np.einsum("btd,dnh->btnh", s, p[m]["kernel"]) + p[m]["bias"] for s, m in ((x, "q"), (y, "k"), (y, "v")))
  scores = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(q.shape[-1])
  weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
  return np.einsum("bnts,bsnh,nhd->btd", weights, v, p["out"]["kernel"]) + p["out"]["bias"], weights


def test_self_attention_and_cross_attention():
  x, y = draw(2, 5, 8), draw(2, 3, 8)
  for others in (None, y):
    (out, weights, _), params = run(Attention(num_heads=2), x, others)
    assert params["q"]["kernel"].shape == (8, 2, 4) and params["out"]["kernel"].shape == (2, 4, 8)
    wanted, wanted_weights = attention(x, x if others is None else others, params)
    np.testing.assert_allclose(out, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(weights, wanted_weights, rtol=1e-4, atol=1e-6)


def test_attention_dropout_needs_its_key():
  x = draw(2, 5, 8)
  layer = Attention(num_heads=2, dropout_rate=0.5)
  (out, *_), params = run(layer, x)
  np.testing.assert_allclose(out, attention(x, x, params)[0], rtol=1e-4, atol=1e-5)
  (dropped, *_), _ = run(layer, x, rngs={"dropout": jax.random.key(0)})
  assert (np.abs(dropped - out) > 1e-3).any()


def test_queries_share_keys_and_values():
  """As many heads with their keys and values repeated."""
  x = draw(2, 5, 8)
  (out, weights, cache), p = run(Attention(num_heads=4, num_kv_heads=2), x)
  assert cache.k_BKSH.shape == (2, 2, 5, 2) and p["k"]["kernel"].shape == (8, 2, 2)
  repeated = jax.tree.map(lambda a: np.repeat(a, 2, -2), {m: p[m] for m in ("k", "v")})
  wanted, wanted_weights = attention(x, x, p | repeated)
  np.testing.assert_allclose(out, wanted, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(weights, wanted_weights, rtol=1e-4, atol=1e-6)


def test_token_by_token_with_a_cache():
  x = draw(2, 5, 8)
  layer = Attention(num_heads=2)
  params = layer.init(KEY, x)
  whole, *_ = layer.apply(params, x, mask=attention_masks.causal(5, 5))
  cache = Cache(*jnp.full((2, 2, 2, 6, 4), 7.0))  # longer than needed, and filled with what must not be attended to
  for i in range(5):
    mask = attention_masks.causal(1, 6, i)
    out, _, cache = layer.apply(params, x[:, i : i + 1], mask=mask, cache=cache, index=jnp.int32(i))
    np.testing.assert_allclose(out[:, 0], whole[:, i], rtol=1e-4, atol=1e-5)


def test_heads_that_do_not_divide_the_width():
  with raises(ValueError, 5, "heads", 8, [1, 2, 4, 8]):
    Attention(num_heads=5).init(KEY, draw(1, 2, 8))


def test_mlp():
  x = draw(2, 3, 8)
  y, p = run(Mlp(6, "relu"), x)
  hidden = np.maximum(x @ p["up"]["kernel"] + p["up"]["bias"], 0)
  np.testing.assert_allclose(y, hidden @ p["down"]["kernel"] + p["down"]["bias"], rtol=1e-4, atol=1e-5)


def test_block_is_pre_norm_with_two_residuals():
  x = draw(2, 5, 8)
  (out, aux), p = run(Block(num_heads=2, mlp_dim=6, activation="relu", norm_eps=1e-5), x)
  x = x + attention(layer_norm(x, p["norm1"], 1e-5), layer_norm(x, p["norm1"], 1e-5), p["attn"])[0]
  y = layer_norm(x, p["norm2"], 1e-5)
  hidden = np.maximum(y @ p["mlp"]["up"]["kernel"] + p["mlp"]["up"]["bias"], 0)
  np.testing.assert_allclose(out, x + hidden @ p["mlp"]["down"]["kernel"] + p["mlp"]["down"]["bias"], atol=1e-4)
  assert aux["weights"].shape == (2, 2, 5, 5)


def test_decoder_block_normalises_sums():
  """Post-norm, with cross-attention, written out."""
  x, y = draw(2, 5, 8), draw(2, 3, 8)
  block = Block(num_heads=2, mlp_dim=6, activation="relu", norm_eps=1e-5, norm_position="post", cross=True)
  (out, aux), p = run(block, x, None, BlockInputs(memory=y))
  x = layer_norm(x + attention(x, x, p["attn"])[0], p["norm1"], 1e-5)
  attended, weights = attention(x, y, p["cross"])
  x = layer_norm(x + attended, p["cross_norm"], 1e-5)
  hidden = np.maximum(x @ p["mlp"]["up"]["kernel"] + p["mlp"]["up"]["bias"], 0)
  x = layer_norm(x + hidden @ p["mlp"]["down"]["kernel"] + p["mlp"]["down"]["bias"], p["norm2"], 1e-5)
  np.testing.assert_allclose(out, x, atol=1e-4)
  np.testing.assert_allclose(aux["cross_weights"], weights, atol=1e-5)


def test_patchify_is_row_by_row_with_channels_innermost():
  image = np.arange(2 * 6 * 4 * 3).reshape(2, 6, 4, 3)
  patches = patchify(image, 2)
  assert patches.shape == (2, 3, 2, 12)
  for y, x in np.ndindex(3, 2):
    np.testing.assert_array_equal(patches[:, y, x], image[:, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].reshape(2, 12))
  np.testing.assert_array_equal(unpatchify(patches, 2), image)


def test_an_image_not_divisible_into_patches():
  with raises(ValueError, "8 x 10", "4 x 4", 10, 8):
    patchify(draw(1, 8, 10, 3), 4)


def test_attention_pool():
  x = draw(2, 5, 8)
  out, p = run(AttentionPool(num_heads=2, mlp_dim=6, activation="relu"), x)
  pooled = attention(np.broadcast_to(p["probe"], (2, 1, 8)), x, p["attn"])[0][:, 0]
  y = layer_norm(pooled, p["norm"], 1e-6)
  hidden = np.maximum(y @ p["mlp"]["up"]["kernel"] + p["mlp"]["up"]["bias"], 0)
  np.testing.assert_allclose(out, pooled + hidden @ p["mlp"]["down"]["kernel"] + p["mlp"]["down"]["bias"], atol=1e-4)


def test_take_tokens():
  x = draw(2, 4, 3)
  index = np.array([[3, 0], [1, 1]])
  np.testing.assert_array_equal(take_tokens(x, index), np.stack([x[0, [3, 0]], x[1, [1, 1]]]))
