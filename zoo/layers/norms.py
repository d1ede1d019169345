"""Normalisation layers.

All are called `norm(x, padding_mask=None)` with tokens `[..., D]`; `padding_mask` is bool `[...]`, False for padding.
`LayerNorm` and `RMSNorm` normalise each token by itself and ignore it; `BatchNorm` and `PowerNorm` take their
statistics over all real tokens, keep running statistics in the collection "batch_stats", and train where it is mutable.
All compute in float32 and return the type `dtype`.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from zoo.errors import nearest

STATISTICS = "batch_stats"  # the collection of running statistics; Flax's own name for it
# Statistics of the backward pass: the gradient of the loss with respect to one is its change, which the training step
# adds to it.
BACKWARD_STATISTICS = "backward_stats"


class LayerNorm(nn.LayerNorm):
  """Layer normalisation (Ba et al. 2016, eq. 3), statistics in float32 whatever the compute type.

  The variance is the mean of the squared deviations: E[x^2] - E[x]^2, Linen's default, loses digits that parity with
  published implementations needs.
  """

  use_fast_variance: bool = False

  def __call__(self, x: jax.Array, padding_mask: jax.Array | None = None) -> jax.Array:
    """Tokens [..., D] to [..., D]; each by itself, so it does not matter what `padding_mask` is."""
    return super().__call__(x)


class RMSNorm(nn.RMSNorm):
  """A token divided by its root mean square, and scaled (Zhang & Sennrich 2019, eq. 4); no mean, no bias."""

  def __call__(self, x: jax.Array, padding_mask: jax.Array | None = None) -> jax.Array:
    """Tokens [..., D] to [..., D]; each by itself, so it does not matter what `padding_mask` is."""
    return super().__call__(x)


class BatchNorm(nn.BatchNorm):
  """Each feature, over all real tokens, to mean 0 and variance 1 (Ioffe & Szegedy 2015, alg. 1 and 2).

  The running variance is that of the batch, divided by the number of tokens; PyTorch's by one less. A `momentum` of
  0.9 is PyTorch's 0.1.
  """

  momentum: float = 0.9
  use_fast_variance: bool = False

  def __call__(self, x: jax.Array, padding_mask: jax.Array | None = None) -> jax.Array:
    """Tokens [..., D] to [..., D]."""
    mask = None if padding_mask is None else padding_mask[..., None]
    return super().__call__(x, use_running_average=not self.is_mutable_collection(STATISTICS), mask=mask)


class PowerNorm(nn.Module):
  """Features divided by their running quadratic mean (PowerNorm; Shen et al. 2020, "PN", alg. 2).

  Batch norm for text, whose batches differ too much for statistics of one batch: no mean is taken away, and the
  forward pass divides by the running quadratic mean psi of the batches before,

      x_hat = x / psi,   y = gamma x_hat + beta,   psi^2 <- alpha psi^2 + (1 - alpha) psi_B^2,

  where psi_B^2 is the mean of x^2 over this batch's tokens. Had it divided by psi_B, the gradient would be
  (g - x_hat mean(g x_hat)) / psi_B with g = dL/dx_hat; the backward pass takes it with a running estimate nu of that
  mean (`power_normalise`). Epsilon is added to the squares, as in batch norm, where the paper has none. The warm-up
  with psi_B in the place of psi and the layer-wise scaling that the paper's released code adds are left out.

  A backward pass cannot change a variable. So nu is in a collection of its own, "backward_stats", and the gradient of
  the loss with respect to it is its change. A step that adds this gradient to it is the paper's algorithm; in one that
  does not, nu stays 0 and the gradient is g / psi_B. As any gradient nu has the scale of the loss, which should not
  change between steps.

  Attributes:
    epsilon: added to the squares. momentum: alpha. dtype: of the output.
  """

  epsilon: float = 1e-6
  momentum: float = 0.9
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, padding_mask: jax.Array | None = None) -> jax.Array:
    """Tokens [..., D] to [..., D]."""
    features = x.shape[-1:]
    scale = self.param("scale", nn.initializers.ones, features)
    bias = self.param("bias", nn.initializers.zeros, features)
    square = self.variable(STATISTICS, "square", jnp.ones, features)  # psi^2
    gradient = self.variable(BACKWARD_STATISTICS, "gradient", jnp.zeros, features)  # nu
    x = x.astype(jnp.float32)
    if self.is_mutable_collection(STATISTICS) and not self.is_initializing():
      batch_square = token_mean(jnp.square(x), padding_mask)
      normal = power_normalise(
        x, padding_mask, square.value + self.epsilon, batch_square + self.epsilon, gradient.value, 1 - self.momentum
      )
      square.value = self.momentum * square.value + (1 - self.momentum) * batch_square
    else:
      normal = x * jax.lax.rsqrt(square.value + self.epsilon)
    return (normal * scale + bias).astype(self.dtype)


def token_mean(x: jax.Array, padding_mask: jax.Array | None = None) -> jax.Array:
  """The mean over all tokens [..., D], or those where `padding_mask` [...] is True (0 if there are none): [D]."""
  tokens = tuple(range(x.ndim - 1))
  if padding_mask is None:
    return x.mean(tokens)
  return jnp.where(padding_mask[..., None], x, 0).sum(tokens) / jnp.maximum(jnp.sum(padding_mask), 1)


@jax.custom_vjp
def power_normalise(
  x: jax.Array,
  padding_mask: jax.Array | None,
  square: jax.Array,
  batch_square: jax.Array,
  gradient: jax.Array,
  rate: float,
) -> jax.Array:
  """x_hat = x / psi with the approximate backward pass of PowerNorm (Shen et al. 2020, alg. 2).

  With g the gradient of the loss with respect to x_hat, and the mean over the real tokens,

      g_hat = g - nu x_hat
      dL/dx = g_hat / psi_B
      nu <- nu + rate mean(g_hat x_hat) = nu (1 - rate mean(x_hat^2)) + rate mean(g x_hat).

  Args:
    x: tokens [..., D], float32.
    padding_mask: bool [...]; None for all.
    square: psi^2 [D], the running quadratic mean that x is divided by; as a constant.
    batch_square: psi_B^2 [D], of this batch, that the gradient is divided by; as a constant.
    gradient: nu [D]. Its "gradient" is what is to be added to it.
    rate: 1 - alpha.

  Returns:
    [..., D]
  """
  return x * jax.lax.rsqrt(square)


def _forward(x, padding_mask, square, batch_square, gradient, rate):
  normal = power_normalise(x, padding_mask, square, batch_square, gradient, rate)
  return normal, (normal, padding_mask, batch_square, gradient, rate)


def _backward(kept, of_normal):
  normal, padding_mask, batch_square, gradient, rate = kept
  if padding_mask is not None:
    normal = jnp.where(
      padding_mask[..., None], normal, 0
    )  # padding is in no mean, so none of its gradient comes through one
  corrected = of_normal - gradient * normal
  change = rate * token_mean(corrected * normal, padding_mask)
  return corrected * jax.lax.rsqrt(batch_square), None, None, None, change, None


power_normalise.defvjp(_forward, _backward)


KINDS = {"layer": LayerNorm, "rms": RMSNorm, "batch": BatchNorm, "power": PowerNorm}


def norm(
  kind: str, epsilon: float = 1e-6, dtype: DTypeLike = jnp.float32, name: str | None = None
) -> LayerNorm | RMSNorm | BatchNorm | PowerNorm:
  """A norm by its kind: "layer", "rms", "batch" or "power".

  Raises:
    ValueError: there is no such kind.
  """
  if kind not in KINDS:
    raise ValueError(f"unknown norm {kind!r}{nearest(kind, KINDS)}")
  return KINDS[kind](epsilon=epsilon, dtype=dtype, name=name)


# Logical axes of the parameters (`zoo.partitioning`).
NORM_AXES = {"(scale|bias)": ("embed",)}
