"""Attention: scores, a masked softmax over the keys, a weighted sum of the values.

Pure functions of queries, keys and values. A score function gives [B, N, T, S];
`attention_pool` turns scores of any kind into weights, and sums the values by them:

    scaled dot product  `dot_product_scores`  many heads; `dot_product_attention` in full
    dot product         `dot_scores`          Luong et al. 2015, "dot"
    bilinear            `general_scores`      Luong et al. 2015, "general"
    additive            `additive_scores`     Bahdanau et al. 2015
    Gaussian kernel     `gaussian_scores`     Nadaraya 1964 and Watson 1964: regression by the neighbours
    none                `uniform_scores`      average pooling: every key is as good as any other

All but the first have one head, N = 1, so that masks and weights have the same axes everywhere. Modules with
parameters are those of `zoo/layers/multi_head_attention.py` and `zoo/layers/pooling.py`.
"""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from zoo import partitioning
from zoo.errors import nearest
from zoo.kernels import long_attention, short_attention
from zoo.layers.dropout import dropout
from zoo.shapes import expect

# What computes attention: "auto" is a kernel on TPUs, where one can, and XLA elsewhere; "pallas" keeps whole rows of
# scores in VMEM, for up to 1,024 tokens, "splash" blocks of them, for more; "pallas_interpret" runs the former on any
# platform, for tests.
IMPLEMENTATIONS = "auto", "xla", "pallas", "splash", "pallas_interpret"


@functools.cache
def _log_choice(chosen: str, what: str) -> None:
  logging.getLogger(__name__).info("attention by %s: %s", chosen, what)


def resolve_implementation(name: str, kernel: str, what: str) -> str:
  """The implementation that "auto" stands for where it is traced; logged once.

  Args:
    name: one of `IMPLEMENTATIONS`; all but "auto" are returned as they are.
    kernel: the one to take on a TPU, "xla" if none can.
    what: sizes, for the log.

  Raises:
    ValueError: another name.
  """
  if name not in IMPLEMENTATIONS:
    raise ValueError(f"unknown attention {name!r}{nearest(name, IMPLEMENTATIONS)}")
  if name != "auto":
    return name
  chosen = kernel if partitioning.platform() == "tpu" else "xla"
  _log_choice(chosen, what)
  return chosen


def masked_softmax(scores: jax.Array, mask: jax.Array | None = None) -> jax.Array:
  """Softmax over the last axis, over the entries where `mask` is True.

  Args:
    scores: [..., S], any float type; computed in float32.
    mask: bool, broadcastable to `scores`, True = may attend; None for all.

  Returns:
    [..., S] float32. A row whose mask is all False is all 0, and so are its gradients.
  """
  # Written out for the TPU, which with `jax.nn.softmax` keeps a float32 copy of bfloat16 scores. Shifting the scores in
  # their own type rounds them no more than they already are.
  if mask is None:
    shift = scores.max(-1, keepdims=True)
  else:
    # A finite floor instead of -inf, so that a row whose mask is all False has a finite gradient. Half of it as a
    # shift leaves such a row far below 0: its exponentials are 0, not 1.
    floor = jnp.finfo(scores.dtype).min
    scores = jnp.where(mask, scores, floor)
    shift = jnp.maximum(scores.max(-1, keepdims=True), floor / 2)
  weights = jnp.exp((scores - jax.lax.stop_gradient(shift)).astype(jnp.float32))
  total = weights.sum(-1, keepdims=True)
  return weights / (total if mask is None else jnp.where(total > 0, total, 1.0))


def check_shared_heads(num_heads: int, key_heads: int) -> None:
  """Raises ValueError where N query heads cannot share K key heads evenly; it names numbers that can."""
  if num_heads % key_heads:
    fitting = [k for k in range(1, num_heads + 1) if num_heads % k == 0]
    raise ValueError(f"{num_heads} query heads cannot share {key_heads} key heads evenly; try one of {fitting}")


def dot_product_scores(q_BTNH: jax.Array, k_BSKH: jax.Array) -> jax.Array:
  """Scaled dot products, q k^T / sqrt(H) (Vaswani et al. 2017, eq. 1).

  Query head n reads key head n // (N / K), so K = N is multi-head, 1 < K < N grouped-query (Ainslie et al.
  2023) and K = 1 multi-query attention (Shazeer 2019).

  Returns:
    [B, N, T, S] in the type of q

  Raises:
    ValueError: N is no multiple of K.
  """
  sizes = expect(q_BTNH=q_BTNH, k_BSKH=k_BSKH)
  q_BTNH = q_BTNH * sizes["H"] ** -0.5  # on q, the smaller operand, rather than on the scores
  if sizes["N"] == sizes["K"]:
    return jnp.einsum("BTNH,BSNH->BNTS", q_BTNH, k_BSKH)
  check_shared_heads(sizes["N"], sizes["K"])
  q_BTKGH = q_BTNH.reshape(*q_BTNH.shape[:2], sizes["K"], -1, sizes["H"])
  scores = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH)
  return scores.reshape(sizes["B"], sizes["N"], sizes["T"], sizes["S"])


def l2_normalize(x: jax.Array) -> jax.Array:
  """Vectors [..., H] of length 1, computed in float32, in the type of x; one of 0 stays, and passes no gradient."""
  wide = x.astype(jnp.float32)
  square = jnp.square(wide).sum(-1, keepdims=True)
  real = square > 1e-24  # where PyTorch's `normalize` begins to divide by the length
  return jnp.where(real, wide * jax.lax.rsqrt(jnp.where(real, square, 1.0)), 0.0).astype(x.dtype)


def cosine_queries_and_keys(
  q_BTNH: jax.Array, k_BSKH: jax.Array, log_scale_N: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Queries and keys whose scaled dot product is a scaled cosine, cos(q, k) / tau (Swin V2, Liu et al. 2022, eq. 2).

  Args:
    q_BTNH, k_BSKH: queries and keys.
    log_scale_N: log(1 / tau), learned for each head; tau is never below 0.01.

  Returns:
    queries and keys for `dot_product_attention` and `dot_product_scores`
  """
  sizes = expect(q_BTNH=q_BTNH, k_BSKH=k_BSKH, log_scale_N=log_scale_N)
  scale_N = jnp.exp(jnp.minimum(log_scale_N, np.log(100.0))) * sizes["H"] ** 0.5  # by whose inverse they will be scaled
  return (l2_normalize(q_BTNH) * scale_N[:, None]).astype(q_BTNH.dtype), l2_normalize(k_BSKH)


def dot_scores(q_BTQ: jax.Array, k_BSQ: jax.Array) -> jax.Array:
  """Dot products as they are, q^T k (Luong et al. 2015, 3.1, "dot").

  Returns:
    [B, 1, T, S] float32
  """
  expect(q_BTQ=q_BTQ, k_BSQ=k_BSQ)
  return jnp.einsum("BTQ,BSQ->BTS", q_BTQ, k_BSQ, preferred_element_type=jnp.float32)[:, None]


def general_scores(q_BTQ: jax.Array, k_BSE: jax.Array, bilinear_QE: jax.Array) -> jax.Array:
  """A bilinear form, q^T W k, for queries and keys of any widths (Luong et al. 2015, 3.1, "general").

  Args:
    q_BTQ, k_BSE: queries and keys.
    bilinear_QE: W.

  Returns:
    [B, 1, T, S] float32
  """
  expect(q_BTQ=q_BTQ, k_BSE=k_BSE, bilinear_QE=bilinear_QE)
  return dot_scores(jnp.einsum("BTQ,QE->BTE", q_BTQ, bilinear_QE), k_BSE)


def additive_scores(
  q_BTQ: jax.Array, k_BSE: jax.Array, query_QA: jax.Array, key_EA: jax.Array | None, score_A: jax.Array
) -> jax.Array:
  """A small network of query and key, v^T tanh(W_q q + W_k k) (Bahdanau et al. 2015, A.1.2; no biases there).

  Args:
    q_BTQ, k_BSE: queries and keys, of any widths.
    query_QA, key_EA: W_q and W_k, to A hidden units; W_k is None where the keys have gone through it already.
    score_A: v.

  Returns:
    [B, 1, T, S] float32. Needs memory for B x T x S x A hidden units, A times that of a dot product.
  """
  expect(q_BTQ=q_BTQ, k_BSE=k_BSE, query_QA=query_QA, key_EA=key_EA, score_A=score_A)
  q_BTA = jnp.einsum("BTQ,QA->BTA", q_BTQ, query_QA)
  k_BSA = k_BSE if key_EA is None else jnp.einsum("BSE,EA->BSA", k_BSE, key_EA)
  hidden_BTSA = jnp.tanh(q_BTA[:, :, None] + k_BSA[:, None])
  return jnp.einsum("BTSA,A->BTS", hidden_BTSA, score_A, preferred_element_type=jnp.float32)[:, None]


def gaussian_scores(q_BTQ: jax.Array, k_BSQ: jax.Array, inverse_width: float | jax.Array = 1.0) -> jax.Array:
  """The logarithm of a Gaussian kernel, -|w (q - k)|^2 / 2 (Nadaraya 1964, Watson 1964).

  With these scores attention is kernel regression: a query's value is the mean of its neighbours' values, each
  weighted by how near its key is.

  Args:
    q_BTQ, k_BSQ: points; Q = 1 for scalars.
    inverse_width: w, the inverse of the kernel's standard deviation: a scalar, or [Q] for one along each coordinate.

  Returns:
    [B, 1, T, S] float32
  """
  expect(q_BTQ=q_BTQ, k_BSQ=k_BSQ)
  # The differences themselves: |q|^2 - 2 q k + |k|^2 is faster, but has no digits left where q and k are near.
  distance_BTSQ = inverse_width * (q_BTQ[:, :, None] - k_BSQ[:, None]).astype(jnp.float32)
  return -0.5 * jnp.square(distance_BTSQ).sum(-1)[:, None]


def uniform_scores(q_BTQ: jax.Array, k_BSE: jax.Array) -> jax.Array:
  """No attention: all scores are 0, so what is pooled is the average of the values a query may see.

  Returns:
    [B, 1, T, S] float32
  """
  sizes = expect(q_BTQ=q_BTQ, k_BSE=k_BSE)
  return jnp.zeros((sizes["B"], 1, sizes["T"], sizes["S"]), jnp.float32)


def attention_pool(
  scores_BNTS: jax.Array,
  v_BSKH: jax.Array,
  *,
  mask: jax.Array | None = None,
  dropout_rate: float = 0.0,
  dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Weights from scores, and the values summed by them (Vaswani et al. 2017, eq. 1; Bahdanau et al. 2015, eq. 5, 6).

  Args:
    scores_BNTS: scores, from any score function.
    v_BSKH: values; K divides N.
    mask: bool, broadcastable to [B, N, T, S], True = may attend.
    dropout_rate: share of the weights set to 0 (the rest grows to keep the mean); needs `dropout_key`.
    dropout_key: None for evaluation.

  Returns:
    output [B, T, N, H] in the type of v, and the weights [B, N, T, S] in float32, before dropout. A query that
    may see nothing gets 0.

  Raises:
    ValueError: N is no multiple of K.
  """
  sizes = expect(scores_BNTS=scores_BNTS, v_BSKH=v_BSKH)
  check_shared_heads(sizes["N"], sizes["K"])
  weights_BNTS = masked_softmax(scores_BNTS, mask)
  kept_BNTS = dropout(weights_BNTS.astype(v_BSKH.dtype), dropout_rate, dropout_key)
  if sizes["N"] == sizes["K"]:
    return jnp.einsum("BNTS,BSNH->BTNH", kept_BNTS, v_BSKH), weights_BNTS
  kept_BKGTS = kept_BNTS.reshape(sizes["B"], sizes["K"], -1, sizes["T"], sizes["S"])
  out_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", kept_BKGTS, v_BSKH)
  return out_BTKGH.reshape(sizes["B"], sizes["T"], sizes["N"], sizes["H"]), weights_BNTS


def implementation_for(name: str, heads_BTNH: tuple[int, ...], keys: int, dtype: DTypeLike, splash_fits: bool) -> str:
  """`resolve_implementation` for queries of shape [B, T, N, H] and S keys.

  Raises:
    ValueError: an unknown name, or "splash" where not `splash_fits` (`zoo.kernels.long_attention.kernel_fits`).
  """
  _, T, N, H = heads_BTNH
  what, kernel = f"{T} queries, {keys} keys, {N} heads of width {H}", "xla"
  if short_attention.kernel_fits(heads_BTNH, keys, jnp.dtype(dtype).itemsize):
    kernel = "pallas"
  elif splash_fits and max(T, keys) > short_attention.MAX_LENGTH:
    kernel = "splash"
  if name == "splash" and not splash_fits:
    raise ValueError(
      f"attention is 'splash', of {what}: it can have no bias, no dropout of weights and no mask but one of keys "
      "[B, 1, 1, S]; use 'auto' or 'xla'"
    )
  return resolve_implementation(name, kernel, what)


def dot_product_attention(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  *,
  biases: tuple[jax.Array, jax.Array, jax.Array] | None = None,
  mask: jax.Array | None = None,
  bias: jax.Array | None = None,
  dropout_rate: float = 0.0,
  dropout_key: jax.Array | None = None,
  implementation: str = "xla",
) -> tuple[jax.Array, jax.Array]:
  """Multi-head scaled dot-product attention (Vaswani et al. 2017, eq. 1).

  Args:
    q_BTNH, k_BSKH, v_BSKH: queries, keys, values; K divides N.
    biases: [N, H], [K, H], [K, H], added to them; the kernel does so faster, and sums their gradients.
    mask: bool, broadcastable to [B, N, T, S], True = may attend.
    bias: added to the scores, broadcastable to [B, N, T, S].
    dropout_rate: share of the weights set to 0 (the rest grows to keep the mean); needs `dropout_key`.
    dropout_key: None for evaluation.
    implementation: "xla", or on TPUs "pallas" for the output by `zoo.kernels.short_attention`, or "splash" by
      `zoo.kernels.long_attention`. The weights are then computed beside it; `jax.jit` leaves them out where nobody
      reads them. See `IMPLEMENTATIONS`.

  Returns:
    output [B, T, N, H] in the type of v, and the weights [B, N, T, S] in float32, before dropout. A query that
    may see nothing gets 0.
  """
  expect(q_BTNH=q_BTNH, k_BSKH=k_BSKH, v_BSKH=v_BSKH)
  splash_fits = long_attention.kernel_fits(mask, bias, bool(dropout_rate) and dropout_key is not None)
  implementation = implementation_for(implementation, q_BTNH.shape, k_BSKH.shape[1], q_BTNH.dtype, splash_fits)
  q, k, v = q_BTNH, k_BSKH, v_BSKH
  if biases is not None:
    q, k, v = (a + b.astype(a.dtype) for a, b in zip((q, k, v), biases, strict=True))
  scores_BNTS = dot_product_scores(q, k)
  if bias is not None:
    # In the type of the scores: a float32 bias would make them all float32, twice the memory.
    scores_BNTS = scores_BNTS + bias.astype(scores_BNTS.dtype)
  if implementation == "xla":
    return attention_pool(scores_BNTS, v, mask=mask, dropout_rate=dropout_rate, dropout_key=dropout_key)
  if implementation == "splash":
    return long_attention.long_attention(q, k, v, mask=mask), masked_softmax(scores_BNTS, mask)
  out_BTNH = short_attention.short_attention(
    *(q_BTNH, k_BSKH, v_BSKH),
    biases=biases,
    mask=mask,
    bias=bias,
    dropout_rate=dropout_rate,
    dropout_key=dropout_key,
    interpret=implementation == "pallas_interpret",
  )
  return out_BTNH, masked_softmax(scores_BNTS, mask)


def check_heads(width: int, num_heads: int) -> None:
  """Raises ValueError where the heads do not divide the width; it names numbers that do."""
  if width % num_heads:
    fitting = [n for n in range(1, width + 1) if width % n == 0 and n <= 4 * num_heads]
    raise ValueError(f"{num_heads} heads do not divide the width {width}; try one of {fitting}")
