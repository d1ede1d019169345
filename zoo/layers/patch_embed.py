"""Images to patches and back, and selections of patches."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.shapes import expect


def check_patches(size_YX: tuple[int, int], patch: int) -> None:
  """Raises ValueError where the patch does not divide the image; it names the nearest size."""
  for side in size_YX:
    if side % patch:
      near = max(round(side / patch), 1) * patch
      raise ValueError(
        f"an image of {size_YX[0]} x {size_YX[1]} pixels cannot be cut into {patch} x {patch} patches: "
        f"{side} is no multiple of {patch}, the nearest is {near}"
      )


def pad_to_multiple(x_BYXC: jax.Array, side: int) -> jax.Array:
  """Pads an image or map with zeros at the bottom and on the right, to multiples of `side`."""
  Y, X = x_BYXC.shape[1:3]
  return jnp.pad(x_BYXC, ((0, 0), (0, -Y % side), (0, -X % side), (0, 0)))


def patchify(image_BYXC: jax.Array, patch: int) -> jax.Array:
  """Cuts images into patches, each flattened row by row with the channels innermost.

  Args:
    image_BYXC: rows and columns are multiples of `patch`.
    patch: side of a patch in pixels.

  Returns:
    [B, Y / patch, X / patch, patch * patch * C]

  Raises:
    ValueError: the patch does not divide the image.
  """
  sizes = expect(image_BYXC=image_BYXC)
  check_patches((sizes["Y"], sizes["X"]), patch)
  rows, columns = sizes["Y"] // patch, sizes["X"] // patch
  x = image_BYXC.reshape(sizes["B"], rows, patch, columns, patch, sizes["C"])
  return x.swapaxes(2, 3).reshape(sizes["B"], rows, columns, patch * patch * sizes["C"])


def unpatchify(patches: jax.Array, patch: int) -> jax.Array:
  """Patches [B, rows, columns, patch * patch * C] back to images [B, rows * patch, columns * patch, C]."""
  B, rows, columns, values = patches.shape
  x = patches.reshape(B, rows, columns, patch, patch, values // patch**2)
  return x.swapaxes(2, 3).reshape(B, rows * patch, columns * patch, -1)


def take_tokens(x_BPD: jax.Array, index_BT: jax.Array) -> jax.Array:
  """Gathers tokens of each example by index: [B, P, D] and [B, T] to [B, T, D]."""
  expect(x_BPD=x_BPD, index_BT=index_BT)
  return jnp.take_along_axis(x_BPD, index_BT[..., None], axis=1)


def random_masking_noise(module: nn.Module, batch: int, patches: int, purpose: str) -> jax.Array:
  """Uniform noise [B, P] whose order decides which patches are masked (MAE), from the module's rng `mask`.

  Raises:
    ValueError: there is no such rng; `purpose` is part of the message.
  """
  if not module.has_rng("mask"):
    raise ValueError(f'{purpose}: rngs={{"mask": key}}, or noise_BP')
  return jax.random.uniform(module.make_rng("mask"), (batch, patches))
