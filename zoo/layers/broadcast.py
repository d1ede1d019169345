"""Broadcasting what all tokens share, such as biases, so that a CPU sums its gradient by a matrix product.

The gradient of what is added to every token is the sum over all tokens. XLA's CPU compiler hands such a sum over the
first axes to a library that reads them against the grain, and where heads come before tokens it transposes them first:
a tenth of a training step of Swin. A row of ones times the matrix of all tokens is the same sum, as fast as any matrix
product. A TPU sums as well by itself.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax


def spread(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """`jnp.broadcast_to`, whose gradient a CPU sums by a matrix product over the first axes that `x` does not have.

  Args:
    x: broadcastable to `shape`; its missing axes are the first ones.
    shape: of what it is to be combined with.

  Returns:
    an array of `shape`, in the type of x
  """
  x = x.reshape((1,) * (len(shape) - x.ndim) + x.shape)
  first = next((axis for axis, size in enumerate(x.shape) if size != 1), x.ndim)
  x = jnp.broadcast_to(x.reshape(x.shape[first:]), shape[first:])
  return _spread(shape[:first], x) if first else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _spread(first: tuple[int, ...], x: jax.Array) -> jax.Array:
  return jnp.broadcast_to(x, (*first, *x.shape))


def _forward(first, x):
  return _spread(first, x), None


_spread.defvjp(_forward, lambda first, _, dy: (sum_of_first(dy, len(first)),))


def sum_of_first(x: jax.Array, axes: int) -> jax.Array:
  """The sum over the first `axes`, by a matrix product on a CPU; in the type of x, added up in float32."""

  def product(x):
    rows = x.reshape(math.prod(x.shape[:axes]), -1)
    ones = jnp.ones((1, len(rows)), x.dtype)
    total = lax.dot_general(ones, rows, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    return total.astype(x.dtype).reshape(x.shape[axes:])

  return lax.platform_dependent(x, cpu=product, default=lambda x: x.sum(range(axes)))
