"""Which sequences a row of tokens holds: segment and position ids, as of packed rows."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class SequenceInfo(NamedTuple):
  """Segments and positions of rows of tokens.

  Attributes:
    segment_ids_BT: int32, the number of the sequence that a token belongs to, from 1 on; 0 for padding. None: one
      sequence, padded with the model's `pad_token_id`.
    position_ids_BT: int32, the position of a token in its sequence; None: in the row.
  """

  segment_ids_BT: jax.Array | None = None
  position_ids_BT: jax.Array | None = None

  def segments(self, input_ids_BT: jax.Array, pad_token_id: int | None) -> jax.Array:
    """Segment ids [B, T] of these tokens; without a `pad_token_id` every token is of segment 1."""
    if self.segment_ids_BT is not None:
      return self.segment_ids_BT
    if pad_token_id is None:
      return jnp.ones_like(input_ids_BT)
    return (input_ids_BT != pad_token_id).astype(jnp.int32)

  def positions(self, input_ids_BT: jax.Array) -> jax.Array:
    """Position ids [B, T] or [1, T] of these tokens."""
    return jnp.arange(input_ids_BT.shape[1])[None] if self.position_ids_BT is None else self.position_ids_BT


SINGLE_SEQUENCE = SequenceInfo()
