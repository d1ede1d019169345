"""Closed forms of `zoo.layers.position_embeddings`."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import draw, grid_positions, raises

from zoo.layers import attention_masks
from zoo.layers.attention import dot_product_attention
from zoo.layers.position_embeddings import (
  RESAMPLINGS,
  BucketedRelativePositionBias,
  ContinuousRelativePositionBias,
  WindowRelativePositionBias,
  alibi_bias,
  alibi_slopes,
  apply_rotary,
  relative_position_bucket,
  relative_scores,
  resample,
  sincos_1d,
  sincos_2d,
)
from zoo.shapes import ShapeError


def test_sincos_1d_by_hand():
  table = sincos_1d(np.array([0, 3]), 4)
  np.testing.assert_allclose(table, [[0, 0, 1, 1], [np.sin(3), np.sin(0.03), np.cos(3), np.cos(0.03)]], atol=1e-7)


def test_an_odd_width_has_no_pairs():
  with raises(ValueError, "width", 25):
    sincos_1d(np.arange(4), 25)


@pytest.mark.parametrize("shift", [1, 7, 100])
def test_a_shift_of_sincos_1d_is_one_rotation_wherever_it_starts(shift):
  width, positions = 16, np.arange(50)
  frequency = 10000.0 ** -(np.arange(8) / 8)
  turn = np.zeros((width, width))  # each pair (sin, cos) turned by shift * frequency
  for i, angle in enumerate(shift * frequency):
    turn[np.ix_([i, i + 8], [i, i + 8])] = [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
  np.testing.assert_allclose(turn @ turn.T, np.eye(width), atol=1e-12)
  np.testing.assert_allclose(sincos_1d(positions + shift, width), sincos_1d(positions, width) @ turn.T, atol=1e-6)


def test_sincos_2d_has_the_column_first_and_then_the_row():
  table = sincos_2d((3, 5), 8)
  assert table.shape == (3, 5, 8)
  assert table.dtype == np.float32
  np.testing.assert_array_equal(table[2, 4], np.concatenate([sincos_1d(4, 4), sincos_1d(2, 4)]))


def test_sincos_2d_needs_a_multiple_of_four():
  with raises(ValueError, 4, 6):
    sincos_2d((2, 2), 6)


@pytest.mark.parametrize("method", RESAMPLINGS)
@pytest.mark.parametrize("grid", [(7, 11), (3, 2), (4, 9)])
def test_resampling_keeps_a_constant(grid, method):
  table = resample(jnp.full((4, 5, 2), 3.5), grid, method)
  assert table.shape == (*grid, 2)
  np.testing.assert_allclose(table, 3.5, rtol=1e-6)


@pytest.mark.parametrize("method", ["bilinear", "bicubic_antialias"])  # torch's a = -0.75 bends it
def test_resampling_keeps_a_ramp_away_from_the_borders(method):
  ramp = jnp.arange(12.0)[:, None, None] + 100 * jnp.arange(10.0)[None, :, None]
  rows, columns = (np.arange(24) + 0.5) / 2 - 0.5, (np.arange(20) + 0.5) / 2 - 0.5
  wanted = rows[:, None] + 100 * columns
  table = resample(ramp, (24, 20), method)[..., 0]
  np.testing.assert_allclose(table[4:-4, 4:-4], wanted[4:-4, 4:-4], rtol=1e-5)


def test_the_same_grid_is_the_table_itself():
  table = jnp.ones((2, 3, 4))
  assert resample(table, (2, 3)) is table


def test_a_half_step_of_the_bicubic_kernel():
  # Halving puts every new sample in the middle of two old ones, at distances 1.5, 0.5, 0.5, 1.5: the weights are
  # (a, 4 - a, 4 - a, a) / 8 by Keys 1981, eq. 4, with a = -0.75.
  table = resample(jnp.eye(8)[:, None], (4, 1), "bicubic")[:, 0]
  np.testing.assert_allclose(table[1], [0, -0.09375, 0.59375, 0.59375, -0.09375, 0, 0, 0], atol=1e-7)


def test_shrinking_with_antialias_widens_the_kernel():
  # The kernel, with a = -0.5, at distances 1/4, 3/4, 5/4, 7/4 is 0.8671875, 0.2265625, -0.0703125, -0.0234375.
  table = resample(jnp.eye(12)[:, None], (6, 1), "bicubic_antialias")[:, 0]
  side = np.array([0.43359375, 0.11328125, -0.03515625, -0.01171875])
  np.testing.assert_allclose(table[2], [0, *side[::-1], *side, 0, 0, 0], atol=1e-7)


def test_unknown_resampling():
  with raises(ValueError, "'nearest'", *RESAMPLINGS):
    resample(jnp.ones((2, 2, 1)), (3, 3), "nearest")


def test_relative_scores_are_the_naive_double_loop():
  rng = np.random.default_rng(0)
  q_BTNH, table_OH = rng.normal(size=(2, 5, 3, 4)).astype("f"), rng.normal(size=(9, 4)).astype("f")
  scores = relative_scores(jnp.asarray(q_BTNH), jnp.asarray(table_OH))
  for t in range(5):
    for s in range(5):
      np.testing.assert_allclose(scores[:, :, t, s], q_BTNH[:, t] @ table_OH[s - t + 4] / 2, rtol=1e-5, atol=1e-6)


def test_relative_scores_of_another_length():
  with raises(ValueError, 5, 4):
    relative_scores(jnp.ones((1, 4, 1, 2)), jnp.ones((9, 2)))


def test_rotary_turns_each_pair_by_hand():
  x, positions = draw(2, 3, 2, 4), np.array([[0, 1, 5], [7, 7, 2]])
  turned = apply_rotary(jnp.asarray(x), jnp.asarray(positions), base=100.0)
  for b, t, n, i in np.ndindex(2, 3, 2, 2):
    angle = positions[b, t] * 100.0 ** (-i / 2)
    a, c = x[b, t, n, i], x[b, t, n, i + 2]
    wanted = [a * np.cos(angle) - c * np.sin(angle), c * np.cos(angle) + a * np.sin(angle)]
    np.testing.assert_allclose(turned[b, t, n, [i, i + 2]], wanted, rtol=1e-5, atol=1e-6)


def test_rotary_keeps_norms_and_scores_depend_on_the_relative_position_alone():
  q, k, positions = draw(1, 5, 2, 8), draw(1, 6, 2, 8, seed=1), np.array([[0, 3, 4, 9, 20, 21]])
  turned = apply_rotary(q, positions[:, :5])
  np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(q, axis=-1), rtol=1e-5)

  def scores(shift):
    return jnp.einsum("BTNH,BSNH->BNTS", apply_rotary(q, positions[:, :5] + shift), apply_rotary(k, positions + shift))

  np.testing.assert_allclose(scores(0), scores(1000), atol=2e-3)
  # By the relative position, and not merely by the contents: other positions give other scores.
  assert np.abs(scores(0) - jnp.einsum("BTNH,BSNH->BNTS", q, k)).max() > 0.1


def test_rotary_packed_and_cached_is_rotary_of_each_sequence():
  q, k, v = draw(1, 7, 2, 4), draw(1, 7, 2, 4, seed=1), draw(1, 7, 2, 4, seed=2)

  @jax.jit
  def run(q, k, v, query, key, mask):
    return dot_product_attention(apply_rotary(q, query), apply_rotary(k, key), v, mask=mask)[0]

  alone = []
  for start, stop in ((0, 3), (3, 7)):
    one, length = slice(start, stop), stop - start
    positions = np.arange(length)[None]
    alone.append(run(q[:, one], k[:, one], v[:, one], positions, positions, attention_masks.causal(length, length)))
  positions, segments = np.array([[0, 1, 2, 0, 1, 2, 3]]), jnp.array([[0, 0, 0, 1, 1, 1, 1]])
  mask = attention_masks.causal(7, 7) & attention_masks.same_segment(segments, segments)
  packed = run(q, k, v, positions, positions, mask)
  np.testing.assert_allclose(packed, np.concatenate(alone, 1), rtol=1e-4, atol=1e-6)
  # The last query by itself, against keys that were turned when they came.
  last = run(q[:, -1:], k[:, 3:], v[:, 3:], np.array([[3]]), np.arange(4)[None], attention_masks.causal(1, 4, offset=3))
  np.testing.assert_allclose(last, alone[1][:, -1:], rtol=1e-4, atol=1e-6)


def test_rotary_keeps_the_type_but_computes_in_float32():
  x, positions = draw(1, 2, 1, 4).astype(jnp.bfloat16), np.array([[1000, 1001]])
  turned = apply_rotary(x, positions)
  assert turned.dtype == jnp.bfloat16
  np.testing.assert_array_equal(turned, apply_rotary(x.astype(jnp.float32), positions).astype(jnp.bfloat16))


def test_invalid_inputs_of_rotary():
  with raises(ValueError, "width", 3):
    apply_rotary(jnp.ones((1, 2, 1, 3)), jnp.zeros((1, 2), int))
  with raises(ShapeError, "positions_BT (3, 2)", "x_BTNH (2, 2, 1, 4)"):
    apply_rotary(jnp.ones((2, 2, 1, 4)), jnp.zeros((3, 2), int))


def test_alibi_slopes_by_hand():
  np.testing.assert_allclose(alibi_slopes(8), 2.0 ** -np.arange(1, 9))  # the paper's: 1/2, 1/4, ..., 1/256
  np.testing.assert_allclose(alibi_slopes(4), [2**-2, 2**-4, 2**-6, 2**-8])
  np.testing.assert_allclose(alibi_slopes(6), [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])
  np.testing.assert_allclose(alibi_slopes(1), [2**-8])


def test_alibi_bias_falls_with_the_distance():
  bias = alibi_bias(2, jnp.array([[5, 0]]), jnp.array([[0, 4, 6]]))
  np.testing.assert_allclose(bias, -np.array([[[[5, 1, 1], [0, 4, 6]]]]) * np.array([2**-4, 2**-8])[:, None, None])


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets(bidirectional):
  relative = np.arange(-200, 201)
  bucket = np.asarray(relative_position_bucket(jnp.asarray(relative), 32, 128, bidirectional))
  ahead = 16 if bidirectional else 32
  before = bucket[relative <= 0][::-1]  # by distance
  np.testing.assert_array_equal(before[: ahead // 2], np.arange(ahead // 2))  # a bucket each
  assert (np.diff(before) >= 0).all() and (before[128:] == ahead - 1).all() and before[127] == ahead - 1
  assert set(before) == set(range(ahead))
  # In the logarithmic half the borders are a geometric series from the first to the largest distance.
  borders = np.flatnonzero(np.diff(before)) + 1
  wanted = ahead / 2 * (128 / (ahead / 2)) ** (np.arange(ahead // 2) / (ahead / 2))
  assert (np.abs(borders[ahead // 2 - 1 :] - wanted) < 1).all()
  after = bucket[relative >= 0]
  np.testing.assert_array_equal(after[1:], before[1:] + ahead if bidirectional else np.zeros(200))


def test_too_few_buckets():
  with raises(ValueError, "buckets", 2, 128, 4):
    relative_position_bucket(jnp.arange(3), 2)
  with raises(ValueError, "buckets", 32, 8):
    relative_position_bucket(jnp.arange(3), 32, 8)


def test_relative_bias_is_its_table():
  layer = BucketedRelativePositionBias(num_heads=3, buckets=8, max_distance=20)
  query, key = jnp.array([[0, 4], [30, 2]]), jnp.array([[0, 1, 2], [9, 3, 0]])
  variables = layer.init(jax.random.key(0), query, key)
  bias, table = np.asarray(layer.apply(variables, query, key)), np.asarray(variables["params"]["buckets"])
  assert bias.shape == (2, 3, 2, 3) and table.shape == (8, 3)
  bucket = np.asarray(relative_position_bucket(key[:, None] - query[:, :, None], 8, 20))
  for b, n, t, s in np.ndindex(*bias.shape):
    assert bias[b, n, t, s] == table[bucket[b, t, s], n]


def test_window_relative_position_bias_by_hand():
  table_YXN = draw(5, 5, 2)
  layer = WindowRelativePositionBias(2, 3)
  for window in ((3, 3), (2, 3), (1, 2)):
    bias_NTT = layer.apply({"params": {"table": table_YXN}}, window)
    for (t, query), (s, key) in itertools.product(enumerate(grid_positions(window)), repeat=2):
      row, column = query - key + 2  # a smaller window reads the middle
      np.testing.assert_array_equal(bias_NTT[:, t, s], table_YXN[row, column])
  with raises(ValueError, "4 x 3", "table", 3):
    layer.apply({"params": {"table": table_YXN}}, (4, 3))


def test_continuous_relative_position_bias_by_hand():
  """V2, eq. 4, with the released code's -8 to 8; the same relative position in another window has the same bias."""
  layer = ContinuousRelativePositionBias(2, (4, 3), hidden=5)
  params = {"up": {"kernel": draw(2, 5), "bias": draw(5)}, "down": {"kernel": draw(5, 2)}}
  for window in ((4, 3), (2, 2), (7, 5)):
    bias_NTT = layer.apply({"params": params}, window)
    for (t, query), (s, key) in itertools.product(enumerate(grid_positions(window)), repeat=2):
      far = (query - key) * 8 / np.array([3, 2])
      logarithm = np.sign(far) * np.log(1 + np.abs(far)) / np.log(8)
      hidden = np.maximum(logarithm @ params["up"]["kernel"] + params["up"]["bias"], 0)
      wanted = 16 / (1 + np.exp(-hidden @ params["down"]["kernel"]))
      np.testing.assert_allclose(bias_NTT[:, t, s], wanted, rtol=1e-4, atol=1e-5)
