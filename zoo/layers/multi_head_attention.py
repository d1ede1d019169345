"""Multi-head attention as a module: projections of tokens to heads and back, and the cache of a decoder."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from zoo.kernels import long_attention
from zoo.kernels.short_attention import time_major
from zoo.layers import initializers, position_embeddings
from zoo.layers.attention import check_heads, cosine_queries_and_keys, dot_product_attention, implementation_for
from zoo.shapes import expect


class Cache(NamedTuple):
  """Keys and values [B, K, S, H] that later queries attend to: in the order in which a head reads them.

  Kept token by token, [B, S, K, H], they would all be reordered for each new token.
  """

  k_BKSH: jax.Array
  v_BKSH: jax.Array

  def biased(self, k_KH: jax.Array, v_KH: jax.Array) -> "Cache":
    """The cache with biases added."""
    return Cache(*(a + b[:, None].astype(a.dtype) for a, b in zip(self, (k_KH, v_KH), strict=True)))

  def updated(self, new: "Cache", index: jax.Array) -> "Cache":
    """The cache with the keys and values of `new` from position `index` on."""
    return Cache(*(jax.lax.dynamic_update_slice_in_dim(a, b, index, 2) for a, b in zip(self, new, strict=True)))


class Projection(nn.Module):
  """`nn.DenseGeneral` from tokens to heads, or back, as a product of flat arrays, for kernels.

  XLA gives [B, T, N, H] a layout of its own and copies it to the row-major one that a kernel reads. It has none to
  choose where the product's result is [B, T, N H], or [T, B, N H], as the kernel wants it (`time_major`).

  Attributes:
    features: (N, H), or (D,) back to tokens. inputs: the number of axes that are contracted, the last ones.
    time_major: put T before B. skip_bias_add: leave adding the bias to the kernel.
    The others: of `nn.DenseGeneral`.
  """

  features: tuple[int, ...]
  inputs: int = 1
  time_major: bool = False
  skip_bias_add: bool = False
  use_bias: bool = True
  kernel_init: Callable = initializers.dense
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """[..., *inputs] to [..., *features], and the bias if it is not yet added."""
    tokens, into = x.shape[: -self.inputs], x.shape[-self.inputs :]
    flat = math.prod(into), math.prod(self.features)
    # Fans are those of the matrix, as in `nn.DenseGeneral`.
    kernel = self.param("kernel", lambda key: self.kernel_init(key, flat).reshape(into + self.features))
    bias = self.param("bias", nn.initializers.zeros, self.features) if self.use_bias else None
    x = x.reshape(*tokens, -1).astype(self.dtype)
    y = (x.swapaxes(0, 1) if self.time_major else x) @ kernel.reshape(flat).astype(self.dtype)
    if bias is not None and not self.skip_bias_add:
      y, bias = y + bias.reshape(-1).astype(self.dtype), None
    return (y.swapaxes(0, 1) if self.time_major else y).reshape(*tokens, *self.features), bias


class Attention(nn.Module):
  """Multi-head attention: queries from x [B, T, D], keys and values from y [B, S, D], to [B, T, D].

  Attributes:
    num_heads: N; divides D.
    dropout_rate: share of attention weights dropped in training.
    relative_length: T for which to hold relative position keys (`position_embeddings.relative_scores`); 0 for none.
    dtype: compute type.
    num_kv_heads: K; divides N, and each key and value head serves N / K query heads (Ainslie et al. 2023); 0 for N.
    rotary: turn queries and keys by their positions (`position_embeddings.apply_rotary`).
    kernel_init: of the projections.
    cosine_attention: score by cosines (`attention.cosine_queries_and_keys`); keys then have no bias.
    implementation: one of `zoo.layers.attention.IMPLEMENTATIONS`; with a cache always "xla".
  """

  num_heads: int
  dropout_rate: float = 0.0
  relative_length: int = 0
  dtype: DTypeLike = jnp.float32
  num_kv_heads: int = 0
  rotary: bool = False
  kernel_init: Callable = initializers.dense
  cosine_attention: bool = False
  implementation: str = "auto"

  @nn.compact
  def __call__(
    self,
    x_BTD: jax.Array,
    y_BSD: jax.Array | None = None,
    *,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    position_BT: jax.Array | None = None,
    cache: Cache | None = None,
    index: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array, Cache]:
    """Attends; `y_BSD=None` is self-attention.

    Args:
      x_BTD: input of the queries.
      y_BSD: input of the keys and values.
      mask, bias: see `attention.dot_product_attention`.
      position_BT: of the tokens of `x_BTD`, for `rotary`, which is for self-attention.
      cache: keys and values, used instead of projections of `y_BSD`.
      index: where in the cache to put the keys and values of `x_BTD` first, for decoding token by token.

    Returns:
      the output [B, T, D], the weights [B, N, T, S], and the keys and values attended to.
    """
    width = expect(x_BTD=x_BTD, y_BSD=y_BSD)["D"]
    check_heads(width, self.num_heads)
    y_BSD, chosen = x_BTD if y_BSD is None else y_BSD, "xla"
    N, K, H = self.num_heads, self.num_kv_heads or self.num_heads, width // self.num_heads
    heads_BTNH = *x_BTD.shape[:2], N, H
    drops = bool(self.dropout_rate) and self.has_rng("dropout")
    if cache is None:
      splash_fits = not self.relative_length and long_attention.kernel_fits(mask, bias, drops)
      chosen = implementation_for(self.implementation, heads_BTNH, y_BSD.shape[1], self.dtype, splash_fits)
    for_kernel = chosen not in ("xla", "splash")
    swapped = for_kernel and time_major(heads_BTNH, y_BSD.shape[1])
    skip_bias_add = for_kernel and not (self.rotary or self.cosine_attention or self.relative_length)

    project = functools.partial(self._project, for_kernel, swapped, skip_bias_add)
    q_BTNH, q_bias = project("q", x_BTD, (N, H))
    q_BTNH, biases = self._rotate(q_BTNH, position_BT), None
    if cache is None or index is not None:
      k_BSKH, k_bias = project("k", y_BSD, (K, H), use_bias=not self.cosine_attention)
      v_BSKH, v_bias = project("v", y_BSD, (K, H))
      k_BSKH = self._rotate(k_BSKH, position_BT)
      new = Cache(k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2))
      cache = new if cache is None or index is None else cache.updated(new, index)
      if q_bias is not None and k_bias is not None and v_bias is not None:
        biases = q_bias, k_bias, v_bias
    k_BSKH, v_BSKH = (a.swapaxes(1, 2) for a in cache)
    if self.relative_length:
      table = self.param("relative", initializers.position, (2 * self.relative_length - 1, H))
      scores = position_embeddings.relative_scores(q_BTNH, table)
      bias = scores if bias is None else bias + scores
    if self.cosine_attention:
      log_scale_N = self.param("log_scale", nn.initializers.constant(np.log(10.0)), (N,))
      q_BTNH, k_BSKH = cosine_queries_and_keys(q_BTNH, k_BSKH, log_scale_N)
    out_BTNH, weights = dot_product_attention(
      *(q_BTNH, k_BSKH, v_BSKH),
      biases=biases,
      mask=mask,
      bias=bias,
      dropout_rate=self.dropout_rate,
      dropout_key=self.make_rng("dropout") if drops else None,
      implementation=chosen,
    )
    return project("out", out_BTNH, (width,))[0], weights, cache if biases is None else cache.biased(*biases[1:])

  @nn.nowrap  # no level of its own in the names of operations
  def _project(
    self, for_kernel: bool, swapped: bool, skip_bias_add: bool, name: str, x: jax.Array, features: tuple, **options: Any
  ) -> tuple[jax.Array, jax.Array | None]:
    """The projection `name` to or from heads, and its bias where that is not added: a kernel adds it."""
    options |= dict(kernel_init=self.kernel_init, dtype=self.dtype, name=name)
    if not for_kernel:
      return nn.DenseGeneral(features, axis=tuple(range(2, x.ndim)), **options)(x), None
    return Projection(features, x.ndim - 2, swapped, skip_bias_add and name != "out", **options)(x)

  def _rotate(self, x_BTNH: jax.Array, position_BT: jax.Array | None) -> jax.Array:
    if not self.rotary:
      return x_BTNH
    if position_BT is None:
      raise ValueError("rotary attention needs position_BT")
    return position_embeddings.apply_rotary(x_BTNH, position_BT)


# Logical axes of the parameters (`zoo.partitioning`).
ATTENTION_AXES = {
  "q/kernel": ("embed", "heads", "head_dim"),
  "q/bias": ("heads", "head_dim"),
  "(k|v)/kernel": ("embed", "kv_heads", "head_dim"),
  "(k|v)/bias": ("kv_heads", "head_dim"),
  "out/kernel": ("heads", "head_dim", "embed"),
  "out/bias": ("embed",),
  "relative": ("offset", "head_dim"),
  "log_scale": ("heads",),
}
