"""Attention within (shifted) windows of a map as Pallas TPU kernels (Swin; Liu et al. 2021, 3.2).

The kernels read queries, keys and values as the dense layers leave them, token by token, [B Y X, D]. Whole maps lie in
VMEM, where windows are gathered and put back with vector loads and stores at any row, so that partition, shift and
their inverses move nothing in HBM. What is particular to windows:

- The rows of a window are brought to a pitch of 8, the sublanes of a register: 7 x 7 tokens fill 56 rows.
- Scores are computed transposed, keys along sublanes, and the queries of all heads that share 128 lanes one after
  another along lanes: 4 heads of 49 tokens fill 224 of 256 lanes. Maximum, sum and the rowsum(p dp) of the backward
  pass are then sums of registers. A head is chosen by setting the other heads' lanes of its queries to 0: the MXU
  contracts over 128 lanes at the price of 32.
- Bias and mask are one table for each of the few different masks of a map, with -1e30 where nothing may be attended.

As in FlashAttention (Dao et al. 2022) probabilities are computed again in the backward pass; nothing of T x T numbers
is written but the gradient of the bias, which is summed over maps and windows in VMEM.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from zoo.kernels.common import KERNEL_OUTPUT, LANES, SUBLANES, dot
from zoo.kernels.window_plan import Plan, Window, block, up, windows
from zoo.shapes import expect

# Of what may not be attended to, and the least maximum of a query's scores: one that may see nothing has weights
# exp2(-1e30 + 1e29) = 0.
NOTHING, FLOOR = -1e30, -1e29


# ---- Rows of windows


def _gather(ref, part: int, window: Window, width: int) -> jax.Array:
  """The slots of a window [slots, width] float32; those without a token hold neighbours, or 0."""
  sublane = lax.broadcasted_iota(jnp.int32, (SUBLANES, width), 0)
  registers = []
  for pieces in window.registers:
    register = jnp.zeros((SUBLANES, width), jnp.float32)
    for i, (first, _, row) in enumerate(pieces):
      piece = ref[part, pl.ds(row - first, SUBLANES), :width]
      register = piece if i == 0 else jnp.where(sublane >= first, piece, register)
    registers.append(register)
  return jnp.concatenate(registers, 0)


def _scatter(ref, part: int, window: Window, x: jax.Array) -> None:
  for i, pieces in enumerate(window.registers):
    for first, end, row in pieces:
      ref[part, pl.ds(row, end - first), : x.shape[-1]] = x[i * SUBLANES + first : i * SUBLANES + end]


def _load(plan: Plan, refs, scratches) -> None:
  """Blocks into scratches [parts, 8 + rows + 8, lanes] float32: only of 32 bits rows can be read from anywhere on."""
  for ref, scratch in zip(refs, scratches, strict=True):
    for part, (lane, heads) in enumerate(plan.parts):
      width = heads * plan.head_width
      scratch[part, :SUBLANES] = jnp.zeros((SUBLANES, scratch.shape[-1]), jnp.float32)
      scratch[part, SUBLANES + plan.rows :] = jnp.zeros((SUBLANES, scratch.shape[-1]), jnp.float32)
      scratch[part, SUBLANES : SUBLANES + plan.rows, :width] = ref[:, lane : lane + width].astype(jnp.float32)


def _store(plan: Plan, refs, scratches) -> None:
  for ref, scratch in zip(refs, scratches, strict=True):
    for part, (lane, heads) in enumerate(plan.parts):
      width = heads * plan.head_width
      ref[:, lane : lane + width] = scratch[part, SUBLANES : SUBLANES + plan.rows, :width].astype(ref.dtype)


# ---- Heads


def _lanes_of(plan: Plan, head: int, shape: tuple[int, ...]) -> jax.Array:
  lane = lax.broadcasted_iota(jnp.int32, shape, 1)
  return (lane >= head * plan.head_width) & (lane < (head + 1) * plan.head_width)


def _stack(plan: Plan, heads: int, x: jax.Array, dtype) -> jax.Array:
  """[slots, lanes] to [heads * slots, lanes]: for each head a copy whose other heads' lanes are 0."""
  return jnp.concatenate([jnp.where(_lanes_of(plan, h, x.shape), x, 0.0) for h in range(heads)], 0).astype(dtype)


def _unstack(plan: Plan, heads: int, x: jax.Array) -> jax.Array:
  """[heads * slots, lanes] to [slots, lanes]: the lanes of each head from its own rows."""
  result = x[: plan.slots]
  for h in range(1, heads):
    rows = x[h * plan.slots : (h + 1) * plan.slots]
    result = jnp.where(_lanes_of(plan, h, rows.shape), rows, result)
  return result


def _weights(k: jax.Array, queries: jax.Array, table: jax.Array) -> jax.Array:
  """Attention weights [slots of keys, heads * slots of queries] float32; scores are in units of log 2."""
  scores = dot(k, queries, 1, 1) + table
  weights = jnp.exp2(scores - jnp.maximum(scores.max(0, keepdims=True), FLOOR))
  return weights * (1.0 / jnp.maximum(weights.sum(0, keepdims=True), 1e-30))


def _forward_kernel(plan: Plan, kinds, q_ref, k_ref, v_ref, table_ref, qkv_bias_ref, out_ref, q, k, v, out):
  step, last, dtype = pl.program_id(3), plan.grid[3] - 1, q_ref.dtype
  pl.when(step == 0)(lambda: _load(plan, (q_ref, k_ref, v_ref), (q, k, v)))
  scale = plan.head_width**-0.5 * math.log2(math.e)
  for window in windows(plan, kinds):
    for part, (lane, heads) in enumerate(plan.parts):
      width = heads * plan.head_width
      qkv_bias = [qkv_bias_ref[i : i + 1, lane : lane + width] for i in range(3)]
      table = table_ref[0, window.kind, part, :, : heads * plan.slots]
      queries = _stack(plan, heads, (_gather(q, part, window, width) + qkv_bias[0]) * scale, dtype)
      weights = _weights((_gather(k, part, window, width) + qkv_bias[1]).astype(dtype), queries, table)
      values = (_gather(v, part, window, width) + qkv_bias[2]).astype(dtype)
      _scatter(out, part, window, _unstack(plan, heads, dot(weights.astype(dtype), values, 0, 0)))
  pl.when(step == last)(lambda: _store(plan, (out_ref,), (out,)))


def _backward_kernel(plan: Plan, kinds, *refs):
  (
    q_ref,
    k_ref,
    v_ref,
    do_ref,
    table_ref,
    qkv_bias_ref,
    dq_ref,
    dk_ref,
    dv_ref,
    dtable_ref,
    dqkv_bias_ref,
    *scratches,
  ) = refs
  q, k, v, do, *grads = scratches
  step, last, dtype = pl.program_id(3), plan.grid[3] - 1, q_ref.dtype
  pl.when(step == 0)(lambda: _load(plan, (q_ref, k_ref, v_ref, do_ref), (q, k, v, do)))

  @pl.when((step == 0) & (pl.program_id(2) == 0))
  def _():
    dtable_ref[...] = jnp.zeros(dtable_ref.shape, jnp.float32)
    dqkv_bias_ref[...] = jnp.zeros(dqkv_bias_ref.shape, jnp.float32)

  scale = plan.head_width**-0.5
  for window in windows(plan, kinds):
    for part, (lane, heads) in enumerate(plan.parts):
      width, across = heads * plan.head_width, slice(0, heads * plan.slots)
      qkv_bias = [qkv_bias_ref[i : i + 1, lane : lane + width] for i in range(3)]
      table = table_ref[0, window.kind, part, :, across]
      in_log2 = scale * math.log2(math.e)
      queries = _stack(plan, heads, (_gather(q, part, window, width) + qkv_bias[0]) * in_log2, dtype)
      keys, values = (
        (_gather(x, part, window, width) + b).astype(dtype) for x, b in ((k, qkv_bias[1]), (v, qkv_bias[2]))
      )
      of_out = _stack(plan, heads, _gather(do, part, window, width), dtype)
      weights = _weights(keys, queries, table)
      of_weights = dot(values, of_out, 1, 1)
      delta = (weights * of_weights).sum(0, keepdims=True)
      of_scores = weights * (of_weights - delta)
      dtable_ref[0, 0, part, :, across] += of_scores
      of_scores = of_scores.astype(dtype)
      found = (
        _unstack(plan, heads, dot(of_scores, keys, 0, 0)) * scale,
        dot(of_scores, queries, 1, 0) * math.log(2),
        dot(weights.astype(dtype), of_out, 1, 0),
      )
      for i, (scratch, grad) in enumerate(zip(grads, found, strict=True)):
        _scatter(scratch, part, window, grad)
        # Of slots without a token weights are 0, and so are the gradients.
        dqkv_bias_ref[0, i, :, lane : lane + width] += grad.reshape(-1, SUBLANES, width).sum(0)
  pl.when(step == last)(lambda: _store(plan, (dq_ref, dk_ref, dv_ref), grads))


# ---- Calls


def _table(plan: Plan, bias_NTT: jax.Array, mask_MTT: jax.Array) -> jax.Array:
  """Bias and masks [groups, masks, parts, slots of keys, heads * slots of queries] in units of log 2."""
  (rows, columns), slots = plan.window, plan.slots
  score = jnp.where(mask_MTT[:, None], bias_NTT.astype(jnp.float32) * math.log2(math.e), NOTHING)
  M, N = score.shape[:2]
  more = plan.pitch - columns
  score = score.reshape(M, N, rows, columns, rows, columns)
  score = jnp.pad(score, ((0, 0), (0, 0), (0, 0), (0, more), (0, 0), (0, more)), constant_values=NOTHING)
  score = score.reshape(M, N, rows * plan.pitch, rows * plan.pitch)
  more = slots - rows * plan.pitch
  score = jnp.pad(score, ((0, 0), (0, 0), (0, more), (0, more)), constant_values=NOTHING)
  in_block = N // plan.groups
  short = len(plan.parts) * plan.most_heads - in_block
  score = score.reshape(M, plan.groups, in_block, slots, slots)
  score = jnp.pad(score, ((0, 0), (0, 0), (0, short), (0, 0), (0, 0)))
  score = score.reshape(M, plan.groups, len(plan.parts), plan.most_heads, slots, slots)
  return score.transpose(1, 0, 2, 5, 3, 4).reshape(plan.groups, M, len(plan.parts), slots, plan.most_heads * slots)


def _bias_gradient(plan: Plan, table: jax.Array) -> jax.Array:
  """[groups, parts of the batch, parts, slots of keys, heads * slots of queries] to [N, T, T]."""
  (rows, columns), slots = plan.window, plan.slots
  grad = table.sum(1).reshape(plan.groups, len(plan.parts), slots, plan.most_heads, slots)
  grad = grad.transpose(0, 1, 3, 4, 2).reshape(plan.groups, -1, slots, slots)
  grad = grad[:, : plan.num_heads // plan.groups].reshape(plan.num_heads, slots, slots)
  grad = grad[:, : rows * plan.pitch, : rows * plan.pitch]
  grad = grad.reshape(-1, rows, plan.pitch, rows, plan.pitch)[:, :, :columns, :, :columns]
  return grad.reshape(-1, rows * columns, rows * columns)


def _vmem(plan: Plan, arrays: int, table: jax.Array) -> int:
  """Bytes of VMEM that a call may take: two blocks of each array and of the table, the scratches, and its registers."""
  lanes = up(plan.lanes, LANES)
  rows = arrays * plan.rows * lanes
  tables = 4 * math.prod((*table.shape[1:-1], up(table.shape[-1], LANES)))
  return 2 * rows * plan.itemsize + 4 * rows + 3 * tables + 12 * 2**20


def _call(plan: Plan, kernel, arrays, table, qkv_bias_3D, outs: int, gradient: bool, name: str, products: int):
  groups, halves, blocks, _ = plan.grid
  tokens = pl.BlockSpec((plan.rows, plan.lanes), lambda g, h, b, s, *_: (h * blocks + b, g))
  tables = pl.BlockSpec((1, *table.shape[1:]), lambda g, h, b, s, *_: (g, 0, 0, 0, 0))
  shape = jax.ShapeDtypeStruct(arrays[0].shape, arrays[0].dtype)
  out_shape, out_specs = [shape] * outs, [tokens] * outs
  if gradient:
    size, more_size = (groups, halves, *table.shape[2:]), (halves, 3, SUBLANES, plan.width)
    out_shape += [jax.ShapeDtypeStruct(size, jnp.float32), jax.ShapeDtypeStruct(more_size, jnp.float32)]
    out_specs.append(pl.BlockSpec((1, 1, *size[2:]), lambda g, h, b, s, *_: (g, h, 0, 0, 0)))
    out_specs.append(pl.BlockSpec((1, 3, SUBLANES, plan.lanes), lambda g, h, b, s, *_: (h, 0, 0, g)))
  lanes = plan.most_heads * plan.head_width
  scratch = pltpu.VMEM((len(plan.parts), plan.rows + 2 * SUBLANES, lanes), jnp.float32)
  T, pairs = math.prod(plan.window), plan.batch * len(plan.kinds) * plan.num_heads
  return pl.pallas_call(
    functools.partial(kernel, plan),
    out_shape=out_shape,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=plan.grid,
      in_specs=[*[tokens] * len(arrays), tables, pl.BlockSpec((3, plan.lanes), lambda g, h, b, s, *_: (0, g))],
      out_specs=out_specs,
      scratch_shapes=[scratch] * (len(arrays) + outs),
    ),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
      vmem_limit_bytes=_vmem(plan, len(arrays) + outs, table),
    ),
    cost_estimate=pl.CostEstimate(
      flops=2 * products * pairs * T * T * plan.head_width,
      transcendentals=pairs * T * T,
      bytes_accessed=(len(arrays) + outs) * arrays[0].size * arrays[0].dtype.itemsize + table.size * 4,
    ),
    interpret=plan.interpret,
    name=name,
  )(jnp.asarray(plan.kinds, jnp.int32), *arrays, table, qkv_bias_3D)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(plan: Plan, q_PD, k_PD, v_PD, bias_NTT, qkv_bias_3D, mask_MTT):
  table = _table(plan, bias_NTT, mask_MTT)
  arrays = q_PD, k_PD, v_PD
  (out,) = _call(plan, _forward_kernel, arrays, table, qkv_bias_3D, 1, False, "window_attention_forward", 2)
  return out


def _forward(plan, *arrays):
  return _attention(plan, *arrays), arrays


def _backward(plan, arrays, of_out):
  *qkv, bias_NTT, qkv_bias_3D, mask_MTT = arrays
  table, name = _table(plan, bias_NTT, mask_MTT), "window_attention_backward"
  *grads, of_table, of_qkv_bias = _call(plan, _backward_kernel, (*qkv, of_out), table, qkv_bias_3D, 3, True, name, 5)
  of_bias = _bias_gradient(plan, of_table).astype(bias_NTT.dtype)
  return *grads, of_bias, of_qkv_bias.sum((0, 2)), np.zeros(mask_MTT.shape, jax.dtypes.float0)


_attention.defvjp(_forward, _backward)


# Bytes of VMEM for a map, of the 128 MiB of v5e, v5p and v6e.
_VMEM = 96 * 2**20


def kernel_fits(width: int, num_heads: int, tokens: int, itemsize: int) -> bool:
  """Whether there is a kernel for these heads, and VMEM for a map of so many tokens."""
  heads_fit = width % num_heads == 0 and (width <= LANES or LANES % (width // num_heads) == 0)
  # Backward seven arrays, each of 128 features: two blocks and a float32 copy.
  return heads_fit and tokens * 7 * LANES * (2 * itemsize + 4) <= _VMEM


def window_attention(
  q_BYXD: jax.Array,
  k_BYXD: jax.Array,
  v_BYXD: jax.Array,
  bias_NTT: jax.Array,
  qkv_bias_3D: jax.Array | None = None,
  *,
  mask_WTT: np.ndarray | None = None,
  window_size: tuple[int, int],
  shift: tuple[int, int] = (0, 0),
  interpret: bool = False,
) -> jax.Array:
  """Scaled dot-product attention within the windows of a map, of all heads: [B, Y, X, D] to [B, Y, X, D].

  Equal to partition of the map rolled back by `shift`, `zoo.layers.attention.dot_product_attention`, and their
  inverses. Softmax in float32, products in the type of q with sums in float32.

  Args:
    q_BYXD, k_BYXD, v_BYXD: projections of the map, heads one after another in D.
    bias_NTT: added to the scores, [heads, queries, keys].
    qkv_bias_3D: added to queries, to keys, and to values: the biases of their projections. XLA would read the
      gradients of q, k and v again to sum them up; the kernel has them at hand. None for 0.
    mask_WTT: bool, True = may attend, of each window of the rolled map; static. None for all.
    window_size: rows and columns of a window; they divide Y and X.
    shift: rows and columns by which windows begin later; what is beyond the borders continues at the other side.
    interpret: run on any platform, for tests.

  Returns:
    [B, Y, X, D] in the type of q. A query that may see nothing gets 0.

  Raises:
    ValueError: windows that do not divide the map, heads that do not divide D or 128 lanes, another mask, or a map that
      is too large.

  A block is whole maps, or a multiple of them, of 128 features. In VMEM a token takes 1 KiB a feature block and array
  in bfloat16 (two blocks and a float32 copy), with four arrays forward and seven backward: 22 MiB for a map of 56 x 56.
  That is more than the 16 MiB of a v4; there maps may have up to 2,000 tokens.
  """
  sizes = expect(q_BYXD=q_BYXD, k_BYXD=k_BYXD, v_BYXD=v_BYXD)
  B, size, D, N = sizes["B"], (sizes["Y"], sizes["X"]), sizes["D"], bias_NTT.shape[0]
  T = math.prod(window_size)
  if any(n % side for n, side in zip(size, window_size, strict=True)):
    raise ValueError(f"windows of {window_size} do not divide a map of {size}; pad it")
  if not kernel_fits(D, N, math.prod(size), q_BYXD.dtype.itemsize):
    raise ValueError(
      f"{N} heads of a width of {D} on a map of {size}: wanted heads whose width divides {LANES}, or {LANES} in "
      f"all, and maps that take {_VMEM / 2**20:.0f} MiB of VMEM; use attention='xla'"
    )
  W = math.prod(size) // T
  if mask_WTT is None:
    mask_WTT = np.ones((1, T, T), bool)
    kinds = np.zeros(W, int)
  elif mask_WTT.shape != (W, T, T):
    raise ValueError(f"the mask is {mask_WTT.shape}; wanted {(W, T, T)}")
  else:
    mask_WTT, kinds = np.unique(mask_WTT, axis=0, return_inverse=True)
  rows = SUBLANES * 4 // q_BYXD.dtype.itemsize
  batch, images, bands = block(B, size, window_size, rows)
  sizes = (batch, size, D, N, window_size, shift)
  plan = Plan(*sizes, tuple(kinds.ravel().tolist()), images, bands, q_BYXD.dtype.itemsize, interpret)

  qkv_bias_3D = jnp.zeros((3, D), jnp.float32) if qkv_bias_3D is None else qkv_bias_3D.astype(jnp.float32)

  def flat(x):
    x = jnp.pad(x, ((0, batch - B), (0, 0), (0, 0), (0, 0))) if batch > B else x
    return x.reshape(-1, D)

  out_PD = _attention(plan, flat(q_BYXD), flat(k_BYXD), flat(v_BYXD), bias_NTT, qkv_bias_3D, jnp.asarray(mask_WTT))
  return checkpoint_name(out_PD.reshape(batch, *size, D)[:B], KERNEL_OUTPUT)
