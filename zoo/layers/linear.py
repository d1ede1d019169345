"""Dense layers, whose gradient a CPU computes without transposing what they were given.

The gradient of a kernel is a sum over all tokens, x^T dy. Where tokens have two axes, batch and place, XLA's CPU
compiler writes dy anew, transposed, before each such product: a tenth of a training step of BERT. With the two axes
made one, and heads and their width too, there is nothing to transpose. On a TPU it is the other way round: there two
axes cost nothing, and a batch of rows whose length is no multiple of 8 would have to be copied to be made one. So which
is done is decided when the program is compiled for one or the other.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike

from zoo import compat
from zoo.layers import initializers
from zoo.layers.broadcast import spread
from zoo.shapes import expect


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
    axes = (((0,), (0,)), ((), ()))
    gradient = _product(axes, precision, result_type, x.reshape(tokens, -1), dy.reshape(tokens, -1))
    return gradient.reshape(kernel.shape).astype(kernel.dtype)

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


class Dense(nn.Module):
  """x W + b over the last axes: [..., D] to [..., features]; Linen's `Dense` and `DenseGeneral` in one.

  Attributes:
    features: sizes of the new axes, such as heads and their width; an int for one.
    axes: how many of the last axes of x are summed over.
    use_bias: whether to add b.
    kernel_init, bias_init: see `zoo.layers.initializers`; a kernel is drawn as a matrix.
    dtype: compute type; parameters stay float32.
  """

  features: int | tuple[int, ...]
  axes: int = 1
  use_bias: bool = True
  kernel_init: Callable = initializers.dense
  bias_init: Callable = nn.initializers.zeros
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    features = (self.features,) if isinstance(self.features, int) else tuple(self.features)
    inputs, outputs = x.shape[x.ndim - self.axes :], math.prod(features)

    def kernel_init(key):
      return self.kernel_init(key, (math.prod(inputs), outputs), jnp.float32).reshape(*inputs, *features)

    def bias_init(key):
      return self.bias_init(key, (outputs,), jnp.float32).reshape(features)

    kernel = self.param("kernel", kernel_init).astype(self.dtype)
    contracted = tuple(range(x.ndim - self.axes, x.ndim)), tuple(range(self.axes))
    y = dot_general(x.astype(self.dtype), kernel, (contracted, ((), ())))
    if not self.use_bias:
      return y
    return y + spread(self.param("bias", bias_init).astype(self.dtype), y.shape)


def tied_logits(x_BTD: jax.Array, table_VD: jax.Array) -> jax.Array:
  """How well each word's embedding fits: [B, T, V], summed in float32 (Press & Wolf 2017, 2)."""
  expect(x_BTD=x_BTD, table_VD=table_VD)
  table_DV = table_VD.astype(x_BTD.dtype).T

  def product(x, w):
    return dot_general(x, w, (((x.ndim - 1,), (0,)), ((), ())), preferred_element_type=jnp.float32)

  return compat.float32_product(product, x_BTD, table_DV)
