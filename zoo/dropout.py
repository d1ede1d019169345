"""Dropout (Srivastava et al. 2014), of 16 random bits a value.

Random bits are much of what dropout costs: a generator that makes 32 at a time serves two values by them. A rate is
then a multiple of 2^-16, which is nearer to it than any run can tell.
"""

import math

import jax
import jax.numpy as jnp

_STEPS = 2**16


def drop(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
  """Sets a share `rate` of the values to 0, and lets the others grow so that the mean is kept.

  Args:
    x: any shape.
    rate: 0 <= rate < 1.
    key: None for evaluation, in which nothing is dropped.

  Returns:
    as `x`
  """
  dropped = min(round(rate * _STEPS), _STEPS - 1)
  if not dropped or key is None:
    return x
  return jnp.where(_random_16_bits(key, x.shape) >= dropped, x / (1 - dropped / _STEPS), 0)


def _random_16_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """uint32 below 2^16."""
  if len(shape) < 3:
    return jax.random.bits(key, shape, jnp.uint32) >> 16
  # Halves are put side by side along the axis before the last, of tokens or queries: no mesh cuts it, and on a TPU it
  # is not the one of the lanes.
  *outer, size, inner = shape
  both = jax.random.bits(key, (*outer, math.ceil(size / 2), inner), jnp.uint32)
  return jnp.concatenate([both & (_STEPS - 1), both >> 16], -2)[..., :size, :]
