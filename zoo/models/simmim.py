"""SimMIM (Xie et al. 2022, "SimMIM: a Simple Framework for Masked Image Modeling"): a Swin predicts masked pixels.

A learned vector replaces the patches of large masked squares; a single linear layer predicts the pixels from the last
map of the encoder.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.layers import initializers
from zoo.layers.patch_embed import random_masking_noise, unpatchify
from zoo.models import swin
from zoo.models.mae import random_mask
from zoo.partitioning import shard_batch
from zoo.shapes import expect

# Xie et al. 2022, 4.1: images of 192 pixels, and windows of 6; of 12 in "l", as released.
VARIANTS = {
  size: dict(window_size=window, image_size=(192, 192), **swin.SIZES[size])
  for size, window in dict(t=6, b=6, l=12).items()
} | {
  name: {field: value for field, value in swin.VARIANTS[name].items() if field != "num_classes"}
  for name in ("nano", "test")
}


@dataclass(frozen=True)
class Config(swin.Config):
  """Hyperparameters of a Swin Transformer; `num_classes` and `head` have one value each."""

  num_classes: int = 0

  def __post_init__(self):
    super().__post_init__()
    if self.num_classes or self.head != "classification":
      raise ValueError(
        f"num_classes is {self.num_classes} and head is {self.head!r}; a SimMIM has neither: leave them out"
      )

  @property
  def stride(self) -> int:
    """Stride of the last map in pixels: 32 with four stages."""
    return self.patch_size * 2 ** (len(self.depths) - 1)

  @property
  def grid(self) -> tuple[int, int]:
    """Rows and columns of the last map, and of the masked squares if these are as large."""
    return mask_grid(self, self.image_size, self.stride)


inputs = swin.inputs
features = swin.features


def mask_grid(config: Config, size: tuple[int, int], mask_patch_size: int) -> tuple[int, int]:
  """Rows and columns of the squares that are masked as a unit.

  Args:
    config: of the model. size: rows and columns of the image in pixels. mask_patch_size: side of a square in pixels.

  Raises:
    ValueError: `mask_patch_size` is no multiple of the patch size, or the image none of it or of the stride.
  """
  faults = []
  if mask_patch_size < 1 or mask_patch_size % config.patch_size:
    faults.append(f"mask_patch_size is {mask_patch_size}; wanted a multiple of patch_size, {config.patch_size} pixels")
  for name, side in dict(mask_patch_size=mask_patch_size, stride=config.stride).items():
    if side > 0 and any(n % side for n in size):
      faults.append(f"an image of {size[0]} x {size[1]} pixels is no multiple of the {name}, {side}")
  if faults:
    raise ValueError("\n".join(faults))
  return size[0] // mask_patch_size, size[1] // mask_patch_size


class Model(nn.Module):
  """Images [B, Y, X, C] to images predicted from their visible parts [B, Y, X, C]."""

  config: Config

  @nn.compact
  def __call__(
    self,
    image_BYXC: jax.Array,
    noise_BP: jax.Array | None = None,
    *,
    mask_patch_size: int | None = None,
    mask_ratio: float = 0.6,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Masks squares of patches, encodes all, and predicts all pixels.

    Args:
      image_BYXC: images.
      noise_BP: [B, P] uniform noise, one value for each square, row by row, determines the mask
        (`zoo.models.mae.random_mask`); None draws it from the rng `mask`.
      mask_patch_size: side of a square in pixels, a multiple of the patch size; None for the stride of the last map.
      mask_ratio: share of masked squares; 0 encodes the full image.

    Returns:
      pixels [B, Y, X, C] in float32, and aux: "masked" [B, Y / patch_size, X / patch_size] bool, True = masked;
      "tokens" [B, Y, X, D], the last map; "embedded", "stage_0", ... as of `swin.Model`.

    Raises:
      ValueError: sizes that do not divide each other (`mask_grid`), or no visible square.
    """
    c = self.config
    sizes = expect(image_BYXC=image_BYXC)
    mask_patch_size = c.stride if mask_patch_size is None else mask_patch_size
    rows, columns = mask_grid(c, (sizes["Y"], sizes["X"]), mask_patch_size)
    if noise_BP is None:
      noise_BP = random_masking_noise(self, sizes["B"], rows * columns, "a SimMIM needs the rng `mask`")
    _, masked_BP, _ = random_mask(noise_BP, mask_ratio)
    each = mask_patch_size // c.patch_size
    masked_BYX = masked_BP.reshape(-1, rows, columns).repeat(each, 1).repeat(each, 2)
    tokens_BYXD, aux = swin.Encoder(c, name="encoder")(image_BYXC, masked_BYX)
    pixels = nn.Dense(c.stride**2 * c.num_channels, kernel_init=initializers.fan_in, name="pixels")(
      tokens_BYXD.astype(jnp.float32)
    )
    return shard_batch(unpatchify(pixels, c.stride)), aux | {"tokens": tokens_BYXD, "masked": masked_BYX}


# Logical axes of the parameters, those without weight decay, and their layers (`zoo.partitioning`).
LOGICAL_AXES = swin.ENCODER_AXES | {"pixels/kernel": ("embed", "pixels"), "pixels/bias": ("pixels",)}
NO_DECAY = swin.NO_DECAY
layer_of = swin.layer_of
