"""Activation functions by name."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
  """The normal distribution function of x, times x, exactly (Hendrycks & Gimpel 2016, sec. 2), as PyTorch has it.

  By `erf`: `jax.nn.gelu` goes by `erfc`, whose digits far below 0 nobody needs, and which takes several times as long.
  The backward pass keeps x alone.
  """
  return (x * _normal_cdf(x)).astype(x.dtype)


def _normal_cdf(x: jax.Array) -> jax.Array:
  return 0.5 + 0.5 * jax.lax.erf(x.astype(jnp.float32) * np.float32(0.5**0.5))


def _gelu_backward(x: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
  # Without the barrier the compiler recognises the forward pass's distribution function, and keeps that, too.
  x, dy = jax.lax.optimization_barrier((x, dy))
  density = jnp.exp(-0.5 * jnp.square(x.astype(jnp.float32))) * np.float32((2 * np.pi) ** -0.5)
  return ((dy * (_normal_cdf(x) + x * density)).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


ACTIVATIONS = {
  "gelu": gelu,
  "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),  # JAX's default, and GPT-2's
  "relu": jax.nn.relu,
  "swish": jax.nn.silu,  # x sigmoid(x) (Ramachandran et al. 2017)
}
