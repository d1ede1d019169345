"""Attention over short sequences for TPUs: whole rows of scores in VMEM, forward and backward.

`short_attention` has the meaning of the first result of `zoo.layers.attention.dot_product_attention`, its plain twin.

Scores are transposed, [S, T]: keys along sublanes, queries along lanes. So a softmax reduces over
sublanes, by plain vector operations, and its maximum and sum are rows [1, T] that scale a tile for nothing; and the
weights [S, T] enter the matrix units as the stationary operand of products whose other operand has only the H rows of
one head: v^T p for the output, do^T p^T, q^T ds^T and k^T ds for the gradients. Heads are then rows of transposed
blocks, so any width that is a multiple of 16 is cut without moving lanes.

As in FlashAttention (Dao et al. 2022, "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness")
nothing of size T x S is written to HBM, and the backward pass recomputes the weights; since whole rows fit VMEM there
is no running maximum, and neither the output nor a log-sum-exp is kept: rowsum(p * dp) is formed from its definition.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from zoo import partitioning
from zoo.shapes import expect

LANES = 128
MAX_LENGTH = 1024
# Queries of a tile of scores, and the scores of the tiles whose stages run together.
_CHUNK, _GROUP = 256, 2**20
# Scores of keys that may not be seen, and the least maximum of a row: exponentials of a row without keys are 0, not 1.
_HIDDEN, _LEAST = -1e30, -5e29


class _Shape(NamedTuple):
  """What a kernel is specialised for: all static.

  Attributes:
    batch, queries, keys, num_heads, width: B, T, S, N, H.
    heads: of a block. block: images of a block. images: whose tiles run together; they divide `block`.
    time_major: whether operands are [T, B, N H] rather than [B, T, N H].
    mask: None, "row" for a mask [B|1, N|1, 1, S], "full" for one [B|1, N|1, S, T] (transposed).
    mask_axes, bias_axes: whether mask and bias have axes B and N, or one entry for all.
    drop: share of dropped weights. interpret: on a CPU.
  """

  batch: int
  queries: int
  keys: int
  num_heads: int
  width: int
  heads: int
  block: int
  images: int
  time_major: bool
  mask: str | None
  mask_axes: tuple[bool, bool]
  bias: bool
  bias_axes: tuple[bool, bool]
  drop: float
  interpret: bool

  @property
  def chunks(self) -> list[tuple[int, int]]:
    """First query and number of queries of each chunk."""
    return [(start, min(_CHUNK, self.queries - start)) for start in range(0, self.queries, _CHUNK)]

  @property
  def grid(self) -> tuple[int, int]:
    """Grid steps along heads and images, in the order of `outer`."""
    steps = self.num_heads // self.heads, self.batch // self.block
    return steps if self.heads_outer else steps[::-1]

  @property
  def heads_outer(self) -> bool:
    """Whether heads are the outer axis of the grid, so that blocks of a bias and its gradient stay for all images."""
    return not self.bias_axes[0]

  def place(self, i: Any, j: Any) -> tuple[Any, Any]:
    """The step along heads and along images of a grid step."""
    return (i, j) if self.heads_outer else (j, i)


def _dot(a: jax.Array, b: jax.Array, i: int, j: int) -> jax.Array:
  """Contracts axis i of a with axis j of b, in float32."""
  precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  return jax.lax.dot_general(a, b, (((i,), (j,)), ((), ())), precision, jnp.float32)


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


def _hash_bits(shape: tuple[int, int], seed: jax.Array) -> jax.Array:
  """Counter-based random bits for the interpreter, which has no generator: rounds of a multiply-xorshift hash."""
  key = jax.lax.broadcasted_iota(jnp.uint32, shape, 0)
  query = jax.lax.broadcasted_iota(jnp.uint32, shape, 1)
  bits = key * jnp.uint32(0x9E3779B1) ^ (query * jnp.uint32(0x85EBCA77) + seed.astype(jnp.uint32))
  for factor in (0x7FEB352D, 0x846CA68B):
    bits = (bits ^ (bits >> 16)) * jnp.uint32(factor)
  return bits ^ (bits >> 16)


def _keep(s: _Shape, seed: jax.Array, unit: jax.Array, shape: tuple[int, int]) -> jax.Array:
  """Which weights [S, T] of a tile dropout keeps: the same whenever it is called."""
  if s.interpret:
    bits = _hash_bits(shape, seed + unit * 0x3C6EF35)
  else:
    pltpu.prng_seed(seed, unit)
    bits = pltpu.bitcast(pltpu.prng_random_bits(shape), jnp.uint32)
  return bits >= jnp.uint32(round(s.drop * 2**32))


class _Tile:
  """One head of one image and a chunk of its queries: the stages from its scores to its products.

  A kernel runs each stage for several tiles before the next. The compiler's scheduler keeps the order of independent
  instructions by and large, so that this is what overlaps one tile's products with another's softmax.
  """

  def __init__(self, s: _Shape, at: dict[str, Any], unit: tuple[int, int, int]):
    self.s, self.at = s, at
    self.g, self.h, self.chunk = unit
    self.image = at["first"] + self.g  # of the block
    start, size = s.chunks[self.chunk]
    self.size, self.queries = size, slice(start, start + size)
    self.rows = slice(self.h * s.width, (self.h + 1) * s.width)

  def _block(self, name: str, axes: tuple[bool, bool]) -> tuple[Any, ...]:
    """Where in a block of a mask or bias this tile's scores are."""
    wide = self.at[name].shape[2] == self.s.keys and self.at[name].shape[3] == self.s.queries
    return self.image if axes[0] else 0, self.h if axes[1] else 0, slice(None), self.queries if wide else slice(None)

  def product(self, keys: str, queries: str) -> jax.Array:
    """[S, T] of the head's rows of keys or values with its queries, or the gradients of its outputs."""
    key, lanes = _of_head(self.at[keys][self.image], self.h, self.s.width)
    return _dot(key, self.at[queries][self.image, self.queries][:, lanes], 1, 1)

  def softmax(self, scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Raw scores [S, T] to exponentials, and the inverse [1, T] of their sum."""
    s = self.s
    if s.bias:
      scores = scores + self.at["bias"][self._block("bias", s.bias_axes)].astype(jnp.float32)
    if s.mask == "row":
      row = self.at["mask"][self._block("mask", s.mask_axes)]
      hidden = jnp.where(row == 0, _HIDDEN, 0.0)
      scores = scores + jnp.broadcast_to(hidden, (8, s.keys)).T[:, :1]
    elif s.mask == "full":
      seen = self.at["mask"][self._block("mask", s.mask_axes)].astype(jnp.int32) != 0
      scores = jnp.where(seen, scores, _HIDDEN)
    top = scores.max(0, keepdims=True)
    top = top if s.mask is None else jnp.maximum(top, _LEAST)
    weights = jnp.exp2((scores - top) * (s.width**-0.5 * math.log2(math.e)))
    total = weights.sum(0, keepdims=True)
    return weights, 1.0 / (total if s.mask is None else jnp.where(total > 0, total, 1.0))

  def dropped(self, weights: jax.Array) -> jax.Array:
    """Weights, or their gradients, after dropout but for its factor 1 / (1 - rate)."""
    s = self.s
    if not s.drop:
      return weights
    heads, images = s.place(self.at["i"], self.at["j"])
    unit = ((images * s.block + self.image) * s.num_heads + heads * s.heads + self.h) * len(s.chunks) + self.chunk
    return jnp.where(_keep(s, self.at["seed"][0], unit, weights.shape), weights, 0.0)


def _groups(s: _Shape, at: dict[str, Any]) -> list[list[_Tile]]:
  """The tiles of some images, in groups whose stages run together."""
  units = [(g, h, chunk) for g in range(s.images) for h in range(s.heads) for chunk in range(len(s.chunks))]
  tiles, size = [_Tile(s, at, unit) for unit in units], max(1, _GROUP // (s.keys * s.chunks[0][1]))
  return [tiles[i : i + size] for i in range(0, len(tiles), size)]


def _transposed(s: _Shape, at: dict[str, Any], name: str) -> list[jax.Array]:
  """A block's images of an operand as [lanes, rows]."""
  return [at[name][at["first"] + g].T for g in range(s.images)]


def _kernel(s: _Shape, names: tuple[str, ...], compute: Callable, outputs: tuple[str, ...], *refs: Any) -> None:
  """Runs `compute` on the images of a block, some at a time."""
  at = dict(zip(names, refs[: len(names)], strict=True)) | dict(i=pl.program_id(0), j=pl.program_id(1))
  blocks = {name: at[name] for name in names if name not in ("seed", "mask", "bias", "dbias")}
  if "dbias" in at:
    _clear_bias(s, at["dbias"], s.place(at["i"], at["j"]))
  if s.time_major:
    at.update(zip(blocks, refs[len(names) :], strict=True))
    for name in blocks.keys() - set(outputs):
      at[name][...] = jnp.swapaxes(blocks[name][...], 0, 1)

  def some(i: Any, _: None) -> None:
    compute(s, at | dict(first=i * s.images))

  jax.lax.fori_loop(0, s.block // s.images, some, None) if s.block > s.images else some(0, None)
  if s.time_major:
    for name in outputs:
      blocks[name][...] = jnp.swapaxes(at[name][...], 0, 1)


def _forward(s: _Shape, at: dict[str, Any]) -> None:
  """Outputs of some images of a block."""
  valueT, done = _transposed(s, at, "v"), {}
  for group in _groups(s, at):
    scores = [tile.product("k", "q") for tile in group]
    soft = [tile.softmax(x) for tile, x in zip(group, scores, strict=True)]
    for tile, (weights, inverse) in zip(group, soft, strict=True):
      weights = tile.dropped(weights).astype(at["o"].dtype)
      out = _dot(valueT[tile.g][tile.rows], weights, 1, 0) * (inverse / (1 - s.drop))
      done[tile.g, tile.chunk, tile.h] = out
  _store(s, at, "o", done)


def _backward(s: _Shape, at: dict[str, Any]) -> None:
  """Gradients of queries, keys and values of some images; adds theirs to the gradient of the bias."""
  qT, kT, doT = (_transposed(s, at, name) for name in ("q", "k", "do"))
  scale, kind = s.width**-0.5, at["q"].dtype
  dq, dk, dv = {}, {}, {}
  for group in _groups(s, at):
    scores = [tile.product("k", "q") for tile in group]
    soft = [tile.softmax(x) for tile, x in zip(group, scores, strict=True)]
    grads = [tile.product("v", "do") for tile in group]
    pairs = []
    for tile, (weights, inverse), dp in zip(group, soft, grads, strict=True):
      p, dp = weights * inverse, tile.dropped(dp) * (1 / (1 - s.drop)) if s.drop else dp
      ds = p * (dp - (p * dp).sum(0, keepdims=True))
      if s.bias:
        at["dbias"][tile._block("dbias", s.bias_axes)] += ds
      pairs.append((tile.dropped(p).astype(kind), ds.astype(kind)))
    for tile, (p, ds) in zip(group, pairs, strict=True):
      g, rows, keys = tile.g, tile.rows, (tile.g, 0, tile.h)
      dv[keys] = dv.get(keys, 0.0) + _dot(doT[g][rows, tile.queries], p, 1, 1) * (1 / (1 - s.drop))
      dk[keys] = dk.get(keys, 0.0) + _dot(qT[g][rows, tile.queries], ds, 1, 1) * scale
      dq[g, tile.chunk, tile.h] = _dot(kT[g][rows], ds, 1, 0) * scale
  for name, parts in dict(dq=dq, dk=dk, dv=dv).items():
    _store(s, at, name, parts)


def _store(s: _Shape, at: dict[str, Any], name: str, parts: dict[tuple[int, int, int], jax.Array]) -> None:
  """Writes transposed parts [H, rows], by image, chunk and head, to a block [G, rows, lanes]."""
  ref = at[name]
  for g, chunk in sorted({key[:2] for key in parts}):
    part = jnp.concatenate([parts[g, chunk, h] for h in range(s.heads)], 0).T.astype(ref.dtype)
    start = s.chunks[chunk][0]
    ref[at["first"] + g, start : start + part.shape[0]] = part


def _clear_bias(s: _Shape, ref: Any, step: tuple[Any, Any]) -> None:
  """Sets the gradient of the bias to 0 at the first of the grid steps that add to it."""
  first = [place == 0 for place, axis in zip(step, s.bias_axes[::-1], strict=True) if not axis]

  def clear():
    ref[...] = jnp.zeros_like(ref)

  pl.when(functools.reduce(jnp.logical_and, first))(clear) if first else clear()


def _specs(s: _Shape) -> dict[str, pl.BlockSpec]:
  """The block of each operand."""

  def tokens(length: int) -> pl.BlockSpec:
    def index(i, j):
      heads, images = s.place(i, j)
      return (0, images, heads) if s.time_major else (images, 0, heads)

    shape = (length, s.block) if s.time_major else (s.block, length)
    return pl.BlockSpec((*shape, s.heads * s.width), index)

  def scores(axes: tuple[bool, bool], shape: tuple[int, int]) -> pl.BlockSpec:
    def index(i, j):
      heads, images = s.place(i, j)
      return images if axes[0] else 0, heads if axes[1] else 0, 0, 0

    return pl.BlockSpec((s.block if axes[0] else 1, s.heads if axes[1] else 1, *shape), index)

  queries, keys = tokens(s.queries), tokens(s.keys)
  bias = scores(s.bias_axes, (s.keys, s.queries))
  return dict(
    seed=pl.BlockSpec(memory_space=pltpu.SMEM),
    mask=scores(s.mask_axes, (1, s.keys) if s.mask == "row" else (s.keys, s.queries)),
    bias=bias,
    dbias=bias,
    **dict.fromkeys(("q", "o", "do", "dq"), queries),
    **dict.fromkeys(("k", "v", "dk", "dv"), keys),
  )


def _call(compute: Callable, s: _Shape, name: str, inputs: dict, outputs: dict, products: int) -> tuple[jax.Array, ...]:
  """Runs a kernel on operands by their names; those that are None are left out."""
  inputs = {key: value for key, value in inputs.items() if value is not None}
  specs, rows = _specs(s), s.batch * s.num_heads * s.queries * s.keys
  arrays = {**inputs, **outputs}
  moved = sum(math.prod(a.shape) * a.dtype.itemsize for a in arrays.values())
  tokens = {key: a for key, a in arrays.items() if key not in ("seed", "mask", "bias", "dbias")}
  scratch = [pltpu.VMEM((s.block, a.shape[0], s.heads * s.width), a.dtype) for a in tokens.values() if s.time_major]
  return pl.pallas_call(
    functools.partial(_kernel, s, tuple(arrays), compute, tuple(key for key in outputs if key != "dbias")),
    out_shape=tuple(outputs.values()),
    grid=s.grid,
    in_specs=[specs[key] for key in inputs],
    out_specs=tuple(specs[key] for key in outputs),
    scratch_shapes=scratch,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("arbitrary", "arbitrary"), vmem_limit_bytes=_vmem(s, arrays, specs)
    ),
    cost_estimate=pl.CostEstimate(flops=2 * products * rows * s.width, transcendentals=rows, bytes_accessed=moved),
    interpret=s.interpret,
    name=name,
  )(*inputs.values())


def _vmem(s: _Shape, arrays: dict[str, Any], specs: dict[str, pl.BlockSpec]) -> int:
  """Bytes of VMEM to allow: blocks twice, their copies if time-major, and what the tiles of a group need."""
  blocks = sum(
    math.prod(specs[key].block_shape) * a.dtype.itemsize * (3 if s.time_major else 2)
    for key, a in arrays.items()
    if key != "seed"
  )
  return max(16 * 2**20, int(1.25 * blocks) + 8 * 2**20 + 4 * 4 * _GROUP)


def _scaled(s: _Shape, bias: jax.Array | None) -> jax.Array | None:
  """The bias that is added to scores before they are scaled."""
  return None if bias is None else bias * s.width**0.5


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(s: _Shape, q, k, v, mask, bias, seed):
  """Attention of [B, T, N H] with transposed mask and bias [B|1, N|1, S, T]."""
  inputs = dict(seed=seed, q=q, k=k, v=v, mask=mask, bias=_scaled(s, bias))
  (out,) = _call(_forward, s, "short_attention", inputs, dict(o=jax.ShapeDtypeStruct(q.shape, v.dtype)), 2)
  return out


def _attention_forward(s: _Shape, q, k, v, mask, bias, seed):
  return _attention(s, q, k, v, mask, bias, seed), (q, k, v, mask, bias, seed)


def _attention_backward(s: _Shape, kept, do):
  q, k, v, mask, bias, seed = kept
  inputs = dict(seed=seed, q=q, k=k, v=v, do=do, mask=mask, bias=_scaled(s, bias))
  outputs = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in (("dq", q), ("dk", k), ("dv", v))}
  if bias is not None:
    outputs["dbias"] = jax.ShapeDtypeStruct(bias.shape, jnp.float32)
  dq, dk, dv, *dbias = _call(_backward, s, "short_attention_backward", inputs, outputs, 5)
  return dq, dk, dv, None, dbias[0].astype(bias.dtype) if dbias else None, None


_attention.defvjp(_attention_forward, _attention_backward)


def _heads_of_block(num_heads: int, width: int) -> int:
  """The fewest heads whose lanes are whole tiles; all of them where there are not as many."""
  heads = LANES // math.gcd(LANES, width)
  return heads if num_heads % heads == 0 else num_heads


def _images_of_step(batch: int, heads: int, queries: int, keys: int) -> int:
  """Images of a grid step: enough independent work for the scheduler, in blocks that fit VMEM."""
  most = min(16, max(1, _GROUP // (heads * queries * keys)))
  return max(n for n in range(1, most + 1) if batch % n == 0)


def time_major(batch: int, queries: int, keys: int) -> bool:
  """Whether the kernels read [T, B, N H] rather than [B, T, N H].

  XLA keeps [B, T, D] in that order where T is no multiple of 8, the rows of a tile, and a row-major operand would be a
  copy. The kernels read 8 examples at a time and swap the axes in VMEM.
  """
  return bool(queries % 8 or keys % 8) and batch % 8 == 0


def kernel_fits(queries: int, keys: int, width: int) -> bool:
  """Whether there is a kernel for these lengths and this width of a head."""
  return min(queries, keys) > 1 and max(queries, keys) <= MAX_LENGTH and width % 16 == 0


def _four_axes(x: jax.Array) -> jax.Array:
  return x.reshape((1,) * (4 - x.ndim) + x.shape)


def short_attention(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  *,
  mask: jax.Array | None = None,
  bias: jax.Array | None = None,
  dropout_rate: float = 0.0,
  dropout_key: jax.Array | None = None,
  interpret: bool = False,
) -> jax.Array:
  """Multi-head scaled dot-product attention whose scores stay in VMEM (Vaswani et al. 2017, eq. 1).

  Args:
    q_BTNH, k_BSKH, v_BSKH: queries, keys, values, of one type; K divides N, and smaller K are repeated.
    mask: bool, [B|1, N|1, T|1, S], True = may attend; leading axes may be absent.
    bias: added to the scores, broadcastable to [B, N, T, S]; it has a gradient, in its own shape.
    dropout_rate: share of the weights set to 0; needs `dropout_key`.
    dropout_key: None for evaluation.
    interpret: run on a CPU, for tests.

  Returns:
    [B, T, N, H] in the type of v. A query that may see nothing gets 0.

  Raises:
    ValueError: lengths over 1,024, or a head width that is no multiple of 16.
  """
  z = expect(q_BTNH=q_BTNH, k_BSKH=k_BSKH, v_BSKH=v_BSKH)
  T, S, N, H = (z[letter] for letter in "TSNH")
  if max(T, S) > MAX_LENGTH or H % 16:
    raise ValueError(
      f"{T} queries, {S} keys, heads of width {H}: wanted at most {MAX_LENGTH} of either and a multiple of 16; "
      "use implementation='xla'"
    )
  if N % z["K"]:
    raise ValueError(f"{N} query heads cannot share {z['K']} key heads evenly")
  k, v = (jnp.repeat(a, N // z["K"], 2) if z["K"] < N else a for a in (k_BSKH, v_BSKH))
  kind, mask_axes, bias_axes = None, (False, False), (False, False)
  if mask is not None:
    mask = _four_axes(mask)
    mask = jnp.broadcast_to(mask, (*mask.shape[:3], S))
    kind, mask_axes = "row" if mask.shape[2] == 1 else "full", (mask.shape[0] > 1, mask.shape[1] > 1)
    mask = mask.astype(jnp.int32) if kind == "row" else mask.astype(jnp.int8).swapaxes(2, 3)
  if bias is not None:
    bias = _four_axes(bias)
    bias = jnp.broadcast_to(bias, (*bias.shape[:2], T, S)).swapaxes(2, 3)
    bias_axes = bias.shape[0] > 1, bias.shape[1] > 1
  drop = 0.0 if dropout_key is None else dropout_rate
  seed = jax.random.bits(dropout_key, (1,), jnp.uint32).astype(jnp.int32) if drop else None
  axes = [("batch", None, "heads", None)] * 3
  axes += [("batch" if own[0] else None, "heads" if own[1] else None, None, None) for own in (mask_axes, bias_axes)]
  run = functools.partial(_run, kind, mask_axes, bias_axes, drop, interpret)
  operands = [(a, own) for a, own in zip((q_BTNH, k, v, mask, bias, seed), (*axes, (None,)), strict=True)]
  given = [(a, own) for a, own in operands if a is not None]

  def part(index, *arrays):
    arrays = iter(arrays)
    return run(index, *(None if a is None else next(arrays) for a, _ in operands))

  return partitioning.split(part, [own for _, own in given], axes[0], *(a for a, _ in given))


def _run(kind, mask_axes, bias_axes, drop, interpret, part, q_BTNH, k_BSNH, v_BSNH, mask, bias, seed):
  """The kernels on one device, with mask and bias as they read them."""
  (B, T, N, H), S = q_BTNH.shape, k_BSNH.shape[1]
  if seed is not None:
    seed = seed + part * 0x632BE5AB  # other bits on each device
  heads = _heads_of_block(N, H)
  first = time_major(B, T, S)
  block = 8 if first else _images_of_step(B, heads, T, S)
  images = _images_of_step(block, heads, T, S)
  kinds = kind, mask_axes, bias is not None, bias_axes
  s = _Shape(B, T, S, N, H, heads, block, images, first, *kinds, drop, interpret)
  operands = [a.reshape(B, -1, N * H) for a in (q_BTNH, k_BSNH, v_BSNH)]
  if first:
    return _attention(s, *(a.swapaxes(0, 1) for a in operands), mask, bias, seed).swapaxes(0, 1).reshape(B, T, N, H)
  return _attention(s, *operands, mask, bias, seed).reshape(B, T, N, H)
