"""Attention within windows by the Pallas kernel, with the parameters of `zoo.layers.multi_head_attention.Attention`."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from zoo import partitioning
from zoo.kernels.window_attention import window_attention
from zoo.layers import initializers
from zoo.layers.attention import check_heads, cosine, dot_product_scores, masked_softmax
from zoo.layers.windows import WindowLayout
from zoo.shapes import expect


class _Projection(nn.Module):
  """The parameters of `nn.DenseGeneral` for tokens [P, D]: the product, and the bias, float32 or 0, not yet added.

  As one product of matrices it leaves rows as the kernel reads them: with axes for heads XLA would copy them.
  """

  shape: tuple[int, ...]
  inputs: int  # axes of `shape` that are contracted
  kernel_init: Callable
  dtype: DTypeLike
  use_bias: bool = True

  @nn.compact
  def __call__(self, x_PD: jax.Array) -> tuple[jax.Array, jax.Array]:
    wide, narrow = math.prod(self.shape[: self.inputs]), math.prod(self.shape[self.inputs :])
    # Fans are those of the matrix, as in `nn.DenseGeneral`.
    kernel = self.param("kernel", lambda key, shape: self.kernel_init(key, (wide, narrow)).reshape(shape), self.shape)
    y_PD = x_PD.astype(self.dtype) @ kernel.reshape(wide, narrow).astype(self.dtype)
    if not self.use_bias:
      return y_PD, jnp.zeros(narrow)
    return y_PD, self.param("bias", nn.initializers.zeros, self.shape[self.inputs :]).reshape(-1)


class WindowAttention(nn.Module):
  """Multi-head self-attention within windows: [B, Y, X, D] to [B, Y, X, D].

  Attributes:
    num_heads: N; divides D. dtype: compute type. kernel_init: of the projections.
    cosine: score by cosines (`zoo.layers.attention.cosine`); keys then have no bias.
    interpret: run the kernel on any platform, for tests.
  """

  num_heads: int
  dtype: DTypeLike = jnp.float32
  kernel_init: Callable = initializers.dense
  cosine: bool = False
  interpret: bool = False

  @nn.compact
  def __call__(self, x_BYXD: jax.Array, bias_NTT: jax.Array, layout: WindowLayout) -> tuple[jax.Array, jax.Array]:
    """Attends.

    Args:
      x_BYXD: a map of the size of `layout`.
      bias_NTT: added to the scores.

    Returns:
      the output, and the weights [B W, N, T, T], through which no gradient passes. They are computed beside the
      kernel; `jax.jit` leaves them out where nobody reads them.
    """
    D = expect(x_BYXD=x_BYXD)["D"]
    check_heads(D, self.num_heads)
    head_shape = self.num_heads, D // self.num_heads
    project = functools.partial(_Projection, kernel_init=self.kernel_init, dtype=self.dtype)
    padded_BYXD = layout.pad(x_BYXD)
    size, x_PD = padded_BYXD.shape[:3], padded_BYXD.reshape(-1, D)
    q_PD, q_bias = project((D, *head_shape), 1, name="q")(x_PD)
    k_PD, k_bias = project((D, *head_shape), 1, name="k", use_bias=not self.cosine)(x_PD)
    v_PD, v_bias = project((D, *head_shape), 1, name="v")(x_PD)
    if self.cosine:
      log_scale_N = self.param("log_scale", nn.initializers.constant(np.log(10.0)), (self.num_heads,))
      q_PD = q_PD + q_bias.astype(self.dtype)
      q_BTNH, k_BTNH = cosine(q_PD.reshape(1, -1, *head_shape), k_PD.reshape(1, -1, *head_shape), log_scale_N)
      q_PD, k_PD, q_bias = q_BTNH.reshape(-1, D), k_BTNH.reshape(-1, D), jnp.zeros(D)
    q_BYXD, k_BYXD, v_BYXD = (a.reshape(*size, -1) for a in (q_PD, k_PD, v_PD))
    static = dict(window_size=layout.window_size, shift=layout.rolled, mask_WTT=layout.static_mask())

    def attend(_, *arrays):
      return window_attention(*arrays, **static, interpret=self.interpret)

    tokens, axes = ("batch", None, None, "heads"), (("heads", None, None), (None, "heads"))
    arrays = q_BYXD, k_BYXD, v_BYXD, bias_NTT, jnp.stack([q_bias, k_bias, v_bias])
    out_BYXD = partitioning.split(attend, (tokens, tokens, tokens, *axes), tokens, *arrays)
    y_PD, bias_D = project((*head_shape, D), 2, name="out")(out_BYXD.reshape(-1, D))
    y_PD = y_PD + bias_D.astype(self.dtype)
    q_BTNH, k_BTNH = (
      layout.cut(jax.lax.stop_gradient(a + b.astype(a.dtype))).reshape(-1, math.prod(layout.window_size), *head_shape)
      for a, b in ((q_BYXD, q_bias), (k_BYXD, k_bias))
    )
    scores = dot_product_scores(q_BTNH, k_BTNH) + jax.lax.stop_gradient(bias_NTT).astype(q_BTNH.dtype)
    return layout.crop(y_PD.reshape(*size, D)), masked_softmax(scores, layout.mask(size[0]))
