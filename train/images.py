"""Pixels on the device: bytes to normalised floats and back. Bytes cross to the device, a quarter of the traffic."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise(image_BYXC: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
  """Bytes [B, Y, X, C] to (value / 255 - mean) / std in float32; `mean` and `std` have 1 or C values.

  Raises:
    ValueError: another number of values.
  """
  channels = image_BYXC.shape[-1]
  for name, values in (("mean", mean), ("std", std)):
    if len(values) not in (1, channels):
      raise ValueError(f"{name} has {len(values)} values for images of {channels} channels; wanted 1 or {channels}")
  return (image_BYXC.astype(jnp.float32) / 255 - jnp.asarray(mean)) / jnp.asarray(std)
