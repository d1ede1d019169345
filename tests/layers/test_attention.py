"""Attention is the naive formula, masks are as documented, scores are their formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from support import draw, raises

from zoo.layers import attention_masks
from zoo.layers.attention import (
  additive_scores,
  attention_pool,
  cosine_queries_and_keys,
  dot_product_attention,
  dot_product_scores,
  dot_scores,
  gaussian_scores,
  general_scores,
  masked_softmax,
  uniform_scores,
)
from zoo.layers.multi_head_attention import Attention
from zoo.shapes import ShapeError

B, T, S, N, H = 2, 5, 7, 4, 3


def naive(q, k, v, mask=None, bias=None):
  """Vaswani et al. 2017, eq. 1, query by query and head by head, in float64."""
  shape = (len(q), q.shape[2], q.shape[1], k.shape[1])
  mask = np.ones(shape, bool) if mask is None else np.broadcast_to(mask, shape)
  bias = np.zeros(shape) if bias is None else np.broadcast_to(bias, shape)
  out, weights = np.zeros(q.shape), np.zeros(shape)
  for b, n, t in np.ndindex(shape[:3]):
    share = n // (q.shape[2] // k.shape[2])
    allowed = np.flatnonzero(mask[b, n, t])
    if not len(allowed):
      continue
    scores = [q[b, t, n].astype(np.float64) @ k[b, s, share] / np.sqrt(q.shape[3]) + bias[b, n, t, s] for s in allowed]
    weights[b, n, t, allowed] = np.exp(scores) / np.sum(np.exp(scores))
    out[b, t, n] = weights[b, n, t] @ v[b, :, share]
  return out, weights


@pytest.mark.parametrize("num_heads", [4, 2, 1], ids=["multi-head", "grouped", "multi-query"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_dot_product_attention_is_the_formula(num_heads, masked, biased):
  q, k, v = draw(B, T, N, H), draw(B, S, num_heads, H, seed=1), draw(B, S, num_heads, H, seed=2)
  mask = draw(B, 1, T, S) > 0 if masked else None
  bias = draw(N, T, S) if biased else None
  wanted, wanted_weights = naive(q, k, v, mask, bias)
  out, weights = dot_product_attention(q, k, v, mask=mask, bias=bias)
  np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(weights, wanted_weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_heads", [4, 2, 1], ids=["multi-head", "grouped", "multi-query"])
def test_dot_product_attention_is_that_of_jax_nn(num_heads):
  """`jax.nn.dot_product_attention`, by every kind of mask."""
  q, k, v = draw(B, T, N, H), draw(B, S, num_heads, H, seed=1), draw(B, S, num_heads, H, seed=2)
  lengths, mask, bias = np.array([3, 5]), draw(B, N, T, S) + 3 * np.eye(T, S) > 0, draw(B, N, T, S, seed=1)
  cases = [
    (dict(mask=mask, bias=bias), dict(mask=mask, bias=bias)),
    (dict(mask=attention_masks.causal(T, S)), dict(is_causal=True)),
    (dict(mask=attention_masks.valid_length(lengths, S)), dict(key_value_seq_lengths=lengths)),
    # Theirs: so many on each side; before JAX 0.8.2 only together with a mask.
    (dict(mask=attention_masks.window(T, S, 3)), dict(local_window_size=2, mask=np.ones((1, 1, T, S), bool))),
  ]
  for ours, theirs in cases:
    wanted = jax.nn.dot_product_attention(q, k, v, **theirs)
    np.testing.assert_allclose(dot_product_attention(q, k, v, **ours)[0], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cross", [False, True])
def test_the_layer_is_that_of_linen(cross):
  """`nn.MultiHeadDotProductAttention`, with the same weights: output and gradients."""
  x, y = draw(B, T, N * H), draw(B, S, N * H, seed=1) if cross else None
  mask = attention_masks.valid_length(np.array([3, 5]), S) if cross else attention_masks.causal(T, T)
  theirs, ours = nn.MultiHeadDotProductAttention(N), Attention(N)
  shapes = jax.eval_shape(ours.init, jax.random.key(0), x, y)["params"]
  params = jax.tree.map(lambda s: 0.3 * draw(*s.shape), shapes)  # outputs near 1, so that their rounding is small
  names = dict(q="query", k="key", v="value", out="out")

  def loss(params, layer):
    out = layer.apply({"params": params}, x, y, mask=mask)
    out = out if layer is theirs else out[0]
    return jnp.sin(out).sum(), out

  gradients, out = jax.grad(loss, has_aux=True)(params, ours)
  wanted_gradients, wanted = jax.grad(loss, has_aux=True)({names[k]: p for k, p in params.items()}, theirs)
  np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-5)
  for name, of_part in gradients.items():
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), of_part, wanted_gradients[names[name]]
    )


def test_masked_is_removed():
  q, k, v = draw(B, T, N, H), draw(B, S, N, H, seed=1), draw(B, S, N, H, seed=2)
  keep = np.array([0, 2, 3, 6])
  out, _ = dot_product_attention(q, k, v, mask=jnp.isin(jnp.arange(S), keep))
  without, _ = dot_product_attention(q, k[:, keep], v[:, keep])
  np.testing.assert_allclose(out, without, rtol=1e-5, atol=1e-6)


def test_causal_attention_passes_no_gradient_from_the_future():
  q, k, v = draw(1, T, N, H), draw(1, T, N, H, seed=1), draw(1, T, N, H, seed=2)
  mask = attention_masks.causal(T, T)
  jacobian = jax.jit(jax.jacobian(lambda k, v: dot_product_attention(q, k, v, mask=mask)[0].sum((0, 2, 3)), (0, 1)))
  of_k, of_v = jacobian(k, v)  # [T, 1, S, N, H]
  for gradient in (of_k, of_v):
    size_TS = np.abs(gradient).sum((1, 3, 4))
    assert (size_TS[np.triu_indices(T, 1)] == 0).all()
    assert (size_TS[np.tril_indices(T)][1:] > 0).all()  # query 0 attends to one key: its weight is 1 whatever the key


def test_a_fully_masked_query_gets_zero_and_finite_gradients():
  q, k, v = draw(B, T, N, H), draw(B, S, N, H, seed=1), draw(B, S, N, H, seed=2)
  mask = np.ones((1, 1, T, S), bool)
  mask[..., 2, :] = False

  def loss(q, k, v):
    out, weights = dot_product_attention(q, k, v, mask=mask)
    return jnp.square(out).sum() + jnp.square(weights).sum()

  out, weights = dot_product_attention(q, k, v, mask=mask)
  assert (out[:, 2] == 0).all() and (weights[:, :, 2] == 0).all()
  grads = jax.jit(jax.grad(loss, (0, 1, 2)))(q, k, v)
  assert all(np.isfinite(g).all() for g in grads)
  assert (grads[0][:, 2] == 0).all() and (np.abs(grads[0][:, 1]) > 0).any()


def test_softmax_of_large_scores_is_finite():
  weights = masked_softmax(jnp.array([1e30, -1e30, 1e30]), jnp.array([False, True, True]))
  np.testing.assert_array_equal(weights, [0, 0, 1])


def test_softmax_is_float32_for_any_input_dtype():
  assert masked_softmax(jnp.zeros((2, 3), jnp.bfloat16)).dtype == jnp.float32
  q = jnp.ones((B, T, N, H), jnp.bfloat16)
  out, weights = dot_product_attention(q, q, q)
  assert (out.dtype, weights.dtype) == (jnp.bfloat16, jnp.float32)


def test_dropout_keeps_the_mean_and_drops_its_share():
  q, k, v = draw(1, T, N, H), draw(1, S, N, H, seed=1), draw(1, S, N, H, seed=2)
  draws = jax.jit(jax.vmap(lambda key: dot_product_attention(q, k, v, dropout_rate=0.3, dropout_key=key)))
  outs, weights = draws(jax.random.split(jax.random.key(0), 1000))
  wanted, _ = dot_product_attention(q, k, v)
  spread = np.asarray(outs).std(0) / np.sqrt(len(outs))
  assert (np.abs(outs.mean(0) - wanted) < 5 * spread + 1e-6).all()
  np.testing.assert_array_equal(weights[0], weights[1])  # the weights are those before dropout
  # A value that is all ones comes out as the kept weight over its share: never 1, but 1 on average.
  ones, _ = dot_product_attention(q, k, jnp.ones_like(v), dropout_rate=0.3, dropout_key=jax.random.key(1))
  assert (ones != 1).any()


def test_no_dropout_without_a_key():
  q = draw(B, T, N, H)
  np.testing.assert_array_equal(dot_product_attention(q, q, q, dropout_rate=0.5)[0], dot_product_attention(q, q, q)[0])


def test_query_heads_not_divisible_by_key_heads():
  with raises(ValueError, 4, 3, "heads"):
    dot_product_scores(draw(B, T, 4, H), draw(B, S, 3, H))


def test_inconsistent_shapes():
  with raises(ShapeError, "H is 4", "k_BSKH", 3, "q_BTNH (2, 5, 4, 3)"):
    dot_product_attention(draw(B, T, N, H), draw(B, S, N, 4), draw(B, S, N, H))


def test_query_heads_not_divisible_by_value_heads():
  with raises(ValueError, 4, 3, "heads", [1, 2, 4]):
    attention_pool(draw(B, 4, T, S), draw(B, S, 3, H))


# ---- score functions of one head

Q, E, A = 4, 6, 5


def pair_by_pair(score, q, k):
  """[B, 1, T, S]: the score of every pair of vectors, in float64."""
  return np.array([[[[score(x, y) for y in keys] for x in queries]] for queries, keys in zip(q, k, strict=True)])


def test_scores_are_their_formulas():
  q, k, wide = (draw(B, n, d).astype(np.float64) for n, d in ((T, Q), (S, Q), (S, E)))
  bilinear, query, key, score = draw(Q, E), draw(Q, A), draw(E, A), draw(A)
  cases = [
    (dot_scores(q, k), lambda x, y: x @ y, k),
    (general_scores(q, wide, bilinear), lambda x, y: x @ bilinear @ y, wide),
    (additive_scores(q, wide, query, key, score), lambda x, y: score @ np.tanh(query.T @ x + key.T @ y), wide),
    (gaussian_scores(q, k, 0.7), lambda x, y: -np.sum((0.7 * (x - y)) ** 2) / 2, k),
    (gaussian_scores(q, k, draw(Q)), lambda x, y: -np.sum((draw(Q) * (x - y)) ** 2) / 2, k),
    (uniform_scores(q, wide), lambda x, y: 0.0, wide),
  ]
  for scores, formula, keys in cases:
    assert scores.shape == (B, 1, T, S) and scores.dtype == jnp.float32
    np.testing.assert_allclose(scores, pair_by_pair(formula, q, keys), rtol=1e-5, atol=1e-5)


def test_gaussian_scores_keep_their_digits_far_from_zero():
  near = gaussian_scores(jnp.full((1, 1, 1), 1e4), jnp.full((1, 1, 1), 1e4 + 0.125))
  np.testing.assert_allclose(near, -(0.125**2) / 2)


def test_gaussian_attention_is_kernel_regression():
  x, y, new = np.sort(draw(1, 40, 1), 1), draw(1, 40, 1, seed=1), draw(1, 9, 1, seed=2)
  out, _ = attention_pool(gaussian_scores(new, x, 3.0), y[:, :, None])
  kernel = np.exp(-((3 * (new[0] - x[0].T)) ** 2) / 2)  # [9, 40]
  np.testing.assert_allclose(out[0, :, 0], kernel @ y[0] / kernel.sum(1, keepdims=True), rtol=1e-4)
  # A narrow kernel finds the nearest neighbour, a wide one the average.
  nearest, _ = attention_pool(gaussian_scores(x, x, 1e4), y[:, :, None])
  np.testing.assert_allclose(nearest[:, :, 0], y, rtol=1e-5)
  average, _ = attention_pool(gaussian_scores(x, x, 0.0), y[:, :, None])
  np.testing.assert_allclose(average[0, :, 0, 0], np.full(40, y.mean()), rtol=1e-5)


def test_uniform_scores_average_what_is_valid():
  q, k, v, lengths = draw(B, T, Q), draw(B, S, E), draw(B, S, 1, H), np.array([3, 5])
  out, _ = attention_pool(uniform_scores(q, k), v, mask=attention_masks.valid_length(lengths, S))
  for b, length in enumerate(lengths):
    np.testing.assert_allclose(out[b, :, 0], np.tile(v[b, :length, 0].mean(0), (T, 1)), rtol=1e-5, atol=1e-6)


def test_scores_of_inconsistent_widths():
  with raises(ShapeError, "Q is 6", "k_BSQ", 4):
    dot_scores(draw(B, T, Q), draw(B, S, E))
  with raises(ShapeError, "E is 5", "bilinear_QE", 6):
    general_scores(draw(B, T, Q), draw(B, S, E), draw(Q, 5))


# ---- cosine scores


def test_cosine_scores_are_the_formula():
  q, k, log_scale = draw(2, 5, 2, 3), draw(2, 4, 2, 3, seed=1), np.array([0.5, 9.0], np.float32)
  length = functools.partial(np.linalg.norm, axis=-1)
  cosines = np.einsum("btnh,bsnh->bnts", q, k) / np.einsum("btn,bsn->bnts", length(q), length(k))
  wanted = cosines * np.array([np.exp(0.5), 100.0])[:, None, None]  # tau is never below 0.01
  np.testing.assert_allclose(
    dot_product_scores(*cosine_queries_and_keys(q, k, log_scale)), wanted, rtol=1e-4, atol=1e-4
  )


def test_cosine_scores_of_zero_vectors_have_zero_gradient():
  q, k, log_scale = np.zeros((1, 1, 1, 3), np.float32), draw(1, 4, 1, 3), np.zeros(1, np.float32)

  def scores(q, k):
    return jnp.square(dot_product_scores(*cosine_queries_and_keys(q, k, log_scale)) + 1).sum()

  assert scores(q, k) == 4
  for gradient in jax.grad(scores, (0, 1))(q, k):
    np.testing.assert_array_equal(gradient, 0)


def test_keys_have_no_bias_with_cosine_scores():
  params = jax.eval_shape(Attention(2, cosine_attention=True).init, jax.random.key(0), draw(1, 3, 4))["params"]
  assert set(params) == {"q", "k", "v", "out", "log_scale"}
  assert set(params["k"]) == {"kernel"} and set(params["q"]) == set(params["v"]) == {"kernel", "bias"}
