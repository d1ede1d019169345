"""Attention: scores, a masked softmax over the keys, a weighted sum of the values.

Pure functions of q, k and v. Layers that hold parameters are in `zoo/layers.py`; fused TPU kernels go behind
`attend`, whose plain form here is what they are tested against.
"""

import jax
import jax.numpy as jnp

from zoo.shapes import expect


def masked_exp(scores: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
  """The two halves of a softmax over the last axis, over the places where `mask` is True.

  Args:
    scores: [..., S], any float type; computed in float32.
    mask: bool, broadcastable to `scores`, True = may attend; None for all.

  Returns:
    numerators [..., S] and their sum [..., 1], float32. Where the mask is all False the numerators are 0 and the
    sum is 1, so that the quotient and its gradient are 0 too.
  """
  scores = scores.astype(jnp.float32)
  if mask is not None:
    # A finite floor instead of -inf keeps the gradient of a fully masked row finite: 0 and not nan.
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
  # The softmax does not change with the shift, so no gradient needs to pass through it.
  numerators = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
  if mask is None:
    return numerators, numerators.sum(-1, keepdims=True)
  numerators = jnp.where(mask, numerators, 0.0)
  total = numerators.sum(-1, keepdims=True)
  return numerators, jnp.where(total > 0, total, 1.0)


def masked_softmax(scores: jax.Array, mask: jax.Array | None = None) -> jax.Array:
  """Softmax over the last axis, over the places where `mask` is True.

  Args:
    scores: [..., S], any float type; computed in float32.
    mask: bool, broadcastable to `scores`, True = may attend; None for all.

  Returns:
    [..., S] float32. A row whose mask is all False is all 0, and so are its gradients.
  """
  numerators, total = masked_exp(scores, mask)
  return numerators / total


def dot_product_scores(q_BTNH: jax.Array, k_BSKH: jax.Array) -> jax.Array:
  """Scaled dot products, q k^T / sqrt(H) (Vaswani et al. 2017, eq. 1).

  Query head n reads key head n // (N / K), so K = N is multi-head, 1 < K < N grouped-query (Ainslie et al.
  2023) and K = 1 multi-query attention (Shazeer 2019).

  Returns:
    [B, N, T, S] float32

  Raises:
    ValueError: N is no multiple of K.
  """
  sizes = expect(q_BTNH=q_BTNH, k_BSKH=k_BSKH)
  q_BTNH = q_BTNH * sizes["H"] ** -0.5  # on q, the smaller operand, rather than on the scores
  if sizes["N"] == sizes["K"]:
    return jnp.einsum("BTNH,BSNH->BNTS", q_BTNH, k_BSKH, preferred_element_type=jnp.float32)
  if sizes["N"] % sizes["K"]:
    raise ValueError(f"{sizes['N']} query heads cannot share {sizes['K']} key heads evenly")
  q_BTKGH = q_BTNH.reshape(*q_BTNH.shape[:2], sizes["K"], -1, sizes["H"])
  scores = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)
  return scores.reshape(sizes["B"], sizes["N"], sizes["T"], sizes["S"])


def attend(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  *,
  mask: jax.Array | None = None,
  bias: jax.Array | None = None,
  dropout_rate: float = 0.0,
  dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Multi-head scaled dot-product attention (Vaswani et al. 2017, eq. 1).

  Args:
    q_BTNH, k_BSKH, v_BSKH: queries, keys, values; K divides N.
    mask: bool, broadcastable to [B, N, T, S], True = may attend.
    bias: added to the scores, broadcastable to [B, N, T, S].
    dropout_rate: share of the weights set to 0 (the rest grows to keep the mean); needs `dropout_key`.
    dropout_key: None for evaluation.

  Returns:
    output [B, T, N, H] in the type of v, and the weights [B, N, T, S] in float32, before dropout. A query that
    may see nothing gets 0.
  """
  sizes = expect(q_BTNH=q_BTNH, k_BSKH=k_BSKH, v_BSKH=v_BSKH)
  scores_BNTS = dot_product_scores(q_BTNH, k_BSKH)
  if bias is not None:
    scores_BNTS = scores_BNTS + bias
  numerators_BNTS, total_BNT1 = masked_exp(scores_BNTS, mask)
  kept_BNTS = numerators_BNTS
  if dropout_rate and dropout_key is not None:
    keep = jax.random.bernoulli(dropout_key, 1 - dropout_rate, kept_BNTS.shape)
    kept_BNTS = jnp.where(keep, kept_BNTS / (1 - dropout_rate), 0.0)
  kept_BNTS = kept_BNTS.astype(v_BSKH.dtype)
  if sizes["N"] == sizes["K"]:
    sums_BNTH = jnp.einsum("BNTS,BSNH->BNTH", kept_BNTS, v_BSKH)
  else:
    kept_BKGTS = kept_BNTS.reshape(sizes["B"], sizes["K"], -1, sizes["T"], sizes["S"])
    sums_BNTH = jnp.einsum("BKGTS,BSKH->BKGTH", kept_BKGTS, v_BSKH).reshape(
      sizes["B"], sizes["N"], sizes["T"], sizes["H"]
    )
  # Divided after the sum, which has H columns where the weights have S (as in Dao et al. 2022): less to divide, and
  # a shorter backward pass.
  out_BNTH = (sums_BNTH / total_BNT1).astype(v_BSKH.dtype)
  return out_BNTH.swapaxes(1, 2), numerators_BNTS / total_BNT1
