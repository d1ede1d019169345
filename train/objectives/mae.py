"""Masked autoencoding: mean squared error of the masked patches' pixels (He et al. 2022, section 3)."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from train import rng
from train.images import normalise
from train.objectives import Loss
from zoo.layers.patch_embed import patchify
from zoo.shapes import expect


@dataclass(frozen=True)
class Objective:
  """Reconstruction of masked patches.

  Attributes:
    mask_ratio: share of patches to mask.
    norm_pix_loss: predict each patch less its own mean, over its own deviation (3, "Reconstruction target").
    mean, std: of the pixels, 0 to 1, per channel; one value for all channels, or one each.
  """

  mask_ratio: float = 0.75
  norm_pix_loss: bool = True
  mean: tuple[float, ...] = (0.5,)
  std: tuple[float, ...] = (0.5,)

  def __call__(self, model: nn.Module, variables: dict, batch: dict, key: jax.Array | None = None) -> Loss:
    """Sums over the valid images; `key=None` evaluates, with the same masks every time."""
    image_BYXC = normalise(batch["image"], self.mean, self.std)
    rngs = {}
    if key is not None:
      rngs = rng.streams(rng.per_batch(key, batch["id"]), "dropout")
    patches = (image_BYXC.shape[1] // model.config.patch_size) * (image_BYXC.shape[2] // model.config.patch_size)
    noise_BP = rng.per_patch(key, batch["id"], patches)
    output: Any = model.apply(variables, image_BYXC, noise_BP, mask_ratio=self.mask_ratio, rngs=rngs)
    pixels_BPF, aux = output
    loss_B = reconstruction_loss(pixels_BPF, image_BYXC, aux["masked"], model.config.patch_size, self.norm_pix_loss)
    weight_B = batch["valid"].astype(jnp.float32)
    return Loss((weight_B * loss_B).sum(), weight_B.sum(), {}, {})


def reconstruction_loss(
  pixels_BPF: jax.Array, image_BYXC: jax.Array, masked_BP: jax.Array, patch_size: int, norm_pix_loss: bool
) -> jax.Array:
  """Mean squared error over the masked patches of each image.

  Args:
    pixels_BPF: predictions; F = patch * patch * C.
    image_BYXC: the normalised images.
    masked_BP: bool, True = masked.
    patch: side of a patch in pixels.
    norm_pix_loss: compare with each patch's own standardised pixels (variance with Bessel's correction, + 1e-6
      under the root, as in the released code).

  Returns:
    [B] float32
  """
  expect(pixels_BPF=pixels_BPF, masked_BP=masked_BP)
  target_BPF = patchify(image_BYXC, patch_size).reshape(pixels_BPF.shape)
  if norm_pix_loss:
    mean = target_BPF.mean(-1, keepdims=True)
    variance = target_BPF.var(-1, keepdims=True, ddof=1)
    target_BPF = (target_BPF - mean) * jax.lax.rsqrt(variance + 1e-6)
  error_BP = jnp.square(pixels_BPF - target_BPF).mean(-1)
  return (error_BP * masked_BP).sum(1) / jnp.maximum(masked_BP.sum(1), 1)
