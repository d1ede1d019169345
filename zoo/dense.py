"""Dense layers, whose gradient a CPU computes without transposing what they were given.

The gradient of a kernel is a sum over all tokens, x^T dy. Where tokens have two axes, batch and place, XLA's CPU
compiler writes dy anew, transposed, before each such product: a tenth of a training step of BERT. With the two axes
made one there is nothing to transpose. On a TPU it is the other way round: there two axes cost nothing, and a batch of
rows whose length is no multiple of 8 would have to be copied to be made one. So which is done is decided when the
program is compiled for one or the other.
"""

import functools
import math
from collections.abc import Callable

import jax
from flax import linen as nn
from jax import lax


def _product(dimensions: tuple, precision, result_type, x: jax.Array, kernel: jax.Array) -> jax.Array:
  return lax.dot_general(x, kernel, dimensions, precision, preferred_element_type=result_type)


_dense = jax.custom_vjp(_product, nondiff_argnums=(0, 1, 2))


def _forward(*args):
  return _product(*args), args[-2:]


def _backward(dimensions, precision, result_type, saved, dy):
  x, kernel = saved
  contracted = len(dimensions[0][1])
  outer = x.ndim - contracted

  def kernel_gradient(x, dy):
    axes = tuple(range(x.ndim - contracted, x.ndim)), tuple(range(contracted))
    product = functools.partial(_product, (axes, ((), ())), precision, result_type, x)
    (gradient,) = jax.linear_transpose(product, kernel)(dy)
    return gradient

  def of_one_axis(x, dy):
    tokens = math.prod(x.shape[:outer])
    return kernel_gradient(x.reshape(tokens, *x.shape[outer:]), dy.reshape(tokens, *dy.shape[outer:]))

  (dx,) = jax.linear_transpose(lambda x: _product(dimensions, precision, result_type, x, kernel), x)(dy)
  return dx, lax.platform_dependent(x, dy, cpu=of_one_axis, default=kernel_gradient)


_dense.defvjp(_forward, _backward)


def dot_general(x, kernel, dimension_numbers, precision=None, preferred_element_type=None) -> jax.Array:
  """`jax.lax.dot_general`, but for the gradient of a product of the last axes of x and the first ones of a kernel."""
  (x_axes, kernel_axes), batch_axes = dimension_numbers
  n = len(x_axes)
  is_dense = (
    tuple(x_axes) == tuple(range(x.ndim - n, x.ndim))
    and tuple(kernel_axes) == tuple(range(n))
    and not any(map(len, batch_axes))
  )
  if not is_dense or x.ndim < n + 2:
    return lax.dot_general(x, kernel, dimension_numbers, precision, preferred_element_type)
  axes = tuple(map(int, x_axes)), tuple(map(int, kernel_axes))
  return _dense((axes, ((), ())), precision, preferred_element_type, x, kernel)


class Dense(nn.Dense):
  """[..., D] to [..., features]: x W + b."""

  dot_general: Callable = dot_general


class DenseGeneral(nn.DenseGeneral):
  """The same of several axes, such as heads and their width."""

  dot_general: Callable = dot_general
