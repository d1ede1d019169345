"""Windows are full attention with a mask, at any size and shift; their cost."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import draw, grid_positions

import zoo
from train.plan.macs import count_macs
from zoo.layers.multi_head_attention import Attention
from zoo.layers.position_embeddings import WindowRelativePositionBias
from zoo.layers.windows import WindowLayout, msa_macs, shift_ratio, wmsa_macs


def same_window(size, window, shift):
  """Which tokens of a map share a window, [Y X, Y X], by the definition alone: no rolling, no padding."""
  of = (grid_positions(size) - np.array(shift)) // np.array(window)
  return (of[:, None] == of).all(-1)


SIZES = {
  "whole": ((6, 9), (3, 3)),
  "uneven": ((7, 5), (3, 3)),
  "even window": ((5, 9), (4, 4)),
  "smaller than a window": ((2, 3), (4, 4)),
  "oblong window": ((5, 8), (2, 3)),
}

HEADS, WIDTH = 2, 6


@functools.cache
def attention():
  """Of full maps and of windows, with a random bias for every relative position."""
  layer = Attention(HEADS)
  shapes = jax.eval_shape(layer.init, jax.random.key(0), draw(1, 1, WIDTH))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda s: rng.normal(0, 0.5, s.shape).astype(np.float32), shapes)
  table = WindowRelativePositionBias(HEADS, 9)
  variables = {"params": {"table": draw(17, 17, HEADS)}}
  return layer, params, lambda window: table.apply(variables, window)[None]


def in_windows(windows, x_BYXD):
  layer, params, bias = attention()
  y, *_ = layer.apply(
    params, windows.window_partition(x_BYXD), mask=windows.mask(len(x_BYXD)), bias=bias(windows.window_size)
  )
  return windows.window_reverse(y)


def in_full(x_BYXD, mask):
  """Every token of the map with every other, where the mask allows it: quadratic, and without windows."""
  layer, params, bias = attention()
  B, Y, X, D = x_BYXD.shape
  y, *_ = layer.apply(params, x_BYXD.reshape(B, -1, D), mask=mask[None, None], bias=bias((Y, X)))
  return y.reshape(B, Y, X, D)


@pytest.mark.parametrize("method", ["roll", "pad"])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("case", SIZES)
def test_windows_are_full_attention_with_a_mask(case, shifted, method):
  size, window = SIZES[case]
  shift = tuple(side // 2 for side in window) if shifted else (0, 0)
  x_BYXD = draw(2, *size, WIDTH)
  windows = WindowLayout(size, window, shift, method)
  wanted = jax.jit(in_full)(x_BYXD, same_window(size, window, shift))
  found = jax.jit(functools.partial(in_windows, windows))(x_BYXD)
  np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shifted", [False, True])
def test_unmasked_padding_is_a_border_of_zeros(shifted):
  size, window = SIZES["uneven"]
  shift = (1, 1) if shifted else (0, 0)
  x_BYXD = draw(2, *size, WIDTH)
  whole = np.zeros((2, 9, 6, WIDTH), np.float32)
  whole[:, :7, :5] = x_BYXD
  wanted = jax.jit(in_full)(whole, same_window((9, 6), window, shift))[:, :7, :5]
  for method in ("roll", "pad"):
    found = in_windows(WindowLayout(size, window, shift, method, mask_padding=False), x_BYXD)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
  masked = in_windows(WindowLayout(size, window, shift), x_BYXD)
  assert np.abs(masked - wanted).max() > 0.01


def test_no_gradient_crosses_a_window_border():
  size, window, shift = (7, 5), (3, 3), (1, 1)

  def run(x_PD):
    return in_windows(WindowLayout(size, window, shift), x_PD.reshape(1, *size, WIDTH)).reshape(-1, WIDTH).sum(-1)

  jacobian = jax.jit(jax.jacobian(run))(draw(35, WIDTH))  # [P, P, D]
  np.testing.assert_array_equal(np.abs(jacobian).max(-1) > 0, same_window(size, window, shift))


def test_masks_are_small_constants_and_none_where_windows_fit():
  assert WindowLayout((6, 9), (3, 3)).mask(2) is None
  for windows in (WindowLayout((6, 9), (3, 3), (1, 1)), WindowLayout((5, 9), (3, 3))):
    mask = windows.mask(2)
    assert mask.shape == (2 * windows.count, 1, 9, 9) and mask.dtype == bool and not mask.all()
    # Two numbers a token, and none a pair of tokens: the mask is made where it is used.
    constants = jax.make_jaxpr(lambda w=windows: w.mask(2))().consts
    assert sum(map(np.size, constants)) == 2 * windows.count * 9


@pytest.mark.parametrize("method", ["roll", "pad"])
def test_window_reverse_is_the_inverse_of_window_partition(method):
  x = draw(2, 7, 5, 3)
  windows = WindowLayout((7, 5), (3, 4), (1, 2), method)
  x_WTD = windows.window_partition(x)
  assert x_WTD.shape == (2 * windows.count, 12, 3)
  np.testing.assert_array_equal(windows.window_reverse(x_WTD), x)


@pytest.mark.parametrize("windows", [1, 2, 5])
def test_cost_of_padding_instead_of_rolling(windows):
  """Figure 4, and 3.2: from (h / M) (w / M) to (h / M + 1) (w / M + 1)."""
  assert shift_ratio((7 * windows, 7 * windows), 7) == (windows + 1) ** 2 / windows**2
  # That of 8 rows fills up to 14.
  assert shift_ratio((8, 14), 7) == 9 / 4
  model = functools.partial(zoo.create, "swin/test", depths=(2,), num_heads=(2,), image_size=(24, 24))
  rolled, padded = (count_macs(in_model(model(shift=shift)), spec(1, 24, 24, 3)) for shift in ("roll", "pad"))
  one = wmsa_macs(3, 3, 24, 3)
  assert padded - rolled == 5 * one  # one of the two blocks has windows of 3 x 3 tokens, 9 instead of 4


def spec(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def in_model(model):
  """A function of the image, with the parameters as they may be."""
  return lambda image: model.init_with_output({"params": jax.random.key(0)}, image)[0]


def macs_of_attention(side, width, window):
  """Of the traced program; `window=0` for all tokens at once."""
  layer = Attention(1)
  params = jax.eval_shape(layer.init, jax.random.key(0), spec(1, 1, width))
  if not window:
    return count_macs(lambda p, x: layer.apply(p, x)[0], params, spec(1, side * side, width))
  windows = WindowLayout((side, side), (window, window), (window // 2, window // 2))

  def run(p, x_BYXD):
    return windows.window_reverse(layer.apply(p, windows.window_partition(x_BYXD), mask=windows.mask(1))[0])

  return count_macs(run, params, spec(1, side, side, width))


def test_macs_of_attention_are_equations_1_and_2():
  sides = (14, 28, 56, 112)
  msa = [macs_of_attention(side, 8, 0) for side in sides]
  wmsa = [macs_of_attention(side, 8, 7) for side in sides]
  assert msa == [msa_macs(side, side, 8) for side in sides]
  assert wmsa == [wmsa_macs(side, side, 8, 7) for side in sides]
  pixels = np.log(np.square(sides))
  assert np.polyfit(pixels, np.log(wmsa), 1)[0] == pytest.approx(1)
  assert np.polyfit(pixels, np.log(msa), 1)[0] == pytest.approx(2, abs=0.05)
