"""Depthwise convolution: every feature by itself.

XLA's CPU compiler has no fast grouped convolution: on two cores a 7 x 7 convolution of 8 maps of 56 x 56 x 96 takes
186 ms, and 1090 ms with its gradients, where the sum of 49 shifted maps takes 17 and 350. Both forms are plain
differentiable JAX; which one runs is decided when a program is lowered for a platform, so a program that is compiled
for a TPU on a CPU host has the convolution.
"""

import jax
import jax.numpy as jnp
from jax import lax

from zoo.shapes import expect


def depthwise_conv(x_BYXD: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves with stride 1 and zero padding, which keeps the size of the map.

  Args:
    x_BYXD: a map.
    kernel: [rows, columns, 1, D], odd rows and columns.

  Returns:
    [B, Y, X, D] in the type of x

  Raises:
    ValueError: a kernel with even rows or columns, or of other features.
  """
  width = expect(x_BYXD=x_BYXD)["D"]
  rows, columns = kernel.shape[:2]
  if rows % 2 == 0 or columns % 2 == 0 or kernel.shape[2:] != (1, width):
    raise ValueError(f"the kernel is {kernel.shape}; wanted odd rows and columns, then 1 and {width} features")
  return lax.platform_dependent(x_BYXD, kernel, cpu=sum_of_shifts, default=grouped_conv)


def grouped_conv(x_BYXD: jax.Array, kernel: jax.Array) -> jax.Array:
  """XLA's convolution with as many groups as features."""
  layout = ("NHWC", "HWIO", "NHWC")
  return lax.conv_general_dilated(
    x_BYXD, kernel, (1, 1), "SAME", dimension_numbers=layout, feature_group_count=x_BYXD.shape[-1]
  )


@jax.checkpoint  # else autodiff keeps every shifted map
def sum_of_shifts(x_BYXD: jax.Array, kernel: jax.Array) -> jax.Array:
  """The sum over the kernel's taps of the shifted map times the tap's weights, in float32; XLA fuses it to one loop."""
  Y, X = x_BYXD.shape[1:3]
  rows, columns = kernel.shape[:2]
  padding = (0, 0), (rows // 2,) * 2, (columns // 2,) * 2, (0, 0)
  padded = jnp.pad(x_BYXD.astype(jnp.float32), padding)
  total_BYXD = jnp.zeros(x_BYXD.shape, jnp.float32)
  for i in range(rows):
    for j in range(columns):
      total_BYXD += padded[:, i : i + Y, j : j + X] * kernel[i, j, 0]
  return total_BYXD.astype(x_BYXD.dtype)
