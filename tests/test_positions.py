"""Closed forms of `zoo.positions`."""

import jax.numpy as jnp
import numpy as np
import pytest

from zoo.positions import RESAMPLINGS, relative_scores, resample, sincos_1d, sincos_2d


def test_sincos_1d_by_hand():
  table = sincos_1d(np.array([0, 3]), 4)
  np.testing.assert_allclose(table, [[0, 0, 1, 1], [np.sin(3), np.sin(0.03), np.cos(3), np.cos(0.03)]], atol=1e-7)


def test_sincos_2d_has_the_column_first_and_then_the_row():
  table = sincos_2d((3, 5), 8)
  assert table.shape == (3, 5, 8)
  assert table.dtype == np.float32
  np.testing.assert_array_equal(table[2, 4], np.concatenate([sincos_1d(4, 4), sincos_1d(2, 4)]))


def test_sincos_2d_needs_a_multiple_of_four():
  with pytest.raises(ValueError, match="multiple of 4, got 6"):
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
  with pytest.raises(ValueError, match="unknown resampling 'nearest'; there are bilinear"):
    resample(jnp.ones((2, 2, 1)), (3, 3), "nearest")


def test_relative_scores_are_the_naive_double_loop():
  rng = np.random.default_rng(0)
  q_BTNH, table_OH = rng.normal(size=(2, 5, 3, 4)).astype("f"), rng.normal(size=(9, 4)).astype("f")
  scores = relative_scores(jnp.asarray(q_BTNH), jnp.asarray(table_OH))
  for t in range(5):
    for s in range(5):
      np.testing.assert_allclose(scores[:, :, t, s], q_BTNH[:, t] @ table_OH[s - t + 4] / 2, rtol=1e-5, atol=1e-6)


def test_relative_scores_of_another_length():
  with pytest.raises(ValueError, match="made for 5 tokens and got 4"):
    relative_scores(jnp.ones((1, 4, 1, 2)), jnp.ones((9, 2)))
