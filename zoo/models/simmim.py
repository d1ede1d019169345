"""SimMIM (Xie et al. 2022, "SimMIM: a Simple Framework for Masked Image Modeling"): a Swin that tells hidden pixels.

A learned vector stands for the patches of large hidden squares; from what the encoder makes of them all, a single
linear layer tells the pixels.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.layers import initializers
from zoo.layers.linear import Dense
from zoo.layers.patch_embed import patch_noise, unpatchify
from zoo.models import swin
from zoo.models.mae import random_mask
from zoo.partitioning import by_batch
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
  """A Swin Transformer without classifier; `num_classes` and `head` stay as they are."""

  num_classes: int = 0

  def __post_init__(self):
    super().__post_init__()
    if self.num_classes or self.head != "classify":
      raise ValueError(f"num_classes is {self.num_classes} and head is {self.head!r}; a SimMIM has neither, set none")

  @property
  def stride(self) -> int:
    """Pixels of a side that each place of the last map tells: 32 where there are four stages."""
    return self.patch_size * 2 ** (len(self.depths) - 1)

  @property
  def grid(self) -> tuple[int, int]:
    """Rows and columns of the last map, and of the squares to hide if these are as large."""
    return units(self, self.image_size, self.stride)


inputs = swin.inputs
features = swin.features


def units(config: Config, size: tuple[int, int], unit: int) -> tuple[int, int]:
  """How many rows and columns of squares to hide there are.

  Args:
    config: of the model. size: rows and columns of the image in pixels. unit: side of a square in pixels.

  Raises:
    ValueError: a unit that patches do not fill, or an image that units, or what places of the last map tell, do not.
  """
  faults = []
  if unit < 1 or unit % config.patch_size:
    faults.append(f"unit is {unit}; wanted a multiple of the patch's {config.patch_size} pixels")
  for name, side in dict(unit=unit, stride=config.stride).items():
    if side > 0 and any(n % side for n in size):
      faults.append(f"an image of {size[0]} x {size[1]} pixels is no multiple of the {name}, {side}")
  if faults:
    raise ValueError("\n".join(faults))
  return size[0] // unit, size[1] // unit


class Model(nn.Module):
  """Images [B, Y, X, C] to images that are told from what is not hidden of them [B, Y, X, C]."""

  config: Config

  @nn.compact
  def __call__(
    self,
    image_BYXC: jax.Array,
    noise_BP: jax.Array | None = None,
    *,
    unit: int | None = None,
    mask_ratio: float = 0.6,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Hides squares of patches, encodes all, and tells all pixels.

    Args:
      image_BYXC: the images.
      noise_BP: [B, P] uniform noise, one value for each square, row by row: those with most of it are hidden
        (`zoo.models.mae.random_mask`); None draws it from the rng `mask`.
      unit: side of a square in pixels, a multiple of the patch's; None for the stride of the last map.
      mask_ratio: share of squares to hide; 0 encodes the whole image.

    Returns:
      pixels [B, Y, X, C] in float32, and aux: "masked" [B, Y / patch, X / patch] bool, True = hidden; "tokens"
      [B, Y, X, D], the last map; "embedded", "stage_0", ... as `swin.Model`.

    Raises:
      ValueError: sizes that do not divide each other (`units`), or a ratio that hides all.
    """
    c = self.config
    sizes = expect(image_BYXC=image_BYXC)
    unit = c.stride if unit is None else unit
    rows, columns = units(c, (sizes["Y"], sizes["X"]), unit)
    if noise_BP is None:
      noise_BP = patch_noise(self, sizes["B"], rows * columns, "a SimMIM needs an rng to hide patches by")
    _, masked_BP, _ = random_mask(noise_BP, mask_ratio)
    each = unit // c.patch_size
    masked_BYX = masked_BP.reshape(-1, rows, columns).repeat(each, 1).repeat(each, 2)
    tokens_BYXD, aux = swin.Encoder(c, name="encoder")(image_BYXC, masked_BYX)
    pixels = Dense(c.stride**2 * c.channels, kernel_init=initializers.fan_in, name="pixels")(
      tokens_BYXD.astype(jnp.float32)
    )
    return by_batch(unpatchify(pixels, c.stride)), aux | {"tokens": tokens_BYXD, "masked": masked_BYX}
