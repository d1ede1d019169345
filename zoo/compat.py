"""The differences between the supported JAX versions (from 0.7.2 on), each with the version at which it can go."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# Whether a `shard_map` over some axes of a mesh may constrain shardings along the others. Can go with JAX >= 0.8.
CONSTRAINS_IN_SHARD_MAP = jax.__version_info__ >= (0, 8, 0)


def float32_product(product: Callable, x: jax.Array, w: jax.Array) -> jax.Array:
  """`product(x, w)`, a matrix product [..., D] x [D, V] to [..., V] with a float32 result.

  Can go with JAX >= 0.8.1. Before, XLA compiles some products of bfloat16 with several leading axes into what its CPU
  backend cannot run ("Unsupported element type for DotThunk::Execute"); with one leading axis it can.
  """
  if jax.__version_info__ >= (0, 8, 1):
    return product(x, w)
  return jnp.reshape(product(x.reshape(-1, x.shape[-1]), w), (*x.shape[:-1], w.shape[-1]))


def manual_axes(params: dict) -> frozenset[str]:
  """The mesh axes over which a `shard_map` equation with these parameters maps its body.

  Can go with JAX >= 0.9.1, which calls them `newly_manual_axes` alone.
  """
  return frozenset(params["newly_manual_axes"] if "newly_manual_axes" in params else params["manual_axes"])
