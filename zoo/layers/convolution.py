"""Depthwise convolution: each feature by itself, over the places around each place.

On a CPU XLA's own takes ten to twenty times as long as the multiply-adds that it consists of, written out; elsewhere it
is what runs.
"""

import jax
import jax.numpy as jnp
from jax import lax

from zoo.shapes import expect

_SUMMED = 8  # images summed in one pass over the arrays; XLA's reductions of many are slow


@jax.custom_vjp
def depthwise(x_BYXD: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves with stride 1; what is beyond the edge is 0.

  Args:
    x_BYXD: a map.
    kernel: [rows, columns, 1, D], odd rows and columns.

  Returns:
    [B, Y, X, D] in the type of x

  Raises:
    ValueError: a kernel with even rows or columns, whose middle is no place, or of other features.
  """
  width = expect(x_BYXD=x_BYXD)["D"]
  rows, columns = kernel.shape[:2]
  if rows % 2 == 0 or columns % 2 == 0 or kernel.shape[2:] != (1, width):
    raise ValueError(f"the kernel is {kernel.shape}; wanted odd rows and columns, then 1 and {width} features")
  return lax.platform_dependent(x_BYXD, kernel, cpu=_written_out, default=_convolve)


def _convolve(x_BYXD: jax.Array, kernel: jax.Array) -> jax.Array:
  layout = ("NHWC", "HWIO", "NHWC")
  return lax.conv_general_dilated(
    x_BYXD, kernel, (1, 1), "SAME", dimension_numbers=layout, feature_group_count=x_BYXD.shape[-1]
  )


def _padded(x_BYXD: jax.Array, kernel: jax.Array) -> jax.Array:
  (top, left), none = (size // 2 for size in kernel.shape[:2]), (0, 0)
  return jnp.pad(x_BYXD.astype(jnp.float32), (none, (top, top), (left, left), none))


def _written_out(x_BYXD: jax.Array, kernel: jax.Array) -> jax.Array:
  """A sum of shifted maps, which XLA makes one loop of."""
  Y, X = x_BYXD.shape[1:3]
  padded, rows, columns = _padded(x_BYXD, kernel), *kernel.shape[:2]
  shifted = ((padded[:, i : i + Y, j : j + X], kernel[i, j, 0]) for i in range(rows) for j in range(columns))
  return sum(x * weight for x, weight in shifted).astype(x_BYXD.dtype)


def _gradient_of_kernel(x_BYXD: jax.Array, kernel: jax.Array, of_output: jax.Array) -> jax.Array:
  """For each tap the sum of the products of shifted map and gradient: over some images first, then over places."""
  B, Y, X, D = x_BYXD.shape
  count = max(n for n in range(1, _SUMMED + 1) if B % n == 0)
  x, g = (a.reshape(-1, count, *a.shape[1:]) for a in (_padded(x_BYXD, kernel), of_output.astype(jnp.float32)))
  ones = jnp.ones(g.size // count // D)

  def row(i):
    shifted = lax.dynamic_slice_in_dim(x, i, Y, axis=2)
    products = (
      sum(shifted[:, n, :, j : j + X] * g[:, n] for n in range(count)).reshape(-1, D) for j in range(kernel.shape[1])
    )
    return jnp.stack([ones @ p for p in products])

  return lax.map(row, jnp.arange(kernel.shape[0]))[:, :, None].astype(kernel.dtype)


def _forward(x_BYXD, kernel):
  return depthwise(x_BYXD, kernel), (x_BYXD, kernel)


def _backward(kept, of_output):
  def written_out(x_BYXD, kernel, of_output):
    of_x = _written_out(of_output, kernel[::-1, ::-1])
    return of_x, _gradient_of_kernel(x_BYXD, kernel, of_output)

  def convolved(x_BYXD, kernel, of_output):
    return jax.vjp(_convolve, x_BYXD, kernel)[1](of_output)

  return lax.platform_dependent(*kept, of_output, cpu=written_out, default=convolved)


depthwise.defvjp(_forward, _backward)
