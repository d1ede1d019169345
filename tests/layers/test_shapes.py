"""`expect` reads names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.shapes import ShapeError, expect


def test_sizes_by_letter():
  assert expect(q_BTNH=np.zeros((2, 3, 4, 5)), table_OH=np.zeros((9, 5)), bias_=np.zeros(())) == dict(
    B=2, T=3, N=4, H=5, O=9
  )


def test_none_is_passed_over():
  assert expect(x_BTD=np.zeros((2, 3, 4)), y_BSD=None) == dict(B=2, T=3, D=4)


def test_every_fault_in_one_error():
  with pytest.raises(ShapeError) as error:
    expect(q_BTNH=np.zeros((2, 3, 4, 5)), k_BSKH=np.zeros((1, 3, 4, 6)), mask_BP=np.zeros(7))
  message = str(error.value)
  assert "B is 1 in k_BSKH but 2 before it" in message
  assert "H is 6 in k_BSKH but 5 before it" in message
  assert "mask_BP has rank 1, its letters say 2: a batch of one is array[None]" in message
  assert "q_BTNH (2, 3, 4, 5), k_BSKH (1, 3, 4, 6), mask_BP (7,)" in message


def test_only_one_axis_less_is_taken_for_an_example_alone():
  for array in (np.zeros(3), np.zeros((1, 2, 3, 4, 5))):
    with pytest.raises(ShapeError, match=r"rank \d, its letters say 4\. Got"):
      expect(image_BYXC=array)
  with pytest.raises(ShapeError, match=r"rank 1, its letters say 2\. Got"):
    expect(x_TD=np.zeros(3))


def test_a_shape_error_is_a_value_error_and_is_raised_while_tracing():
  with pytest.raises(ValueError, match="X is 3 in x_XX but 2 before it"):
    jax.eval_shape(lambda x: expect(x_XX=x), jax.ShapeDtypeStruct((2, 3), jnp.float32))
