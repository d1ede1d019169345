"""Masked patch prediction (Dosovitskiy et al. 2021, B.1.2): a ViT that tells the colours of corrupted patches.

BERT's objective for images: of half of the patches the embeddings are hidden, swapped or left as they are, and from
what the encoder makes of them, each one's mean colour is predicted.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.errors import field_faults
from zoo.layers import initializers
from zoo.layers.linear import Dense
from zoo.layers.patch_embed import choose_tokens, patch_noise
from zoo.models import vit
from zoo.partitioning import by_batch
from zoo.shapes import expect

VARIANTS = {
  name: {field: value for field, value in vit.VARIANTS[name].items() if field != "num_classes"}
  for name in ("s16", "b16", "l16", "nano4", "test")
}


@dataclass(frozen=True)
class Config(vit.Config):
  """A ViT without classifier.

  Attributes (beside those of `vit.Config`):
    bits: of a channel's mean; so many make 2^bits levels of each channel.
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
    return 2 ** (self.bits * self.channels)


inputs = vit.inputs
features = vit.features


class Corruption(NamedTuple):
  """What is done to the patches of each image.

  Attributes:
    chosen_BT: indices of the corrupted ones, which are to be told, in random order.
    source_BP: the patch that stands in each one's place, mostly itself.
    masked_BP: bool, True = hidden.
  """

  chosen_BT: jax.Array
  source_BP: jax.Array
  masked_BP: jax.Array


def corrupt(noise_BP: jax.Array, share: float = 0.5, masked: float = 0.8, swapped: float = 0.1) -> Corruption:
  """Chooses the patches with the least noise; of these the first are hidden, the next swapped, the rest left.

  Equal in distribution to choices one by one, but that all numbers are the shares of P, rounded. A swapped patch gets
  one of those half the order of noise away: any other, with equal probability.

  Args:
    noise_BP: [B, P] uniform noise, one value a patch.
    share: of the patches to corrupt; 0 for none.
    masked, swapped: shares of the corrupted to hide, and to replace with another patch of the image.

  Raises:
    ValueError: shares that are negative or sum to more than 1.
  """
  patches = expect(noise_BP=noise_BP)["P"]
  if not 0 <= share <= 1:
    raise ValueError(f"share is {share}; wanted 0 <= share <= 1")
  if masked < 0 or swapped < 0 or masked + swapped > 1:
    raise ValueError(f"masked is {masked} and swapped is {swapped}; wanted both at least 0 and their sum at most 1")
  chosen = round(patches * share)
  hidden = round(chosen * masked)
  moved = round(chosen * (masked + swapped))
  order_BP = jnp.argsort(noise_BP, axis=1)
  place_BP = jnp.argsort(order_BP, axis=1)
  other_BP = jnp.take_along_axis(order_BP, (place_BP + patches // 2) % patches, axis=1)
  source_BP = jnp.where((hidden <= place_BP) & (place_BP < moved), other_BP, jnp.arange(patches))
  return Corruption(order_BP[:, :chosen], source_BP, place_BP < hidden)


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
    """Corrupts patches, encodes all, and tells the colours of the corrupted.

    Args:
      image_BYXC: the images.
      noise_BP: [B, P] decides what is corrupted and how (`corrupt`); None draws it from the rng `mask`.
      share, masked, swapped: see `corrupt`.

    Returns:
      logits [B, T, V] in float32, and aux: "chosen" [B, T], the indices of the patches they are of, "masked" [B, P]
      bool and "source" [B, P]; "tokens", "embedded", "block_00", ... as `vit.Model`.
    """
    c = self.config
    B, Y, X, _ = image_BYXC.shape
    if noise_BP is None:
      noise_BP = patch_noise(
        self, B, (Y // c.patch_size) * (X // c.patch_size), "patch prediction needs an rng to corrupt by"
      )
    found = corrupt(noise_BP, share, masked, swapped)
    tokens_BTD, aux = vit.Encoder(c, name="encoder")(image_BYXC, corrupted=(found.source_BP, found.masked_BP))
    told_BTD = choose_tokens(tokens_BTD[:, int(c.class_token) :], found.chosen_BT)
    head = Dense(c.colours, kernel_init=initializers.head, name="head")
    aux |= {"tokens": tokens_BTD, "chosen": found.chosen_BT, "masked": found.masked_BP, "source": found.source_BP}
    return by_batch(head(told_BTD.astype(jnp.float32))), aux
