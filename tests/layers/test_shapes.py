"""`expect` checks shapes by the letters of names."""

import jax
import jax.numpy as jnp
import numpy as np
from support import raises

from zoo.shapes import ShapeError, expect


def test_sizes_by_letter():
  assert expect(q_BTNH=np.zeros((2, 3, 4, 5)), table_OH=np.zeros((9, 5)), bias_=np.zeros(())) == dict(
    B=2, T=3, N=4, H=5, O=9
  )


def test_none_is_passed_over():
  assert expect(x_BTD=np.zeros((2, 3, 4)), y_BSD=None) == dict(B=2, T=3, D=4)


def test_every_fault_in_one_error():
  of_each = ("B is 1", "k_BSKH", "H is 6", "mask_BP has rank 1", 2, "array[None]")
  with raises(ShapeError, *of_each, "q_BTNH (2, 3, 4, 5)", "k_BSKH (1, 3, 4, 6)", "mask_BP (7,)"):
    expect(q_BTNH=np.zeros((2, 3, 4, 5)), k_BSKH=np.zeros((1, 3, 4, 6)), mask_BP=np.zeros(7))


def test_the_hint_of_a_missing_batch_axis_is_for_one_missing_axis_only():
  for array in (np.zeros(3), np.zeros((1, 2, 3, 4, 5))):
    with raises(ShapeError, f"image_BYXC has rank {array.ndim}", 4, array.shape):
      expect(image_BYXC=array)
  with raises(ShapeError, "x_TD has rank 1", 2, (3,)):
    expect(x_TD=np.zeros(3))


def test_a_shape_error_is_a_value_error_and_is_raised_while_tracing():
  with raises(ValueError, "X is 3", "x_XX", 2):
    jax.eval_shape(lambda x: expect(x_XX=x), jax.ShapeDtypeStruct((2, 3), jnp.float32))
