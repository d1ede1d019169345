"""Masks, written out."""

import jax.numpy as jnp
import numpy as np
from support import raises

from zoo.layers import attention_masks


def rows(mask):
  """`[1, 1, T, S]` as rows of x (may attend) and dots."""
  assert mask.dtype == bool and mask.ndim == 4
  return ["".join(".x"[int(allowed)] for allowed in row) for row in np.asarray(mask)[0, 0]]


def test_causal():
  assert rows(attention_masks.causal(3, 3)) == ["x..", "xx.", "xxx"]
  assert rows(attention_masks.causal(2, 5, offset=2)) == ["xxx..", "xxxx."]
  assert rows(attention_masks.causal(1, 4, offset=jnp.int32(1))) == ["xx.."]


def test_window():
  assert rows(attention_masks.window(4, 4, 2)) == ["xx..", "xxx.", ".xxx", "..xx"]
  assert rows(attention_masks.window(2, 4, 1, offset=1)) == [".x..", "..x."]


def test_valid_length():
  mask = attention_masks.valid_length(jnp.array([2, 0]), 3)
  assert mask.shape == (2, 1, 1, 3)
  assert rows(mask) == ["xx."] and rows(mask[1:]) == ["..."]
  assert rows(attention_masks.valid_length(jnp.array([[1, 3]]), 3)) == ["x..", "xxx"]
  with raises(ValueError, "()", "[B]", "[B, T]"):
    attention_masks.valid_length(jnp.int32(1), 3)


def test_same_segment():
  mask = attention_masks.same_segment(jnp.array([[1, 1, 2]]), jnp.array([[1, 2, 2, 0]]))
  assert rows(mask) == ["x...", "x...", ".xx."]


def test_masks_combine():
  assert rows(attention_masks.causal(3, 3) & attention_masks.window(3, 3, 2)) == ["x..", "xx.", ".xx"]
