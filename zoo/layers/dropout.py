"""Dropout (Srivastava et al. 2014), of 16 random bits a value.

Random bits are much of what dropout costs: a generator that makes 32 at a time serves two values by them. A rate is
then a multiple of 2^-16, which is nearer to it than any run can tell.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

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


class Dropout(nn.Module):
  """Sets a share `rate` of the values to 0, in training only (Srivastava et al. 2014)."""

  rate: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return drop(x, self.rate, self.make_rng("dropout") if self.rate and self.has_rng("dropout") else None)


class DropPath(nn.Module):
  """Drops a whole residual branch for some examples: stochastic depth (Huang et al. 2016, eq. 2 and 5)."""

  @nn.compact
  def __call__(self, x: jax.Array, rate: float | jax.Array | None) -> jax.Array:
    """`rate` is a number or a scalar array; None leaves the branch as it is."""
    if rate is None or not self.has_rng("dropout"):
      return x
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def drop_path_rates(maximum: float, depth: int) -> np.ndarray:
  """[L]: the rate grows linearly from 0 at the first block to `maximum` at the last (Huang et al. 2016, eq. 4)."""
  return np.linspace(0, maximum, depth)
