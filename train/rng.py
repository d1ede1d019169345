"""Random streams: one root key, folded with the step; streams by name; per-example keys.

No key is stored: all randomness is a function of (root key, step, stream, example), so resuming is exact.
"""

import zlib

import jax


def root(seed: int, impl: str = "threefry2x32") -> jax.Array:
  """The root key. "rbg" is faster on a TPU; "threefry2x32" generates the same numbers on every backend."""
  return jax.random.key(seed, impl=impl)


def streams(key: jax.Array, *names: str) -> dict[str, jax.Array]:
  """A key for each name. A stream depends only on its own name: adding one does not change the others."""
  return {name: jax.random.fold_in(key, zlib.crc32(name.encode())) for name in names}


def per_example(key: jax.Array, id_B: jax.Array) -> jax.Array:
  """A key [B] for each example, from its index in the global batch.

  So the numbers do not depend on how the batch is split over devices and accumulation steps. "rbg" keys do not
  guarantee this under `vmap` and are converted to threefry keys.
  """
  key = jax.random.wrap_key_data(jax.random.key_data(key).reshape(-1)[:2], impl="threefry2x32")
  return jax.vmap(jax.random.fold_in, (None, 0))(key, id_B)


def per_patch(key: jax.Array | None, id_B: jax.Array, patches: int) -> jax.Array:
  """Uniform noise [B, P] from the stream "mask", independent for each example; `key=None`: fixed, for evaluation."""
  mask_key = streams(root(0) if key is None else key, "mask")["mask"]
  return jax.vmap(lambda k: jax.random.uniform(k, (patches,)))(per_example(mask_key, id_B))


def per_batch(key: jax.Array, id_B: jax.Array) -> jax.Array:
  """A key for one part of the global batch, so that devices and accumulation steps have different numbers."""
  return jax.random.fold_in(key, id_B[0])
