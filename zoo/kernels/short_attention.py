"""Attention over short sequences for TPUs: whole rows of scores in VMEM, forward and backward.

`short_attention` has the meaning of the first result of `zoo.layers.attention.dot_product_attention`, its plain twin.

Scores are transposed, [S, T]: keys along sublanes, queries along lanes, 128 queries at a time. So a softmax reduces over
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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from zoo.shapes import expect

LANES = 128
MAX_LENGTH = 1024
# Scores of keys that may not be seen, and the least maximum of a row: exponentials of a row without keys are 0, not 1.
_HIDDEN, _LEAST = -1e30, -5e29


class _Shape(NamedTuple):
  """What a kernel is specialised for: all static.

  Attributes:
    batch, queries, keys, num_heads, width: B, T, S, N, H.
    heads: of a block. images: of a grid step.
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
  images: int
  mask: str | None
  mask_axes: tuple[bool, bool]
  bias: bool
  bias_axes: tuple[bool, bool]
  drop: float
  interpret: bool

  @property
  def chunks(self) -> list[tuple[int, int]]:
    """First query and number of queries of each tile of lanes."""
    return [(start, min(LANES, self.queries - start)) for start in range(0, self.queries, LANES)]

  @property
  def grid(self) -> tuple[int, int]:
    """Grid steps along heads and images, in the order of `outer`."""
    steps = self.num_heads // self.heads, self.batch // self.images
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
  """Head h of x [S, lanes], and the lanes to contract with: a tile with the other heads' lanes 0, or its lanes alone."""
  start = h * width
  if LANES % width == 0 and x.shape[1] % LANES == 0:
    tile = slice(start // LANES * LANES, start // LANES * LANES + LANES)
    if width == LANES:
      return x[:, tile], tile
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1) + tile.start
    own = (lane >= start) & (lane < start + width)
    return jnp.where(own, x[:, tile], jnp.zeros((), x.dtype)), tile
  return x[:, start : start + width], slice(start, start + width)


def _hash_bits(shape: tuple[int, int], seed: jax.Array, row: int) -> jax.Array:
  """Counter-based random bits for the interpreter, which has no generator: rounds of a multiply-xorshift hash."""
  key = jax.lax.broadcasted_iota(jnp.uint32, shape, 0)
  query = jax.lax.broadcasted_iota(jnp.uint32, shape, 1) + jnp.uint32(row)
  bits = key * jnp.uint32(0x9E3779B1) ^ (query * jnp.uint32(0x85EBCA77) + seed.astype(jnp.uint32))
  for factor in (0x7FEB352D, 0x846CA68B):
    bits = (bits ^ (bits >> 16)) * jnp.uint32(factor)
  return bits ^ (bits >> 16)


def _keep(s: _Shape, seed_ref: Any, image: jax.Array, head: jax.Array, start: int, shape: tuple[int, int]) -> jax.Array:
  """Which weights [S, T] of a tile dropout keeps: the same whenever it is called."""
  unit = (image * s.num_heads + head) * len(s.chunks) + start // LANES
  if s.interpret:
    bits = _hash_bits(shape, seed_ref[0] + unit * 0x3C6EF35, start)
  else:
    pltpu.prng_seed(seed_ref[0], unit)
    bits = pltpu.bitcast(pltpu.prng_random_bits(shape), jnp.uint32)
  return bits >= jnp.uint32(round(s.drop * 2**32))


class _Tile:
  """Scores to weights for one head of one image and up to 128 queries; refs are of the kernel."""

  def __init__(self, s: _Shape, refs: dict[str, Any], step: tuple[Any, Any], g: int, h: int, chunk: tuple[int, int]):
    self.s, self.refs, self.step = s, refs, step
    self.g, self.h, self.start, self.size = g, h, *chunk

  def _entry(self, axes: tuple[bool, bool]) -> tuple[int, int]:
    """Where in a block of a mask or bias this tile's image and head are."""
    return self.g if axes[0] else 0, self.h if axes[1] else 0

  def weights(self, q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Queries [T, .] and one head's keys [S, .] to exponentials [S, T] and the inverse [1, T] of their sum."""
    s, scale = self.s, self.s.width**-0.5
    scores, factor = _dot(k, q, 1, 1), scale * math.log2(math.e)
    queries = slice(self.start, self.start + self.size)
    if s.bias:
      bias = self.refs["bias"][*self._entry(s.bias_axes), :, queries]
      scores, factor = scores * scale + bias.astype(jnp.float32), math.log2(math.e)
    if s.mask == "row":
      row = self.refs["mask"][*self._entry(s.mask_axes)]
      # A transposed tile: a column of it for each query.
      seen = jnp.broadcast_to(row.astype(jnp.float32), (LANES, s.keys)).T[:, : self.size] > 0
      scores = jnp.where(seen, scores, _HIDDEN)
    elif s.mask == "full":
      seen = self.refs["mask"][*self._entry(s.mask_axes), :, queries].astype(jnp.int32) != 0
      scores = jnp.where(seen, scores, _HIDDEN)
    top = scores.max(0, keepdims=True)
    top = top if s.mask is None else jnp.maximum(top, _LEAST)
    weights = jnp.exp2((scores - top) * factor)
    total = weights.sum(0, keepdims=True)
    return weights, 1.0 / (total if s.mask is None else jnp.where(total > 0, total, 1.0))

  def kept(self) -> jax.Array:
    """Which weights dropout keeps."""
    heads, images = self.step
    image, head = images * self.s.images + self.g, heads * self.s.heads + self.h
    return _keep(self.s, self.refs["seed"], image, head, self.start, (self.s.keys, self.size))


def _forward_kernel(s: _Shape, names: tuple[str, ...], *refs: Any) -> None:
  """Output block [G, T, lanes] of a block of queries, keys and values."""
  at = dict(zip(names, refs, strict=True))
  step = s.place(pl.program_id(0), pl.program_id(1))
  for g in range(s.images):
    q, k, v = (at[name][g] for name in "qkv")
    vT, columns = v.T, [[] for _ in s.chunks]
    for h in range(s.heads):
      key, lanes = _of_head(k, h, s.width)
      value = vT[h * s.width : (h + 1) * s.width]
      for i, (start, size) in enumerate(s.chunks):
        tile = _Tile(s, at, step, g, h, (start, size))
        weights, inverse = tile.weights(q[start : start + size, lanes], key)
        if s.drop:
          weights, inverse = jnp.where(tile.kept(), weights, 0.0), inverse / (1 - s.drop)
        columns[i].append(_dot(value, weights.astype(v.dtype), 1, 0) * inverse)
    for (start, size), heads in zip(s.chunks, columns, strict=True):
      at["o"][g, start : start + size] = jnp.concatenate(heads, 0).T.astype(v.dtype)


def _backward_kernel(s: _Shape, names: tuple[str, ...], *refs: Any) -> None:
  """Gradient blocks of queries, keys and values, and the sum over images of the gradient of the bias."""
  at = dict(zip(names, refs, strict=True))
  step = s.place(pl.program_id(0), pl.program_id(1))
  scale = s.width**-0.5
  if s.bias:
    _clear_bias(s, at["dbias"], step)
  for g in range(s.images):
    q, k, v, do = (at[name][g] for name in ("q", "k", "v", "do"))
    qT, kT, doT = q.T, k.T, do.T
    dqs, dks, dvs = [[] for _ in s.chunks], [], []
    for h in range(s.heads):
      key, lanes = _of_head(k, h, s.width)
      value, _ = _of_head(v, h, s.width)
      rows = slice(h * s.width, (h + 1) * s.width)
      dk = dv = 0.0
      for i, (start, size) in enumerate(s.chunks):
        queries = slice(start, start + size)
        tile = _Tile(s, at, step, g, h, (start, size))
        weights, inverse = tile.weights(q[queries, lanes], key)
        p = weights * inverse
        dp, dropped = _dot(value, do[queries, lanes], 1, 1), p
        if s.drop:
          keep = jnp.where(tile.kept(), 1 / (1 - s.drop), 0.0)
          dp, dropped = dp * keep, p * keep
        ds = p * (dp - (p * dp).sum(0, keepdims=True))
        if s.bias:
          at["dbias"][*tile._entry(s.bias_axes), :, queries] += ds
        ds, dropped = ds.astype(q.dtype), dropped.astype(q.dtype)
        dqs[i].append(_dot(kT[rows], ds, 1, 0) * scale)
        dk += _dot(qT[rows, queries], ds, 1, 1)
        dv += _dot(doT[rows, queries], dropped, 1, 1)
      dks.append(dk * scale)
      dvs.append(dv)
    for (start, size), heads in zip(s.chunks, dqs, strict=True):
      at["dq"][g, start : start + size] = jnp.concatenate(heads, 0).T.astype(q.dtype)
    at["dk"][g] = jnp.concatenate(dks, 0).T.astype(k.dtype)
    at["dv"][g] = jnp.concatenate(dvs, 0).T.astype(v.dtype)


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
      return images, 0, heads

    return pl.BlockSpec((s.images, length, s.heads * s.width), index)

  def scores(axes: tuple[bool, bool], shape: tuple[int, int]) -> pl.BlockSpec:
    def index(i, j):
      heads, images = s.place(i, j)
      return images if axes[0] else 0, heads if axes[1] else 0, 0, 0

    return pl.BlockSpec((s.images if axes[0] else 1, s.heads if axes[1] else 1, *shape), index)

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


def _call(kernel: Any, s: _Shape, name: str, inputs: dict, outputs: dict, products: int) -> tuple[jax.Array, ...]:
  """Runs a kernel on operands by their names; those that are None are left out."""
  inputs = {key: value for key, value in inputs.items() if value is not None}
  specs, rows = _specs(s), s.batch * s.num_heads * s.queries * s.keys
  moved = sum(math.prod(a.shape) * a.dtype.itemsize for a in (*inputs.values(), *outputs.values()))
  return pl.pallas_call(
    functools.partial(kernel, s, (*inputs, *outputs)),
    out_shape=tuple(outputs.values()),
    grid=s.grid,
    in_specs=[specs[key] for key in inputs],
    out_specs=tuple(specs[key] for key in outputs),
    compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary", "arbitrary")),
    cost_estimate=pl.CostEstimate(flops=2 * products * rows * s.width, transcendentals=rows, bytes_accessed=moved),
    interpret=s.interpret,
    name=name,
  )(*inputs.values())


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(s: _Shape, q, k, v, mask, bias, seed):
  """Attention of [B, T, N H] with transposed mask and bias [B|1, N|1, S, T]."""
  inputs = dict(seed=seed, q=q, k=k, v=v, mask=mask, bias=bias)
  (out,) = _call(_forward_kernel, s, "short_attention", inputs, dict(o=jax.ShapeDtypeStruct(q.shape, v.dtype)), 2)
  return out


def _attention_forward(s: _Shape, q, k, v, mask, bias, seed):
  return _attention(s, q, k, v, mask, bias, seed), (q, k, v, mask, bias, seed)


def _attention_backward(s: _Shape, kept, do):
  q, k, v, mask, bias, seed = kept
  inputs = dict(seed=seed, q=q, k=k, v=v, do=do, mask=mask, bias=bias)
  outputs = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in (("dq", q), ("dk", k), ("dv", v))}
  if bias is not None:
    outputs["dbias"] = jax.ShapeDtypeStruct(bias.shape, jnp.float32)
  dq, dk, dv, *dbias = _call(_backward_kernel, s, "short_attention_backward", inputs, outputs, 5)
  return dq, dk, dv, None, dbias[0].astype(bias.dtype) if dbias else None, None


_attention.defvjp(_attention_forward, _attention_backward)


def _heads_of_block(num_heads: int, width: int) -> int:
  """The fewest heads whose lanes are whole tiles; all of them where there are not as many."""
  heads = LANES // math.gcd(LANES, width)
  return heads if num_heads % heads == 0 else num_heads


def _images_of_step(batch: int, heads: int, queries: int, keys: int) -> int:
  """Images of a grid step: enough independent work for the scheduler, in blocks that fit VMEM."""
  units = heads * -(-queries // LANES) * -(-keys // LANES)
  return max(n for n in range(1, max(1, 16 // units) + 1) if batch % n == 0)


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
  B, T, S, N, H = (z[letter] for letter in "BTSNH")
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
  heads = _heads_of_block(N, H)
  images = _images_of_step(B, heads, T, S)
  s = _Shape(B, T, S, N, H, heads, images, kind, mask_axes, bias is not None, bias_axes, drop, interpret)
  out = _attention(s, *(a.reshape(B, -1, N * H) for a in (q_BTNH, k, v)), mask, bias, seed)
  return out.reshape(B, T, N, H)
