"""Recurrent networks: cells, scanned over rows that may hold several sequences, and a (bidirectional) encoder."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from zoo.layers import initializers
from zoo.layers.dropout import Dropout
from zoo.partitioning import replicate, shard_batch

CELLS = {"gru": nn.GRUCell, "lstm": nn.OptimizedLSTMCell}  # Cho et al. 2014, eq. 5 to 8; Hochreiter & Schmidhuber 1997


def make_cell(cell: str, width: int, dtype: DTypeLike, name: str) -> nn.RNNCellBase:
  """The recurrent cell `(state, x) -> (state, output)`: a state is h [B, D] of a GRU, (c, h) of an LSTM."""
  return CELLS[cell](width, kernel_init=initializers.dense, dtype=dtype, name=name)


def scan_positions(
  step: Callable,
  module: nn.Module,
  initial: Any,
  inputs: Any,
  segment_ids_BT: jax.Array,
  shared: Any = None,
  *,
  reverse: bool = False,
) -> tuple:
  """Scans a recurrent module over the positions of rows, which may hold several sequences, and padding anywhere.

  Args:
    step: `(module, state, inputs, shared) -> (state, output)`, of one position.
    module: holds the parameters.
    initial: for each position the state [B, T, ...] that a sequence starts from; used where one starts.
    inputs: trees of arrays [B, T, ...].
    segment_ids_BT: number of the sequence of a position; 0 for padding, which does not change the state.
    shared: a tree of arrays that every position gets unchanged.
    reverse: from the last position to the first.

  Returns:
    the states after each position and the outputs, trees of arrays [B, T, ...]
  """

  def choose(this_B, one, other):
    return jax.tree.map(lambda a, b: jnp.where(this_B.reshape(-1, *[1] * (a.ndim - 1)), a, b), one, other)

  def position(module, carry, given, shared):
    (state, last_segment_B), (inputs, initial, segment_B) = carry, given
    token_B = segment_B > 0
    state = choose((segment_B == last_segment_B) | ~token_B, state, initial)
    new, output = step(module, state, inputs, shared)
    state, last_segment_B = choose(token_B, (new, segment_B), (state, last_segment_B))
    return (state, last_segment_B), (state, output)

  scan = nn.scan(
    position,
    variable_broadcast="params",
    split_rngs={"params": False, "dropout": True},
    in_axes=(1, nn.broadcast),  # pyright: ignore[reportArgumentType] (Linen declares int)
    out_axes=1,
    reverse=reverse,
  )
  if not module.is_initializing():
    scan = nn.map_variables(scan, "params", replicate)
  before = jax.tree.map(lambda a: jnp.zeros_like(a[:, 0]), (initial, segment_ids_BT))
  _, (states, outputs) = scan(module, before, (inputs, initial, segment_ids_BT), shared)
  return states, outputs


class RecurrentEncoder(nn.Module):
  """Embedded tokens [B, S, E] to tokens [B, S, M], M = D, or 2 D if bidirectional.

  Attributes:
    cell: one of `CELLS`. width: D. depth: L.
    bidirectional: each layer also reads the row backwards.
    dropout_rate: of each layer's output. dtype: compute type.
  """

  cell: str
  width: int
  depth: int
  bidirectional: bool = False
  dropout_rate: float = 0.0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x_BSE: jax.Array, segment_ids_BS: jax.Array) -> tuple[jax.Array, list, dict[str, jax.Array]]:
    """Returns the tokens; for each layer the states [B, S, D] of each direction; and each layer's tokens as aux."""
    all_states, aux = [], {}
    zeros_BSD = jnp.zeros((*segment_ids_BS.shape, self.width))
    initial = (zeros_BSD, zeros_BSD) if self.cell == "lstm" else zeros_BSD
    for i in range(self.depth):
      directions = []
      for direction in ("forward", "backward") if self.bidirectional else ("forward",):
        cell = make_cell(self.cell, self.width, self.dtype, f"{direction}_{i:02d}")
        directions.append(
          scan_positions(_apply_cell, cell, initial, x_BSE, segment_ids_BS, reverse=direction == "backward")
        )
      states, outputs = zip(*directions, strict=True)
      x_BSE = shard_batch(jnp.concatenate(outputs, -1).astype(self.dtype))
      x_BSE = Dropout(self.dropout_rate, name=f"dropout_{i:02d}")(x_BSE)
      all_states.append(states)
      aux[f"block_{i:02d}"] = x_BSE
    return x_BSE, all_states, aux


def _apply_cell(cell, state, x_BD, _):
  return cell(state, x_BD)


class Bridge(nn.Module):
  """The last states of both directions to a decoder's initial state: tanh(W [forward; backward]).

  Bahdanau et al. 2015 (A.2.2) take the backward state alone.
  """

  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, directions: list):
    """`directions`: a tree of arrays [B, ..., D] for each; returns such a tree."""
    x = jnp.concatenate(jax.tree.leaves(directions), -1)
    parts, form = jax.tree.flatten(directions[0])
    dense = nn.Dense(x.shape[-1] // 2, kernel_init=initializers.dense, dtype=self.dtype, name="dense")
    return jax.tree.unflatten(form, jnp.split(jnp.tanh(dense(x)).astype(jnp.float32), len(parts), -1))


# Logical axes of the parameters (`zoo.partitioning`). Kernels are not sharded along the state ("tensor"): each
# position would wait for the other devices' parts of the state of the position before.
def cell_axes(cell: str) -> dict[str, tuple[str, ...]]:
  """Rules of the cells of all layers; `cell` is a regular expression of their path without the number."""
  return {
    f"{cell}_00/i./kernel": ("cell_input", "embed"),
    rf"{cell}_(?!00)\d\d/i./kernel": ("layer_input", "embed"),
    rf"{cell}_\d\d/h./kernel": ("state", "embed"),
    rf"{cell}_\d\d/[ih]./bias": ("embed",),
  }


BRIDGE_AXES = {"dense/kernel": ("last_states", "embed"), "dense/bias": ("embed",)}
