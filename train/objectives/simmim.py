"""Masked image modelling: absolute error of the masked pixels (Xie et al. 2022, 3.4)."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from train import rng
from train.images import normalise
from train.objectives import Loss
from zoo.models.simmim import mask_grid
from zoo.shapes import expect


@dataclass(frozen=True)
class Objective:
  """Prediction of the pixels of masked squares.

  Attributes:
    mask_patch_size: side of a square in pixels.
    mask_ratio: share of squares to mask.
    mean, std: of the pixels, 0 to 1, per channel; one value for all channels, or one each.
  """

  mask_patch_size: int = 32
  mask_ratio: float = 0.6
  mean: tuple[float, ...] = (0.5,)
  std: tuple[float, ...] = (0.5,)

  def __post_init__(self) -> None:
    if not 0 < self.mask_ratio < 1:
      raise ValueError(f"config.objective: mask_ratio is {self.mask_ratio}; wanted 0 < mask_ratio < 1")

  def __call__(self, model: nn.Module, variables: dict, batch: dict, key: jax.Array | None = None) -> Loss:
    """Sums over the valid images; `key=None` evaluates, with the same masks every time."""
    image_BYXC = normalise(batch["image"], self.mean, self.std)
    Y, X = image_BYXC.shape[1:3]
    rows, columns = mask_grid(model.config, (Y, X), self.mask_patch_size)
    rngs = {} if key is None else rng.streams(rng.per_batch(key, batch["id"]), "dropout")
    noise_BP = rng.per_patch(key, batch["id"], rows * columns)
    options: dict = dict(mask_patch_size=self.mask_patch_size, mask_ratio=self.mask_ratio)
    output: Any = model.apply(variables, image_BYXC, noise_BP, **options, rngs=rngs)
    pixels_BYXC, aux = output
    loss_B = absolute_error(pixels_BYXC, image_BYXC, aux["masked"])
    weight_B = batch["valid"].astype(jnp.float32)
    return Loss((weight_B * loss_B).sum(), weight_B.sum(), {}, {})


def absolute_error(pixels_BYXC: jax.Array, image_BYXC: jax.Array, masked_BHW: jax.Array) -> jax.Array:
  """Mean absolute error of the masked pixels of each image.

  Args:
    pixels_BYXC: predictions.
    image_BYXC: the normalised images.
    masked_BHW: bool of each patch, True = masked; at least one of each image.

  Returns:
    [B] float32
  """
  sizes = expect(pixels_BYXC=pixels_BYXC, image_BYXC=image_BYXC, masked_BHW=masked_BHW)
  patch = sizes["Y"] // sizes["H"]
  hidden_BYX1 = masked_BHW.repeat(patch, 1).repeat(patch, 2)[..., None]
  error_BYXC = jnp.abs(pixels_BYXC - image_BYXC) * hidden_BYX1
  return error_BYXC.sum((1, 2, 3)) / (hidden_BYX1.sum((1, 2, 3)) * sizes["C"])
