"""Attention over short sequences for TPUs: whole rows of scores in VMEM, forward and backward.

`short_attention` has the meaning of the first result of `zoo.layers.attention.dot_product_attention`, its plain twin.

As in FlashAttention (Dao et al. 2022, "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness")
nothing of size T x S is written to HBM, and the backward pass recomputes the weights; since whole rows fit VMEM there
is no running maximum, and neither the output nor a log-sum-exp is kept: rowsum(p * dp) is formed from its definition.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from zoo import partitioning
from zoo.kernels.common import KERNEL_OUTPUT, LANES
from zoo.kernels.short_attention_bodies import BIASED, GROUP, Shape, backward, forward, run
from zoo.shapes import expect

MAX_LENGTH = 1024
VMEM = 128 * 2**20  # bytes, of every chip


def _specs(s: Shape) -> dict[str, pl.BlockSpec]:
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
    qv_bias=pl.BlockSpec((len(BIASED), s.heads * s.width), lambda i, j: (0, s.place(i, j)[0])),
    dqv_bias=pl.BlockSpec((1, len(BIASED), s.heads * s.width), lambda i, j: (s.place(i, j)[1], 0, s.place(i, j)[0])),
    **dict.fromkeys(("q", "o", "do", "dq"), queries),
    **dict.fromkeys(("k", "v", "dk", "dv"), keys),
  )


def _call(compute: Callable, s: Shape, name: str, inputs: dict, outputs: dict, products: int) -> tuple[jax.Array, ...]:
  """Runs a kernel on operands by their names; those that are None are left out."""
  inputs = {key: value for key, value in inputs.items() if value is not None}
  specs, rows = _specs(s), s.batch * s.num_heads * s.queries * s.keys
  arrays = {**inputs, **outputs}
  moved = sum(math.prod(a.shape) * a.dtype.itemsize for a in arrays.values())
  staged = {key: a for key, a in arrays.items() if s.staged(key)}
  rows_axis = 0 if s.time_major else 1
  scratch = [pltpu.VMEM((s.block, a.shape[rows_axis], s.heads * s.width), a.dtype) for a in staged.values()]
  blocks = sum(
    math.prod(cast(tuple[int, ...], specs[key].block_shape)) * a.dtype.itemsize * (3 if s.staged(key) else 2)
    for key, a in arrays.items()
    if key != "seed"
  )
  return pl.pallas_call(
    functools.partial(run, s, tuple(arrays), compute, tuple(outputs)),
    out_shape=tuple(outputs.values()),
    grid=s.grid,
    in_specs=[specs[key] for key in inputs],
    out_specs=tuple(specs[key] for key in outputs),
    scratch_shapes=scratch,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=_semantics(s, "dbias" in outputs), vmem_limit_bytes=max(16 * 2**20, _vmem(blocks))
    ),
    cost_estimate=pl.CostEstimate(flops=2 * products * rows * s.width, transcendentals=rows, bytes_accessed=moved),
    interpret=s.interpret,
    name=name,
  )(*inputs.values())


def _semantics(s: Shape, sums_bias: bool) -> tuple[Any, Any]:
  """What chips with two cores may split: an axis of the grid along which no gradient of a bias is summed."""
  images, heads = ("parallel" if own or not sums_bias else "arbitrary" for own in s.bias_axes)
  return (heads, images) if s.heads_outer else (images, heads)


def _vmem(blocks: int) -> int:
  """Bytes of VMEM to allow: blocks, twice for copies ahead and once more if staged, and what a group of tiles needs."""
  return int(1.25 * blocks) + 8 * 2**20 + 4 * 4 * GROUP


def _scaled(s: Shape, bias: jax.Array | None) -> jax.Array | None:
  """The bias that is added to scores before they are scaled."""
  return None if bias is None else bias * s.width**0.5


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(s: Shape, q, k, v, qv_bias, mask, bias, seed):
  """Attention of [B, T, N H] with the biases [2, N H] of q and v, and transposed mask and bias [B|1, N|1, S, T]."""
  inputs = dict(seed=seed, q=q, k=k, v=v, qv_bias=qv_bias, mask=mask, bias=_scaled(s, bias))
  (out,) = _call(forward, s, "short_attention", inputs, dict(o=jax.ShapeDtypeStruct(q.shape, v.dtype)), 2)
  return out


def _attention_forward(s: Shape, *arrays):
  return _attention(s, *arrays), arrays


def _attention_backward(s: Shape, kept, do):
  q, k, v, qv_bias, mask, bias, seed = kept
  inputs = dict(seed=seed, q=q, k=k, v=v, do=do, qv_bias=qv_bias, mask=mask, bias=_scaled(s, bias))
  outputs = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in (("dq", q), ("dk", k), ("dv", v))}
  if bias is not None:
    outputs["dbias"] = jax.ShapeDtypeStruct(bias.shape, jnp.float32)
  if qv_bias is not None:
    outputs["dqv_bias"] = jax.ShapeDtypeStruct((s.batch // s.block, *qv_bias.shape), jnp.float32)
  found = dict(zip(outputs, _call(backward, s, "short_attention_backward", inputs, outputs, 5), strict=True))
  dbias = None if bias is None else found["dbias"].astype(bias.dtype)
  dqv_bias = None if qv_bias is None else found["dqv_bias"].sum(0)
  return found["dq"], found["dk"], found["dv"], dqv_bias, None, dbias, None


_attention.defvjp(_attention_forward, _attention_backward)


def _heads_of_block(num_heads: int, width: int) -> int:
  """The fewest heads whose lanes are whole tiles; all of them where there are not as many."""
  heads = LANES // math.gcd(LANES, width)
  return heads if num_heads % heads == 0 else num_heads


def _images_of_step(batch: int, heads: int, queries: int, keys: int) -> int:
  """Images of a grid step: enough independent work for the scheduler, in blocks that fit VMEM."""
  most = min(16, max(1, GROUP // (heads * queries * keys)))
  return max(n for n in range(1, most + 1) if batch % n == 0)


def time_major(heads_BTNH: tuple[int, ...], keys: int) -> bool:
  """Whether the kernels read queries of this shape and S keys as [T, B, N H] rather than [B, T, N H].

  XLA keeps [B, T, D] in that order where T is no multiple of 8, the rows of a tile, and a row-major operand would be a
  copy. The kernels read 8 examples at a time and swap the axes in VMEM; where 8 are more than a step should compute, or
  have more lanes than a few tiles, the copy is cheaper.
  """
  B, T, N, H = heads_BTNH
  heads = _heads_of_block(N, H)
  few = 8 * heads * T * keys <= 1.25 * GROUP and heads * H < 640
  return bool(T % 8 or keys % 8) and B % 8 == 0 and few


def kernel_fits(heads_BTNH: tuple[int, ...], keys: int, itemsize: int) -> bool:
  """Whether there is a kernel for queries of this shape and S keys that fits VMEM with any mask and bias."""
  B, T, N, H = heads_BTNH
  if min(T, keys) <= 1 or max(T, keys) > MAX_LENGTH or H % 16:
    return False
  heads = _heads_of_block(N, H)
  block = 8 if time_major(heads_BTNH, keys) else _images_of_step(B, heads, T, keys)
  rows = 3 * block * (3 * T + 4 * keys) * heads * H * itemsize  # of q, k, v, do and their gradients
  scores = 2 * block * heads * T * keys * (4 + 4 + 1)  # bias, its gradient and mask
  return _vmem(rows + scores) <= VMEM


def _four_axes(x: jax.Array) -> jax.Array:
  return x.reshape((1,) * (4 - x.ndim) + x.shape)


def _as_read(
  num_keys: int, num_queries: int, mask: jax.Array | None, bias: jax.Array | None
) -> tuple[jax.Array | None, jax.Array | None, dict[str, Any]]:
  """Mask and bias as the kernels read them, and which axes they have, by the names of `Shape`."""
  has: dict[str, Any] = dict(mask=None, mask_axes=(False, False), bias=bias is not None, bias_axes=(False, False))
  if mask is not None:
    mask = _four_axes(mask)
    mask = jnp.broadcast_to(mask, (*mask.shape[:3], num_keys))
    has |= dict(mask="row" if mask.shape[2] == 1 else "full", mask_axes=(mask.shape[0] > 1, mask.shape[1] > 1))
    mask = mask.astype(jnp.int32) if has["mask"] == "row" else mask.astype(jnp.int8).swapaxes(2, 3)
  if bias is not None:
    bias = _four_axes(bias)
    bias = jnp.broadcast_to(bias, (*bias.shape[:2], num_queries, num_keys)).swapaxes(2, 3)
    has["bias_axes"] = bias.shape[0] > 1, bias.shape[1] > 1
  return mask, bias, has


def _checked_sizes(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array) -> tuple[int, ...]:
  """T, S, N, K and H."""
  z = expect(q_BTNH=q_BTNH, k_BSKH=k_BSKH, v_BSKH=v_BSKH)
  T, S, N, K, H = sizes = tuple(z[letter] for letter in "TSNKH")
  if max(T, S) > MAX_LENGTH or H % 16:
    raise ValueError(
      f"{T} queries, {S} keys, heads of width {H}: wanted at most {MAX_LENGTH} of either and a multiple of 16; "
      "use implementation='xla'"
    )
  if N % K:
    raise ValueError(f"{N} query heads cannot share {K} key heads evenly")
  return sizes


def short_attention(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  *,
  biases: tuple[jax.Array, jax.Array, jax.Array] | None = None,
  mask: jax.Array | None = None,
  bias: jax.Array | None = None,
  dropout_rate: float = 0.0,
  dropout_key: jax.Array | None = None,
  interpret: bool = False,
) -> jax.Array:
  """Multi-head scaled dot-product attention whose scores stay in VMEM (Vaswani et al. 2017, eq. 1).

  Args:
    q_BTNH, k_BSKH, v_BSKH: queries, keys, values, of one type; K divides N, and smaller K are repeated.
    biases: [N, H], [K, H], [K, H], added to them: those of their projections. XLA would read the gradients of q, k and
      v again to sum them up; the kernel has them at hand. That of the keys adds the same to all scores of a query, so
      it changes nothing and its gradient is 0.
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
  T, S, N, K, H = _checked_sizes(q_BTNH, k_BSKH, v_BSKH)

  def for_all(x: jax.Array, axis: int) -> jax.Array:
    return jnp.repeat(x, N // K, axis) if K < N else x

  k, v = for_all(k_BSKH, 2), for_all(v_BSKH, 2)
  qv_bias = None if biases is None else jnp.stack([biases[0], for_all(biases[2], 0)]).astype(jnp.float32)
  mask, bias, has = _as_read(S, T, mask, bias)
  dropout_rate = 0.0 if dropout_key is None else dropout_rate
  seed = None
  if dropout_rate and dropout_key is not None:
    seed = jax.random.bits(dropout_key, (1,), jnp.uint32).astype(jnp.int32)
  tokens = "batch", None, ("heads", N)
  scores = [
    ("batch" if b else None, "heads" if n else None, None, None) for b, n in (has["mask_axes"], has["bias_axes"])
  ]
  axes = [tokens, tokens, tokens, (None, "heads", None), *scores]
  # Flat before they are split: of [B, T, N, H] XLA would copy the products to the layout of its choice and back.
  flat = (a.reshape(*a.shape[:2], N * H) for a in (q_BTNH, k, v))
  operands = [(a, own) for a, own in zip((*flat, qv_bias, mask, bias, seed), (*axes, (None,)), strict=True)]
  given = [(a, own) for a, own in operands if a is not None]

  def part(index, *arrays):
    rest = iter(arrays)
    options = has | dict(dropout_rate=dropout_rate, interpret=interpret)
    return _run(H, options, index, *(None if a is None else next(rest) for a, _ in operands))

  out_BTF = partitioning.split(part, [own for _, own in given], tokens, *(a for a, _ in given))
  return checkpoint_name(out_BTF.reshape(q_BTNH.shape), KERNEL_OUTPUT)


def _run(H: int, has: dict[str, Any], part, q_BTF, k_BSF, v_BSF, qv_bias_2NH, mask, bias, seed) -> jax.Array:
  """The kernels on one device, on heads one after another in F = N H, with mask and bias as they read them."""
  (B, T, F), S = q_BTF.shape, k_BSF.shape[1]
  N = F // H
  if seed is not None:
    seed = seed + part * 0x632BE5AB  # other bits on each device
  heads, swapped = _heads_of_block(N, H), time_major((B, T, N, H), S)
  block = 8 if swapped else _images_of_step(B, heads, T, S)
  s = Shape(B, T, S, N, H, heads, block, swapped, qv_bias_2NH is not None, **has)
  qv_bias = None if qv_bias_2NH is None else qv_bias_2NH.reshape(2, F)
  if swapped:
    q, k, v = (a.swapaxes(0, 1) for a in (q_BTF, k_BSF, v_BSF))
    return _attention(s, q, k, v, qv_bias, mask, bias, seed).swapaxes(0, 1)
  return _attention(s, q_BTF, k_BSF, v_BSF, qv_bias, mask, bias, seed)
