"""Dropout (Srivastava et al. 2014) and stochastic depth (Huang et al. 2016)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

_LEVELS = 2**8


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
  """Sets a share `rate` of the values to 0 and divides the others by 1 - rate (Srivastava et al. 2014).

  Draws 8 random bits a value: the rate is rounded to a multiple of 1/256, but not to 0 or 1, and the mean is exact for
  the rounded rate. On a TPU v5e attention with dropout takes a fifth less time than with the 32 bits of
  `jax.random.bernoulli`.

  Args:
    x: any shape.
    rate: 0 <= rate < 1.
    key: None for evaluation, which drops nothing.

  Returns:
    like `x`
  """
  if not rate or key is None:
    return x
  dropped = min(max(round(rate * _LEVELS), 1), _LEVELS - 1)
  keep = jax.random.bits(key, x.shape, jnp.uint8) >= dropped
  return jnp.where(keep, x / (1 - dropped / _LEVELS), 0)


class Dropout(nn.Module):
  """`dropout` with a key of the rng stream "dropout"; without that stream (evaluation) the identity."""

  rate: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return dropout(x, self.rate, self.make_rng("dropout") if self.rate and self.has_rng("dropout") else None)


class DropPath(nn.Module):
  """Drops a whole residual branch for some examples: stochastic depth (Huang et al. 2016, eq. 2 and 5)."""

  @nn.compact
  def __call__(self, x: jax.Array, rate: float | jax.Array | None, examples: int = 0) -> jax.Array:
    """`rate` is a number or a scalar array; None returns `x` unchanged.

    The first axis is that of examples, or, where `examples` is their number, of the tokens of each, one after another.
    """
    if rate is None or not self.has_rng("dropout"):
      return x
    shape = (examples or x.shape[0],) + (1,) * (x.ndim - 1)
    keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, shape)
    keep = jnp.repeat(keep, len(x) // examples, 0) if examples else keep
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def drop_path_rates(maximum: float, depth: int) -> np.ndarray:
  """[L]: the rate grows linearly from 0 at the first block to `maximum` at the last (Huang et al. 2016, eq. 4)."""
  return np.linspace(0, maximum, depth)
