"""Every difference between the versions of JAX that the zoo supports, from 0.7.2 on; each says when it can go."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def float32_product(product: Callable, x: jax.Array, w: jax.Array) -> jax.Array:
  """`product(x, w)` of two arrays that a matrix product sums in float32.

  Can go with JAX >= 0.8.1. Before, XLA compiles some products of bfloat16 for a CPU that it cannot run ("Unsupported
  element type for DotThunk::Execute"); there it gets the same numbers as float32.
  """
  if jax.__version_info__ >= (0, 8, 1) or x.dtype != jnp.bfloat16:
    return product(x, w)

  def of_float32(x, w):
    return product(x.astype(jnp.float32), w.astype(jnp.float32))

  return jax.lax.platform_dependent(x, w, cpu=of_float32, default=product)


def manual_axes(params: dict) -> frozenset[str]:
  """The mesh axes over which a `shard_map` equation with these parameters maps its body.

  Can go with JAX >= 0.9.1, which calls them `newly_manual_axes` alone.
  """
  return frozenset(params["newly_manual_axes"] if "newly_manual_axes" in params else params["manual_axes"])
