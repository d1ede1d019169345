"""Norms: what makes the features of a token, or of all tokens together, of one size.

All are called `norm(x, real=None)` with tokens `[..., D]`; `real` is bool `[...]`, False for padding. `LayerNorm` and
`RMSNorm` look at one token at a time and do not need it; `BatchNorm` and `PowerNorm` take their statistics over all
real tokens. Those keep running statistics in the collection "batch_stats", and train where it is mutable. All compute
in float32 whatever they get, and give the type `dtype`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from zoo.errors import nearest
from zoo.layers.broadcast import sum_of_first

STATISTICS = "batch_stats"  # the collection of running statistics; Flax's own name for it
# Statistics of the backward pass: the gradient of the loss with respect to one is its change, which the training step
# adds to it.
BACKWARD_STATISTICS = "backward_stats"


class LayerNorm(nn.Module):
  """Layer normalisation (Ba et al. 2016, eq. 3), statistics in float32 whatever the compute type.

  The variance is the mean of the squared deviations: E[x^2] - E[x]^2, Linen's default, loses digits that the
  comparison with published implementations needs.

  Its backward pass keeps the input and two numbers of each token, and computes the rest anew.

  Attributes:
    epsilon: added to the variance. dtype: of the output. scale_init: of the scale.
  """

  epsilon: float = 1e-6
  dtype: DTypeLike = jnp.float32
  scale_init: Callable = nn.initializers.ones

  @nn.compact
  def __call__(self, x: jax.Array, real: jax.Array | None = None) -> jax.Array:
    """Tokens [..., D] to [..., D]; each by itself, so it does not matter which are `real`."""
    features = x.shape[-1:]
    scale, bias = self.param("scale", self.scale_init, features), self.param("bias", nn.initializers.zeros, features)
    return _layer_norm(self.epsilon, self.dtype, x, scale, bias)


def _mean(x: jax.Array) -> jax.Array:
  """Over the features, [..., D] to [..., 1]; by a product on a CPU, which before a sum writes out scale and rate."""

  def product(x):
    D = x.shape[-1]
    return (x.reshape(-1, D) @ jnp.full((D, 1), 1 / D, x.dtype)).reshape(*x.shape[:-1], 1)

  return jax.lax.platform_dependent(x, cpu=product, default=lambda x: x.mean(-1, keepdims=True))


def _layer_norm_forward(epsilon: float, dtype: jnp.dtype, x: jax.Array, scale: jax.Array, bias: jax.Array):
  wide = x.astype(jnp.float32)
  mean = wide.mean(-1, keepdims=True)
  rate = jax.lax.rsqrt(jnp.square(wide - mean).mean(-1, keepdims=True) + epsilon)
  return ((wide - mean) * rate * scale + bias).astype(dtype), (x, mean[..., 0], rate[..., 0], scale)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _layer_norm(epsilon: float, dtype: jnp.dtype, x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
  return _layer_norm_forward(epsilon, dtype, x, scale, bias)[0]


def _layer_norm_backward(epsilon: float, dtype: jnp.dtype, kept: tuple, dy: jax.Array):
  # Without the barrier the compiler recognises what the forward pass has computed, and keeps that.
  (x, mean, rate, scale), dy = jax.lax.optimization_barrier((kept, dy))
  rate, dy, axes = rate[..., None], dy.astype(jnp.float32), x.ndim - 1
  y = (x.astype(jnp.float32) - mean[..., None]) * rate
  of_y = dy * scale
  dx = rate * (of_y - _mean(of_y) - y * _mean(of_y * y))
  return dx.astype(x.dtype), sum_of_first(dy * y, axes), sum_of_first(dy, axes)


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class RMSNorm(nn.RMSNorm):
  """A token divided by its root mean square, and scaled (Zhang & Sennrich 2019, eq. 4); no mean, no bias."""

  def __call__(self, x: jax.Array, real: jax.Array | None = None) -> jax.Array:
    """Tokens [..., D] to [..., D]; each by itself, so it does not matter which are `real`."""
    return super().__call__(x)


class BatchNorm(nn.BatchNorm):
  """Each feature, over all real tokens, to mean 0 and variance 1 (Ioffe & Szegedy 2015, alg. 1 and 2).

  The running variance is that of the batch, divided by the number of tokens; PyTorch's by one less. A `momentum` of
  0.9 is PyTorch's 0.1.
  """

  momentum: float = 0.9
  use_fast_variance: bool = False

  def __call__(self, x: jax.Array, real: jax.Array | None = None) -> jax.Array:
    """Tokens [..., D] to [..., D]."""
    mask = None if real is None else real[..., None]
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
  def __call__(self, x: jax.Array, real: jax.Array | None = None) -> jax.Array:
    """Tokens [..., D] to [..., D]."""
    features = x.shape[-1:]
    scale = self.param("scale", nn.initializers.ones, features)
    bias = self.param("bias", nn.initializers.zeros, features)
    square = self.variable(STATISTICS, "square", jnp.ones, features)  # psi^2
    gradient = self.variable(BACKWARD_STATISTICS, "gradient", jnp.zeros, features)  # nu
    x = x.astype(jnp.float32)
    if self.is_mutable_collection(STATISTICS) and not self.is_initializing():
      batch_square = token_mean(jnp.square(x), real)
      normal = power_normalise(
        x, real, square.value + self.epsilon, batch_square + self.epsilon, gradient.value, 1 - self.momentum
      )
      square.value = self.momentum * square.value + (1 - self.momentum) * batch_square
    else:
      normal = x * jax.lax.rsqrt(square.value + self.epsilon)
    return (normal * scale + bias).astype(self.dtype)


def token_mean(x: jax.Array, real: jax.Array | None = None) -> jax.Array:
  """The mean over all tokens [..., D], or those that are `real` [...] (0 if there are none): [D]."""
  tokens = tuple(range(x.ndim - 1))
  if real is None:
    return x.mean(tokens)
  return jnp.where(real[..., None], x, 0).sum(tokens) / jnp.maximum(jnp.sum(real), 1)


@jax.custom_vjp
def power_normalise(
  x: jax.Array, real: jax.Array | None, square: jax.Array, batch_square: jax.Array, gradient: jax.Array, rate: float
) -> jax.Array:
  """x_hat = x / psi with the approximate backward pass of PowerNorm (Shen et al. 2020, alg. 2).

  With g the gradient of the loss with respect to x_hat, and the mean over the real tokens,

      g_hat = g - nu x_hat
      dL/dx = g_hat / psi_B
      nu <- nu + rate mean(g_hat x_hat) = nu (1 - rate mean(x_hat^2)) + rate mean(g x_hat).

  Args:
    x: tokens [..., D], float32.
    real: bool [...]; None for all.
    square: psi^2 [D], the running quadratic mean that x is divided by; as a constant.
    batch_square: psi_B^2 [D], of this batch, that the gradient is divided by; as a constant.
    gradient: nu [D]. Its "gradient" is what is to be added to it.
    rate: 1 - alpha.

  Returns:
    [..., D]
  """
  return x * jax.lax.rsqrt(square)


def _forward(x, real, square, batch_square, gradient, rate):
  normal = power_normalise(x, real, square, batch_square, gradient, rate)
  return normal, (normal, real, batch_square, gradient, rate)


def _backward(kept, of_normal):
  normal, real, batch_square, gradient, rate = kept
  if real is not None:
    normal = jnp.where(real[..., None], normal, 0)  # padding is in no mean, so none of its gradient comes through one
  corrected = of_normal - gradient * normal
  change = rate * token_mean(corrected * normal, real)
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
