"""Masked patch prediction: cross-entropy of the corrupted patches' mean colours (Dosovitskiy et al. 2021, B.1.2)."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from train import rng
from train.images import normalise
from train.objectives import Loss, check_fields
from zoo.layers.patch_embed import patchify
from zoo.shapes import expect


@dataclass(frozen=True)
class Objective:
  """Prediction of what colour the corrupted patches were.

  Attributes:
    mask_prob: share of the patches to corrupt.
    mask_token_prob, random_patch_prob: shares of these that are replaced by the mask token and by another patch; the
      rest is unchanged.
    mean, std: of the pixels, 0 to 1, per channel; one value for all channels, or one each.
  """

  mask_prob: float = 0.5
  mask_token_prob: float = 0.8
  random_patch_prob: float = 0.1
  mean: tuple[float, ...] = (0.5,)
  std: tuple[float, ...] = (0.5,)

  def __post_init__(self) -> None:
    check_fields(self, {0: ("mask_prob", "mask_token_prob", "random_patch_prob")}, ())

  def __call__(self, model: nn.Module, variables: dict, batch: dict, key: jax.Array | None = None) -> Loss:
    """Sums over the valid images; `key=None` evaluates, with the same corruption every time."""
    image_BYXC = normalise(batch["image"], self.mean, self.std)
    colour_BP = mean_colours(batch["image"], model.config.patch_size, model.config.bits)
    rngs = {} if key is None else rng.streams(rng.per_batch(key, batch["id"]), "dropout")
    patches = colour_BP.shape[1]
    noise_BP = rng.per_patch(key, batch["id"], patches)
    shares: dict = dict(share=self.mask_prob, masked=self.mask_token_prob, swapped=self.random_patch_prob)
    output: Any = model.apply(variables, image_BYXC, noise_BP, **shares, rngs=rngs)
    logits_BTV, aux = output
    if not logits_BTV.shape[1]:
      raise ValueError(
        f"config.objective: mask_prob {self.mask_prob} corrupts none of {patches} patches; wanted at least one"
      )
    target_BT = jnp.take_along_axis(colour_BP, aux["chosen"], axis=1)
    loss_B = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, target_BT).mean(1)
    right_B = (logits_BTV.argmax(-1) == target_BT).mean(1)
    weight_B = batch["valid"].astype(jnp.float32)
    return Loss((weight_B * loss_B).sum(), weight_B.sum(), {"accuracy": (weight_B * right_B).sum()}, {})


def mean_colours(image_BYXC: jax.Array, patch_size: int, bits: int) -> jax.Array:
  """The mean of each patch's pixels, in so many bits a channel, as one number.

  Args:
    image_BYXC: uint8.
    patch: side of a patch in pixels.
    bits: of each channel; the first channel's are the highest.

  Returns:
    [B, P] int32, 0 to 2^(bits C) - 1
  """
  sizes = expect(image_BYXC=image_BYXC)
  patches = patchify(image_BYXC.astype(jnp.int32), patch_size).reshape(sizes["B"], -1, patch_size**2, sizes["C"])
  # In whole numbers, so that no device rounds a mean over the border between two levels.
  level_BPC = (patches.sum(2) << bits) // (256 * patch_size**2)
  place_C = 1 << (bits * jnp.arange(sizes["C"])[::-1])
  return (level_BPC * place_C).sum(-1)
