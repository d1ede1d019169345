"""Masked patch prediction (Dosovitskiy et al. 2021, B.1.2): a ViT predicts colours of corrupted patches.

BERT's objective for images: the embeddings of half of the patches are masked, swapped or unchanged, and their mean
colours are predicted from the encoder's output.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.errors import field_faults
from zoo.layers import initializers
from zoo.layers.patch_embed import random_masking_noise, take_tokens
from zoo.models import vit
from zoo.partitioning import shard_batch
from zoo.shapes import expect

VARIANTS = {
  name: {field: value for field, value in vit.VARIANTS[name].items() if field != "num_classes"}
  for name in ("s16", "b16", "l16", "nano4", "test")
}


@dataclass(frozen=True)
class Config(vit.Config):
  """Hyperparameters of the ViT, without classifier.

  Attributes (beside those of `vit.Config`):
    bits: of a channel's mean, which has 2^bits levels.
  """

  num_classes: int = 0
  bits: int = 3

  def __post_init__(self):
    super().__post_init__()
    if faults := field_faults(self, {}, {1: ("bits",)}, ()):
      raise ValueError("\n".join(faults))
    if self.bits > 8:
      raise ValueError(f"bits is {self.bits}; wanted at most 8, as many as a pixel's channel has")

  @property
  def colours(self) -> int:
    """V: how many colours there are to choose from, 512 for three channels of 3 bits."""
    return 2 ** (self.bits * self.num_channels)


inputs = vit.inputs
features = vit.features


class Corruption(NamedTuple):
  """The corruption of each image's patches.

  Attributes:
    chosen_BT: indices of the corrupted patches, which are predicted, in random order.
    source_BP: the patch whose embedding replaces each patch's, mostly itself.
    masked_BP: bool, True = masked.
  """

  chosen_BT: jax.Array
  source_BP: jax.Array
  masked_BP: jax.Array


def corrupt(noise_BP: jax.Array, share: float = 0.5, masked: float = 0.8, swapped: float = 0.1) -> Corruption:
  """Chooses the patches with the least noise; the first of them are masked, the next swapped, the rest unchanged.

  Equal in distribution to independent choices, except that all counts are the rounded shares of P. A swapped patch is
  replaced by the one half the order of noise away: any other, with equal probability.

  Args:
    noise_BP: [B, P] uniform noise, one value a patch.
    share: of the patches to corrupt; 0 for none.
    masked, swapped: shares of the corrupted to mask, and to replace by another patch of the image.

  Raises:
    ValueError: shares that are negative or sum to more than 1.
  """
  patches = expect(noise_BP=noise_BP)["P"]
  if not 0 <= share <= 1:
    raise ValueError(f"share is {share}; wanted 0 <= share <= 1")
  if masked < 0 or swapped < 0 or masked + swapped > 1:
    raise ValueError(f"masked is {masked} and swapped is {swapped}; wanted both at least 0 and their sum at most 1")
  chosen = round(patches * share)
  num_masked = round(chosen * masked)
  moved = round(chosen * (masked + swapped))
  order_BP = jnp.argsort(noise_BP, axis=1)
  rank_BP = jnp.argsort(order_BP, axis=1)
  other_BP = jnp.take_along_axis(order_BP, (rank_BP + patches // 2) % patches, axis=1)
  source_BP = jnp.where((num_masked <= rank_BP) & (rank_BP < moved), other_BP, jnp.arange(patches))
  return Corruption(order_BP[:, :chosen], source_BP, rank_BP < num_masked)


class Model(nn.Module):
  """Images [B, Y, X, C] to logits of the corrupted patches' colours [B, T, V]."""

  config: Config

  @nn.compact
  def __call__(
    self,
    image_BYXC: jax.Array,
    noise_BP: jax.Array | None = None,
    *,
    share: float = 0.5,
    masked: float = 0.8,
    swapped: float = 0.1,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Corrupts patches, encodes all, and predicts the colours of the corrupted.

    Args:
      image_BYXC: images.
      noise_BP: [B, P] determines the corruption (`corrupt`); None draws it from the rng `mask`.
      share, masked, swapped: see `corrupt`.

    Returns:
      logits [B, T, V] in float32, and aux: "chosen" [B, T], the indices of these patches, "masked" [B, P]
      bool and "source" [B, P]; "tokens", "embedded", "block_00", ... as `vit.Model`.
    """
    c = self.config
    B, Y, X, _ = image_BYXC.shape
    if noise_BP is None:
      noise_BP = random_masking_noise(
        self, B, (Y // c.patch_size) * (X // c.patch_size), "patch prediction needs the rng `mask`"
      )
    found = corrupt(noise_BP, share, masked, swapped)
    tokens_BTD, aux = vit.Encoder(c, name="encoder")(image_BYXC, corrupted=(found.source_BP, found.masked_BP))
    chosen_BTD = take_tokens(tokens_BTD[:, int(c.class_token) :], found.chosen_BT)
    head = nn.Dense(c.colours, kernel_init=initializers.head, name="head")
    aux |= {"tokens": tokens_BTD, "chosen": found.chosen_BT, "masked": found.masked_BP, "source": found.source_BP}
    return shard_batch(head(chosen_BTD.astype(jnp.float32))), aux


# Logical axes of the parameters, those without weight decay, and their layers (`zoo.partitioning`).
LOGICAL_AXES = vit.ENCODER_AXES | {
  "head/kernel": ("features", "classes"),
  "head/bias": ("classes",),
}
NO_DECAY = vit.NO_DECAY
layer_of = vit.layer_of
