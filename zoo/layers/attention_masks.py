"""Attention masks: bool, broadcastable to [B, N, T, S], True = may attend; join them with `&`."""

import jax
import jax.numpy as jnp

from zoo.shapes import expect


def causal(queries: int, keys: int, offset: int | jax.Array = 0) -> jax.Array:
  """A query sees the keys up to its own position (Vaswani et al. 2017, 3.2.3).

  Args:
    queries: T.
    keys: S.
    offset: the position of the first query among the keys; not 0 when decoding with a cache.

  Returns:
    [1, 1, T, S]
  """
  return (jnp.arange(keys) <= jnp.arange(queries)[:, None] + offset)[None, None]


def window(queries: int, keys: int, size: int, offset: int | jax.Array = 0) -> jax.Array:
  """A query sees the keys less than `size` positions away on either side.

  Returns:
    [1, 1, T, S]
  """
  distance = jnp.arange(queries)[:, None] + offset - jnp.arange(keys)
  return (jnp.abs(distance) < size)[None, None]


def valid_length(lengths: jax.Array, keys: int) -> jax.Array:
  """Only the first `lengths` keys are real, the rest is padding.

  Args:
    lengths: [B], one a sequence, or [B, T], one a query.
    keys: S.

  Returns:
    [B, 1, 1, S] or [B, 1, T, S]

  Raises:
    ValueError: `lengths` has another rank.
  """
  if lengths.ndim not in (1, 2):
    raise ValueError(f"lengths has shape {lengths.shape}; wanted [B] or [B, T]")
  lengths_BT = lengths if lengths.ndim == 2 else lengths[:, None]
  return (jnp.arange(keys) < lengths_BT[..., None])[:, None]


def same_segment(query_BT: jax.Array, key_BS: jax.Array) -> jax.Array:
  """Several sequences share a row: a query sees the keys with its own segment number.

  Returns:
    [B, 1, T, S]
  """
  expect(query_BT=query_BT, key_BS=key_BS)
  return (query_BT[:, :, None] == key_BS[:, None, :])[:, None]
