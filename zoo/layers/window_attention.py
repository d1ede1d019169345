"""Attention within the windows of a map, by the Pallas kernel or by XLA."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from zoo import partitioning
from zoo.kernels.window_attention import kernel_fits, window_attention
from zoo.layers import initializers
from zoo.layers.attention import (
  IMPLEMENTATIONS,
  check_heads,
  cosine_queries_and_keys,
  dot_product_scores,
  masked_softmax,
  resolve_implementation,
)
from zoo.layers.multi_head_attention import Attention, Projection
from zoo.layers.windows import WindowLayout
from zoo.shapes import expect

# Windows are short sequences.
WINDOW_IMPLEMENTATIONS = tuple(name for name in IMPLEMENTATIONS if name != "splash")


def resolve_window_implementation(
  name: str, width: int, num_heads: int, size: tuple[int, int], dtype: DTypeLike, dropout_rate: float
) -> str:
  """The implementation that "auto" stands for (`zoo.layers.attention.resolve_implementation`).

  With a kernel keep tokens as a matrix between dense layers, as it reads them: XLA would copy between other axes.

  Args:
    name: one of `WINDOW_IMPLEMENTATIONS`.
    width, num_heads, size: of the map.
    dtype: compute type.
    dropout_rate: of attention weights, which the kernel cannot drop.
  """
  fits = not dropout_rate and kernel_fits(width, num_heads, math.prod(size), jnp.dtype(dtype).itemsize)
  what = f"windows of a map of {size}, {num_heads} heads, width {width}"
  return resolve_implementation(name, "pallas" if fits else "xla", what)


def attend_windows(
  x_BYXD: jax.Array,
  bias_NTT: jax.Array,
  layout: WindowLayout,
  implementation: str,
  dropout_rate: float = 0.0,
  **options: Any,
) -> tuple[jax.Array, jax.Array]:
  """Attention within windows, inside a module's compact method: [B, Y, X, D] to [B, Y, X, D], and the weights.

  Both ways have the parameters of `Attention`; `options` are its attributes and its name.
  """
  if implementation != "xla":
    interpret = implementation == "pallas_interpret"
    return WindowAttention(interpret=interpret, **options)(x_BYXD, bias_NTT, layout)
  attention = Attention(dropout_rate=dropout_rate, implementation="xla", **options)
  windows_BTD, weights, _ = attention(
    layout.window_partition(x_BYXD), mask=layout.mask(x_BYXD.shape[0]), bias=bias_NTT[None]
  )
  return layout.window_reverse(windows_BTD), weights


class WindowAttention(nn.Module):
  """Multi-head self-attention within windows: [B, Y, X, D] to [B, Y, X, D].

  Attributes:
    num_heads: N; divides D. dtype: compute type. kernel_init: of the projections.
    cosine_attention: score by cosines (`zoo.layers.attention.cosine_queries_and_keys`); keys then have no bias.
    interpret: run the kernel on any platform, for tests.
  """

  num_heads: int
  dtype: DTypeLike = jnp.float32
  kernel_init: Callable = initializers.dense
  cosine_attention: bool = False
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
    project = functools.partial(Projection, skip_bias_add=True, kernel_init=self.kernel_init, dtype=self.dtype)
    padded_BYXD = layout.pad(x_BYXD)
    size, x_PD = padded_BYXD.shape[:3], padded_BYXD.reshape(-1, D)
    (q_PNH, q_bias), (k_PNH, k_bias), (v_PNH, v_bias) = (
      project(head_shape, use_bias=name != "k" or not self.cosine_attention, name=name)(x_PD) for name in "qkv"
    )
    q_bias, k_bias, v_bias = (jnp.zeros(head_shape) if a is None else a for a in (q_bias, k_bias, v_bias))
    if self.cosine_attention:
      log_scale_N = self.param("log_scale", nn.initializers.constant(np.log(10.0)), (self.num_heads,))
      q_BTNH, k_BTNH = cosine_queries_and_keys((q_PNH + q_bias.astype(self.dtype))[None], k_PNH[None], log_scale_N)
      q_PNH, k_PNH, q_bias = q_BTNH[0], k_BTNH[0], jnp.zeros(head_shape)
    q_BYXD, k_BYXD, v_BYXD = (a.reshape(*size, D) for a in (q_PNH, k_PNH, v_PNH))
    biases_3D = jnp.stack([a.reshape(D) for a in (q_bias, k_bias, v_bias)])
    static = dict(window_size=layout.window_size, shift=layout.rolled, mask_WTT=layout.static_mask())

    def attend(_, *arrays):
      return window_attention(*arrays, **static, interpret=self.interpret)

    tokens, axes = ("batch", None, None, "heads"), (("heads", None, None), (None, "heads"))
    arrays = q_BYXD, k_BYXD, v_BYXD, bias_NTT, biases_3D
    out_BYXD = partitioning.split(attend, (tokens, tokens, tokens, *axes), tokens, *arrays)
    y_PD, _ = project((D,), 2, skip_bias_add=False, name="out")(out_BYXD.reshape(-1, *head_shape))
    q_BTNH, k_BTNH = (
      layout.cut(jax.lax.stop_gradient(a + b.astype(a.dtype))).reshape(-1, math.prod(layout.window_size), *head_shape)
      for a, b in zip((q_BYXD, k_BYXD), biases_3D[:2], strict=True)
    )
    scores = dot_product_scores(q_BTNH, k_BTNH) + jax.lax.stop_gradient(bias_NTT).astype(q_BTNH.dtype)
    return layout.crop(y_PD.reshape(*size, D)), masked_softmax(scores, layout.mask(size[0]))
