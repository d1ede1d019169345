"""Attention of long sequences on TPUs, by JAX's own splash attention kernel.

Rows of scores do not fit VMEM there, so softmax is accumulated over blocks of keys (Dao et al. 2022, FlashAttention,
algorithm 1). JAX's kernel has the numbers; what is added here is any length, key masks and meshes.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

from zoo import partitioning
from zoo.kernels.common import KERNEL_OUTPUT, LANES
from zoo.shapes import expect

# Sides of the blocks of scores, which take 4 MiB at most; the kernel wants multiples of 128.
_BLOCKS = range(1024, 0, -LANES)


def kernel_fits(mask: jax.Array | None, bias: jax.Array | None, drops: bool) -> bool:
  """Whether the kernel can: without bias and dropout, and with no mask but one of keys, [B|1, 1, 1, S]."""
  return not drops and bias is None and (mask is None or all(n == 1 for n in mask.shape[-3:-1]))


def _block(length: int) -> int:
  """The side of blocks that takes least time: by the tokens with padding, and what each block takes beside them.

  On v5e, 8 x 12 x 64 heads of 2,048 tokens, blocks of 512 take 1.24 times the cycles of 1,024.
  """
  return min(_BLOCKS, key=lambda block: (length + -length % block) ** 2 * (1 + 318 / block))


@functools.partial(jax.jit, static_argnames="interpret")
def _attention(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask_BS: jax.Array, interpret: bool):
  """On one device."""
  T, S, N = q_BTNH.shape[1], k_BSKH.shape[1], q_BTNH.shape[2]
  queries, keys = _block(T), _block(S)

  def padded(x: jax.Array, block: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % block)) + ((0, 0),) * (x.ndim - 2))

  q = padded(q_BTNH * q_BTNH.shape[-1] ** -0.5, queries).swapaxes(1, 2)
  k, v = (padded(x, keys).swapaxes(1, 2) for x in (k_BSKH, v_BSKH))
  # Queries see the keys of their own segment: all queries are in segment 1, and so are the keys that may be seen.
  seen = padded(mask_BS.astype(jnp.int32), keys)
  segments = splash_attention_kernel.SegmentIds(jnp.ones((len(q), q.shape[2]), jnp.int32), seen)
  attend = splash_attention_kernel.make_splash_mha(
    splash_attention_mask.MultiHeadMask([splash_attention_mask.FullMask((q.shape[2], k.shape[2]))] * N),
    block_sizes=splash_attention_kernel.BlockSizes(
      block_q=queries,
      block_kv=keys,
      block_q_dkv=queries,
      block_kv_dkv=keys,
      block_q_dq=queries,
      block_kv_dq=keys,
    ),
    head_shards=1,
    q_seq_shards=1,
    interpret=interpret,
  )
  out_BNTH: Any = jax.vmap(attend)(q, k, v, segments)
  out_BTNH = out_BNTH.swapaxes(1, 2)[:, :T]
  return jnp.where(mask_BS.any(1)[:, None, None, None], out_BTNH, 0)


def long_attention(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  *,
  mask: jax.Array | None = None,
  interpret: bool = False,
) -> jax.Array:
  """Multi-head scaled dot-product attention of any lengths (Vaswani et al. 2017, eq. 1); scores stay in VMEM.

  Args:
    q_BTNH, k_BSKH, v_BSKH: queries, keys, values; K divides N.
    mask: bool, [B|1, 1, 1, S], True = may attend; leading axes may be absent.
    interpret: run on a CPU, for tests.

  Returns:
    [B, T, N, H] in the type of q. A query that may see nothing gets 0.

  Lengths are padded to whole blocks, of at most 1,024. In VMEM a block of scores takes 4 MiB at most.
  """
  sizes = expect(q_BTNH=q_BTNH, k_BSKH=k_BSKH, v_BSKH=v_BSKH)
  mask = jnp.ones((), bool) if mask is None else mask.reshape(-1, mask.shape[-1])
  mask_BS = jnp.broadcast_to(mask, (sizes["B"], sizes["S"]))
  tokens = "batch", None, "heads", None
  # Of grouped heads each device would need other keys.
  keys = tokens if sizes["N"] == sizes["K"] else ("batch", None, None, None)
  queries = tokens if sizes["N"] == sizes["K"] else keys

  def part(index, *arrays):
    return _attention(*arrays, interpret=interpret)

  out_BTNH = partitioning.split(part, (queries, keys, keys, ("batch", None)), queries, q_BTNH, k_BSKH, v_BSKH, mask_BS)
  return checkpoint_name(out_BTNH, KERNEL_OUTPUT)
