"""Attention by blocks of keys: equal to the plain form, in interpret mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import draw, raises

import zoo
from zoo.kernels.long_attention import _block, kernel_fits, long_attention
from zoo.layers.attention import dot_product_attention


def both(q, k, v, mask=None):
  """Output and gradients of the kernel and of the plain form."""

  def of(attend):
    out, pull = jax.vjp(attend, q, k, v)
    return out, *pull(jnp.cos(out))

  return (
    of(lambda *a: long_attention(*a, mask=mask, interpret=True)),
    of(lambda *a: dot_product_attention(*a, mask=mask)[0]),
  )


# Lengths that fill blocks and that do not; queries and keys of other lengths; heads that share keys.
@pytest.mark.parametrize(
  ("queries", "keys", "heads", "key_heads"), [(256, 256, 2, 2), (130, 300, 2, 1), (1025, 1025, 1, 1)]
)
def test_equal_to_the_plain_form(queries, keys, heads, key_heads):
  q, k, v = draw(2, queries, heads, 32), draw(2, keys, key_heads, 32), draw(2, keys, key_heads, 32)
  for ours, plain in zip(*both(q, k, v), strict=True):
    np.testing.assert_allclose(ours, plain, rtol=2e-4, atol=2e-5)


def test_keys_that_are_masked_count_nothing_and_a_query_that_sees_nothing_gets_0():
  q, k, v = (draw(3, 140, 2, 16) for _ in range(3))
  mask = jnp.arange(140) < jnp.array([140, 77, 0])[:, None]
  ours, plain = both(q, k, v, mask[:, None, None])
  for a, b in zip(ours, plain, strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
  assert not ours[0][2].any() and not any(gradient[2].any() for gradient in ours[1:])


def test_bfloat16():
  q, k, v = (draw(2, 200, 2, 32).astype(jnp.bfloat16) for _ in range(3))
  for ours, plain in zip(*both(q, k, v), strict=True):
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(ours.astype(jnp.float32), plain.astype(jnp.float32), rtol=0.05, atol=0.02)


def test_what_it_cannot_do_is_refused():
  keys, full = jnp.ones((2, 1, 1, 9), bool), jnp.ones((9, 9), bool)
  assert kernel_fits(None, None, False) and kernel_fits(keys, None, False)
  assert not kernel_fits(full, None, False) and not kernel_fits(None, full, False) and not kernel_fits(None, None, True)
  q = draw(2, 9, 2, 8)
  with raises(ValueError, "'splash'", "9 queries", "'xla'"):
    dot_product_attention(q, q, q, mask=full, implementation="splash")
  with raises(ValueError, "attention", "'splash'", "'pallas'"):
    zoo.create("swin/test", attention="splash")


def test_no_length_is_cut_into_small_blocks():
  """Nor padded by much: 1,408 are eleven times 128, and blocks of 128 would take thrice the time of 768."""
  blocks = {length: _block(length) for length in range(1025, 6000)}
  assert min(blocks.values()) >= 256 and all(-length % block < length / 4 for length, block in blocks.items())
