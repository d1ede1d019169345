"""Attention of one head: every kind against its formula, with every kind of mask."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import draw, raises
from test_layers import KEY, run

from zoo.layers import attention_masks
from zoo.layers.pooling import KINDS, Pooling, WindowDense

B, T, S, Q, E, D, A = 2, 4, 5, 3, 6, 7, 8
DIFFERENT_WIDTHS = ("average", "general", "additive")


def inputs(kind):
  return draw(B, T, Q), draw(B, S, E if kind in DIFFERENT_WIDTHS else Q, seed=1), draw(B, S, D, seed=2)


def score(kind, p, x, y):
  """Of one query and one key, in float64."""
  x, y = x.astype(np.float64), y.astype(np.float64)
  return {
    "average": lambda: 0.0,
    "gaussian": lambda: -np.sum((p["inverse_width"] * (x - y)) ** 2) / 2,
    "dot": lambda: x @ y,
    "scaled_dot": lambda: x @ y / np.sqrt(Q),
    "general": lambda: x @ p["bilinear"] @ y,
    "additive": lambda: p["score"][:, 0] @ np.tanh(x @ p["query"] + y @ p["key"]),
  }[kind]()


def naive(kind, p, q, k, v, allowed):
  """Query by query; `allowed` [B, T, S]."""
  out, weights = np.zeros((B, T, D)), np.zeros((B, 1, T, S))
  for b, t in np.ndindex(B, T):
    positions = np.flatnonzero(allowed[b, t])
    if len(positions):
      fit = np.exp([score(kind, p, q[b, t], k[b, s]) for s in positions])
      weights[b, 0, t, positions] = fit / fit.sum()
      out[b, t] = weights[b, 0, t] @ v[b]
  return out, weights


MASKS = {
  "none": (None, np.full((B, T), S)),
  "a length for each sequence": (np.array([3, 1]), np.array([[3] * T, [1] * T])),
  "a length for each query": (np.array([[1, 2, 3, 0], [5, 4, 3, 2]]),) * 2,
}


@pytest.mark.parametrize("lengths", MASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_its_formula_with_every_valid_length(kind, lengths):
  lengths, lengths_BT = MASKS[lengths]
  mask = None if lengths is None else attention_masks.valid_length(jnp.asarray(lengths), S)
  q, k, v = inputs(kind)
  (out, weights), p = run(Pooling(kind, hidden=A), q, k, v, mask=mask)
  assert out.shape == (B, T, D) and weights.shape == (B, 1, T, S)
  wanted, wanted_weights = naive(kind, p, q, k, v, np.arange(S) < lengths_BT[..., None])
  np.testing.assert_allclose(out, wanted, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(weights, wanted_weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_a_gradient_also_with_a_fully_masked_query(kind):
  q, k, v = inputs(kind)
  layer = Pooling(kind, hidden=A)
  variables = layer.init(KEY, q, k, v)
  mask = attention_masks.valid_length(jnp.array([S, 0]), S)
  grads = jax.grad(lambda p: jnp.square(layer.apply(p, q, k, v, mask=mask)[0]).sum())(variables)
  assert all(np.isfinite(g).all() and (g != 0).any() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_leaves_parameters_and_weights_float32(kind):
  q, k, v = inputs(kind)
  layer = Pooling(kind, hidden=A, dtype=jnp.bfloat16)
  variables = layer.init(KEY, q, k, v)
  out, weights = layer.apply(variables, q, k, v)
  assert (out.dtype, weights.dtype) == (jnp.bfloat16, jnp.float32)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
  program = jax.make_jaxpr(layer.apply)(variables, q, k, v)
  products = [e for e in program.eqns if e.primitive.name == "dot_general"]
  assert products and all(x.aval.dtype == jnp.bfloat16 for e in products for x in e.invars)
  exact, _ = Pooling(kind, hidden=A).apply(variables, q, k, v)
  np.testing.assert_allclose(out.astype(np.float32), exact, atol=0.05)


def test_a_fixed_width_is_no_parameter():
  q, k, v = inputs("gaussian")
  (out, weights), p = run(Pooling("gaussian", width=0.5, learn_width=False), q, k, v)
  assert not p
  wanted = naive("gaussian", {"inverse_width": 2.0}, q, k, v, np.full((B, T, S), True))
  np.testing.assert_allclose(out, wanted[0], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(weights, wanted[1], rtol=1e-4, atol=1e-5)
  # A learned one begins there, and its parameter at 1, whatever the units of the points are.
  learned, variables = Pooling("gaussian", width=0.5).init_with_output(KEY, q, k, v)
  assert variables["params"]["inverse_width"] == 1
  np.testing.assert_allclose(learned[0], out, rtol=1e-6)


def test_distances_are_computed_before_rounding():
  """Years in bfloat16 are multiples of 8."""
  year, v = np.arange(1990, 1998, dtype=np.float32)[None, :, None], draw(1, 8, D)
  _, weights = Pooling("gaussian", width=0.1, dtype=jnp.bfloat16, learn_width=False).apply({}, year, year, v)
  np.testing.assert_allclose(weights[0, 0], np.eye(8), atol=1e-6)


def test_dropout_needs_its_key():
  q, k, v = inputs("dot")
  layer = Pooling("dot", dropout_rate=0.5)
  np.testing.assert_array_equal(layer.apply({}, q, k, v)[0], Pooling("dot").apply({}, q, k, v)[0])
  dropped, weights = layer.apply({}, q, k, v, rngs={"dropout": jax.random.key(0)})
  assert (dropped != layer.apply({}, q, k, v)[0]).any()
  np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)


def test_invalid_kinds_and_sizes():
  q, k, v = inputs("dot")
  with raises(ValueError, "'aditive'", "'additive'"):
    Pooling("aditive").init(KEY, q, k, v)
  with raises(ValueError, "hidden", 0, 1):
    Pooling("additive").init(KEY, q, k, v)
  with raises(ValueError, "window", 0, 1):
    WindowDense(3, window=0).init(KEY, v)


@pytest.mark.parametrize("causal", [False, True])
def test_window_dense_is_a_dense_layer_of_the_neighbours(causal):
  x, real = draw(B, 6, D), np.arange(6) < np.array([[6], [4]])
  y, p = run(WindowDense(3, window=3, causal=causal), x, real)
  positions = range(-2, 1 if causal else 3)
  for b, t in np.ndindex(B, 6):
    near = [x[b, t + i] if 0 <= t + i < 6 and real[b, t + i] else np.zeros(D) for i in positions]
    wanted = np.concatenate(near) @ p["window"]["kernel"] + p["window"]["bias"]
    np.testing.assert_allclose(y[b, t], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_window_dense_reads_what_the_window_mask_allows(causal):
  x = draw(1, 7, D)
  layer = WindowDense(3, window=2, causal=causal)
  variables = layer.init(KEY, x)
  jacobian = jax.jit(jax.jacobian(functools.partial(layer.apply, variables)))(x)  # [1, T, 3, 1, T, D]
  allowed = (
    attention_masks.window(7, 7, 2) & attention_masks.causal(7, 7) if causal else attention_masks.window(7, 7, 2)
  )
  np.testing.assert_array_equal((jacobian != 0).any((0, 2, 3, 5)), allowed[0, 0])
