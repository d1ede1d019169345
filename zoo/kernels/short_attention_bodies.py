"""The bodies of the kernels of `zoo.kernels.short_attention`: what one step of their grid computes.

Scores are transposed, [S, T]: keys along sublanes, queries along lanes. So a softmax reduces over sublanes, by plain
vector operations, and its maximum and sum are rows [1, T] that scale a tile for nothing; and the weights [S, T] enter
the matrix units as the stationary operand of products whose other operand has only the H rows of one head: v^T p for
the output, do^T p^T, q^T ds^T and k^T ds for the gradients. Heads are then rows of transposed blocks, so any width that
is a multiple of 16 is cut without moving lanes.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from zoo.kernels.common import LANES, SUBLANES, dot

# Queries of a tile of scores, and the scores of the tiles whose stages run together.
CHUNK, GROUP = 256, 2**20
# Scores of keys that may not be seen, and the least maximum of a row: exponentials of a row without keys are 0, not 1.
_MASKED, _LEAST = -1e30, -5e29
# Operands of rows of tokens, and those to which the kernels add a bias, in the order of the rows of "qv_bias".
TOKENS, BIASED = ("q", "k", "v", "o", "do", "dq", "dk", "dv"), ("q", "v")


class Shape(NamedTuple):
  """What a kernel is specialised for: all static.

  Attributes:
    batch, queries, keys, num_heads, width: B, T, S, N, H.
    heads: of a block. block: images of a block.
    time_major: whether operands are [T, B, N H] rather than [B, T, N H].
    biased: whether the kernels add biases to queries and values.
    mask: None, "row" for a mask [B|1, N|1, 1, S], "full" for one [B|1, N|1, S, T] (transposed).
    mask_axes, bias_axes: whether mask and bias have axes B and N, or one entry for all.
    dropout_rate: share of dropped weights. interpret: on a CPU.
  """

  batch: int
  queries: int
  keys: int
  num_heads: int
  width: int
  heads: int
  block: int
  time_major: bool
  biased: bool
  mask: str | None
  mask_axes: tuple[bool, bool]
  bias: bool
  bias_axes: tuple[bool, bool]
  dropout_rate: float
  interpret: bool

  @property
  def chunks(self) -> list[tuple[int, int]]:
    """First query and number of queries of each chunk; a few that are left over belong to the last."""
    # A product with one query of bfloat16 does not compile, and fewer than a register has rows take as long as these.
    starts = [*range(0, max(self.queries - SUBLANES + 1, 1), CHUNK), self.queries]
    return [(start, end - start) for start, end in itertools.pairwise(starts)]

  @property
  def grid(self) -> tuple[int, int]:
    """Grid steps along heads and images, in the order of `outer`."""
    heads, images = self.num_heads // self.heads, self.batch // self.block
    return (heads, images) if self.heads_outer else (images, heads)

  @property
  def heads_outer(self) -> bool:
    """Whether heads are the outer axis of the grid, so that blocks of a bias and its gradient stay for all images."""
    return not self.bias_axes[0]

  def staged(self, name: str) -> bool:
    """Whether an operand goes through a scratch of [images, rows, lanes]: with axes swapped, or with its bias."""
    return name in TOKENS and (self.time_major or (self.biased and name in BIASED))

  def place(self, i: Any, j: Any) -> tuple[Any, Any]:
    """The step along heads and along images of a grid step."""
    return (i, j) if self.heads_outer else (j, i)


def _of_head(x: jax.Array, h: int, width: int) -> tuple[jax.Array, slice]:
  """Head h of x [S, lanes] and the lanes to contract: a tile in which other heads are 0, or the head's lanes alone."""
  start = h * width
  if LANES % width == 0 and x.shape[1] % LANES == 0:
    tile = slice(start // LANES * LANES, start // LANES * LANES + LANES)
    if width == LANES:
      return x[:, tile], tile
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1) + tile.start
    own = (lane >= start) & (lane < start + width)
    return jnp.where(own, x[:, tile], jnp.zeros((), x.dtype)), tile
  return x[:, start : start + width], slice(start, start + width)


def _hash_bits(shape: tuple[int, ...], seed: jax.Array) -> jax.Array:
  """Counter-based random bits for the interpreter, which has no generator: rounds of a multiply-xorshift hash."""
  key = jax.lax.broadcasted_iota(jnp.uint32, shape, 0)
  query = jax.lax.broadcasted_iota(jnp.uint32, shape, 1)
  bits = key * jnp.uint32(0x9E3779B1) ^ (query * jnp.uint32(0x85EBCA77) + seed.astype(jnp.uint32))
  for factor in (0x7FEB352D, 0x846CA68B):
    bits = (bits ^ (bits >> 16)) * jnp.uint32(factor)
  return bits ^ (bits >> 16)


def _keep(s: Shape, seed: jax.Array, unit: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Which weights [S, T] of a tile dropout keeps: the same whenever it is called."""
  if s.interpret:
    bits = _hash_bits(shape, seed + unit * 0x3C6EF35)
  else:
    pltpu.prng_seed(seed, unit)
    bits = pltpu.bitcast(pltpu.prng_random_bits(shape), jnp.uint32)
  return bits >= jnp.uint32(round(s.dropout_rate * 2**32))


class _Tile:
  """One head of one image and a chunk of its queries: the stages from its scores to its products.

  A kernel runs each stage for several tiles before the next. The compiler's scheduler keeps the order of independent
  instructions by and large, so that this is what overlaps one tile's products with another's softmax.
  """

  def __init__(self, s: Shape, at: dict[str, Any], unit: tuple[int, int, int]):
    self.s, self.at = s, at
    self.g, self.h, self.chunk = unit
    start, size = s.chunks[self.chunk]
    self.size, self.queries = size, slice(start, start + size)
    self.rows = slice(self.h * s.width, (self.h + 1) * s.width)

  def _block(self, name: str, axes: tuple[bool, bool]) -> tuple[Any, ...]:
    """Where in a block of a mask or bias this tile's scores are."""
    wide = self.at[name].shape[2] == self.s.keys and self.at[name].shape[3] == self.s.queries
    return self.g if axes[0] else 0, self.h if axes[1] else 0, slice(None), self.queries if wide else slice(None)

  def product(self, keys: str, queries: str) -> jax.Array:
    """[S, T] of the head's rows of keys or values with its queries, or the gradients of its outputs."""
    key, lanes = _of_head(self.at[keys][self.g], self.h, self.s.width)
    return dot(key, self.at[queries][self.g, self.queries][:, lanes], 1, 1)

  def softmax(self, scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Raw scores [S, T] to exponentials, and the inverse [1, T] of their sum."""
    s = self.s
    if s.bias:
      scores = scores + self.at["bias"][self._block("bias", s.bias_axes)].astype(jnp.float32)
    if s.mask == "row":
      row = self.at["mask"][self._block("mask", s.mask_axes)]
      masked = jnp.where(row == 0, _MASKED, 0.0)
      scores = scores + jnp.broadcast_to(masked, (8, s.keys)).T[:, :1]
    elif s.mask == "full":
      seen = self.at["mask"][self._block("mask", s.mask_axes)].astype(jnp.int32) != 0
      scores = jnp.where(seen, scores, _MASKED)
    top = scores.max(0, keepdims=True)
    top = top if s.mask is None else jnp.maximum(top, _LEAST)
    weights = jnp.exp2((scores - top) * (s.width**-0.5 * math.log2(math.e)))
    total = weights.sum(0, keepdims=True)
    return weights, 1.0 / (total if s.mask is None else jnp.where(total > 0, total, 1.0))

  def dropped(self, weights: jax.Array) -> jax.Array:
    """Weights, or their gradients, after dropout but for its factor 1 / (1 - rate)."""
    s = self.s
    if not s.dropout_rate:
      return weights
    heads, images = s.place(self.at["i"], self.at["j"])
    unit = ((images * s.block + self.g) * s.num_heads + heads * s.heads + self.h) * len(s.chunks) + self.chunk
    return jnp.where(_keep(s, self.at["seed"][0], unit, weights.shape), weights, 0.0)


def _groups(s: Shape, at: dict[str, Any]) -> list[list[_Tile]]:
  """The tiles of a block, in groups whose stages run together."""
  units = [(g, h, chunk) for g in range(s.block) for h in range(s.heads) for chunk in range(len(s.chunks))]
  tiles, size = [_Tile(s, at, unit) for unit in units], max(1, GROUP // (s.keys * s.chunks[0][1]))
  return [tiles[i : i + size] for i in range(0, len(tiles), size)]


def _transposed(s: Shape, at: dict[str, Any], name: str) -> list[jax.Array]:
  """A block's images of an operand as [lanes, rows]."""
  return [at[name][g].T for g in range(s.block)]


def run(s: Shape, names: tuple[str, ...], compute: Callable, outputs: tuple[str, ...], *refs: Any) -> None:
  """Runs `compute` on a block, with its operands by their names."""
  blocks = dict(zip(names, refs[: len(names)], strict=True))
  staged = dict(zip([name for name in names if s.staged(name)], refs[len(names) :], strict=True))
  at = blocks | staged | dict(i=pl.program_id(0), j=pl.program_id(1))
  if "dbias" in at:
    _clear_bias(s, at["dbias"], s.place(at["i"], at["j"]))
  if "dqv_bias" in at:
    at["dqv_bias"][...] = jnp.zeros_like(at["dqv_bias"])
  for name in staged.keys() - set(outputs):
    rows = blocks[name][...]
    if s.biased and name in BIASED:
      row = BIASED.index(name)
      rows = (rows.astype(jnp.float32) + at["qv_bias"][row : row + 1]).astype(rows.dtype)
    staged[name][...] = jnp.swapaxes(rows, 0, 1) if s.time_major else rows
  compute(s, at)
  if s.time_major:
    for name in staged.keys() & set(outputs):
      blocks[name][...] = jnp.swapaxes(staged[name][...], 0, 1)


def forward(s: Shape, at: dict[str, Any]) -> None:
  """Outputs of the images of a block."""
  valueT, done = _transposed(s, at, "v"), {}
  for group in _groups(s, at):
    scores = [tile.product("k", "q") for tile in group]
    soft = [tile.softmax(x) for tile, x in zip(group, scores, strict=True)]
    for tile, (weights, inverse) in zip(group, soft, strict=True):
      weights = tile.dropped(weights).astype(at["o"].dtype)
      out = dot(valueT[tile.g][tile.rows], weights, 1, 0) * (inverse / (1 - s.dropout_rate))
      done[tile.g, tile.chunk, tile.h] = out
  _store(s, at, "o", done)


def backward(s: Shape, at: dict[str, Any]) -> None:
  """Gradients of queries, keys and values of the images of a block; adds theirs to the gradient of the bias."""
  qT, kT, doT = (_transposed(s, at, name) for name in ("q", "k", "do"))
  scale, kind = s.width**-0.5, at["q"].dtype
  dq, dk, dv = {}, {}, {}
  for group in _groups(s, at):
    scores = [tile.product("k", "q") for tile in group]
    soft = [tile.softmax(x) for tile, x in zip(group, scores, strict=True)]
    grads = [tile.product("v", "do") for tile in group]
    pairs = []
    for tile, (weights, inverse), dp in zip(group, soft, grads, strict=True):
      p, dp = weights * inverse, tile.dropped(dp) * (1 / (1 - s.dropout_rate)) if s.dropout_rate else dp
      ds = p * (dp - (p * dp).sum(0, keepdims=True))
      if s.bias:
        at["dbias"][tile._block("dbias", s.bias_axes)] += ds
      pairs.append((tile.dropped(p).astype(kind), ds.astype(kind)))
    for tile, (p, ds) in zip(group, pairs, strict=True):
      g, rows, keys = tile.g, tile.rows, (tile.g, 0, tile.h)
      dv[keys] = dv.get(keys, 0.0) + dot(doT[g][rows, tile.queries], p, 1, 1) * (1 / (1 - s.dropout_rate))
      dk[keys] = dk.get(keys, 0.0) + dot(qT[g][rows, tile.queries], ds, 1, 1) * scale
      dq[g, tile.chunk, tile.h] = dot(kT[g][rows], ds, 1, 0) * scale
  for name, parts in dict(dq=dq, dk=dk, dv=dv).items():
    _store(s, at, name, parts)


def _store(s: Shape, at: dict[str, Any], name: str, parts: dict[tuple[int, int, int], jax.Array]) -> None:
  """Writes transposed parts [H, rows], by image, chunk and head, to a block [G, rows, lanes]; sums them for a bias."""
  ref, biased = at[name], [f"d{other}" for other in BIASED] if s.biased else []
  for g, chunk in sorted({key[:2] for key in parts}):
    part = jnp.concatenate([parts[g, chunk, h] for h in range(s.heads)], 0).T
    start = s.chunks[chunk][0]
    ref[g, start : start + part.shape[0]] = part.astype(ref.dtype)
    if name in biased:
      row = biased.index(name)
      at["dqv_bias"][0, row : row + 1] += part.sum(0, keepdims=True)


def _clear_bias(s: Shape, ref: Any, step: tuple[Any, Any]) -> None:
  """Sets the gradient of the bias to 0 at the first of the grid steps that add to it."""
  first = [place == 0 for place, axis in zip(step, s.bias_axes[::-1], strict=True) if not axis]

  def clear():
    ref[...] = jnp.zeros_like(ref)

  pl.when(functools.reduce(jnp.logical_and, first))(clear) if first else clear()
