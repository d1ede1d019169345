"""What the kernels for TPUs share."""

import jax
import jax.numpy as jnp

LANES, SUBLANES = 128, 8  # of a vector register of 32-bit numbers
# The name (`jax.ad_checkpoint.checkpoint_name`) of what kernels compute that takes the place of a product.
KERNEL_OUTPUT = "kernel_output"


def dot(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int) -> jax.Array:
  """Contracts axis_a of a matrix with axis_b of another, to float32; of float32 matrices with all their digits."""
  precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  return jax.lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((), ())), precision, jnp.float32)
