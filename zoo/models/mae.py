"""Masked autoencoder (He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners").

A ViT encodes the visible patches of an image; a small decoder predicts the pixels of the masked ones.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zoo.layers import initializers
from zoo.layers.attention import check_heads
from zoo.layers.block import BLOCK_AXES, Block
from zoo.layers.norms import NORM_AXES, LayerNorm
from zoo.layers.patch_embed import random_masking_noise, take_tokens
from zoo.layers.position_embeddings import sincos_2d
from zoo.layers.stack import run_blocks
from zoo.models import vit
from zoo.partitioning import BLOCK, shard_batch, under
from zoo.shapes import expect

# The decoder of the paper, 4.1: 8 blocks of width 512.
DECODER = dict(decoder_width=512, decoder_depth=8, decoder_mlp_dim=2048, decoder_num_heads=16)
VARIANTS = {f"{name}": dict(**vit.VARIANTS[name], **DECODER) for name in ("b16", "l16", "h14")} | {
  "nano4": dict(**vit.VARIANTS["nano4"], decoder_width=48, decoder_depth=1, decoder_mlp_dim=96, decoder_num_heads=4),
  "test": dict(**vit.VARIANTS["test"], decoder_width=16, decoder_depth=2, decoder_mlp_dim=28, decoder_num_heads=4),
}
for _variant in VARIANTS.values():
  _variant.pop("num_classes", None)


@dataclass(frozen=True)
class Config(vit.Config):
  """Hyperparameters of the ViT, without classifier, and of the decoder.

  Attributes (beside those of `vit.Config`):
    decoder_width, decoder_depth, decoder_mlp_dim, decoder_num_heads: D, L, F and N of the decoder.
  """

  num_classes: int = 0
  position_embedding: str = "sincos_2d"
  decoder_width: int = 512
  decoder_depth: int = 8
  decoder_mlp_dim: int = 2048
  decoder_num_heads: int = 16

  def __post_init__(self):
    super().__post_init__()
    check_heads(self.decoder_width, self.decoder_num_heads)
    if self.position_embedding == "relative":
      raise ValueError("an MAE cannot use relative positions: its encoder has a random subset of patches")


inputs = vit.inputs
features = vit.features


def random_mask(noise_BP: jax.Array, mask_ratio: float) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Keeps the patches with the least noise: a uniform sample without replacement, of static size.

  Args:
    noise_BP: [B, P] uniform noise, one value a patch.
    mask_ratio: share of masked patches, 0 <= ratio < 1.

  Returns:
    visible [B, T], indices of the kept patches, T = int(P (1 - mask_ratio)); masked [B, P] bool, True = masked;
    restore [B, P], the index of each patch in the order "visible, then masked".

  Raises:
    ValueError: no patch would be visible.
  """
  patches = expect(noise_BP=noise_BP)["P"]
  kept = int(patches * (1 - mask_ratio))
  if not 0 < kept <= patches:
    raise ValueError(
      f"mask_ratio {mask_ratio} keeps {kept} of {patches} patches; wanted 0 <= mask_ratio < 1 and at least one kept"
    )
  order_BP = jnp.argsort(noise_BP, axis=1)
  restore_BP = jnp.argsort(order_BP, axis=1)
  return order_BP[:, :kept], restore_BP >= kept, restore_BP


class Decoder(nn.Module):
  """Visible tokens [B, T, D] to the pixels of all patches [B, P, patch * patch * C]."""

  config: Config

  @nn.compact
  def __call__(self, x_BTD: jax.Array, restore_BP: jax.Array, grid: tuple[int, int]):
    c = self.config
    dtype = jnp.dtype(c.dtype)
    width = c.decoder_width
    x_BTE = nn.Dense(width, kernel_init=initializers.dense, dtype=dtype, name="embed")(x_BTD)
    cls_B1E, x_BTE = (x_BTE[:, :1], x_BTE[:, 1:]) if c.class_token else (x_BTE[:, :0], x_BTE)
    mask_E = self.param("mask", initializers.token, (width,)).astype(dtype)
    num_masked = restore_BP.shape[1] - x_BTE.shape[1]
    x_BPE = jnp.concatenate([x_BTE, jnp.broadcast_to(mask_E, (x_BTE.shape[0], num_masked, width))], axis=1)
    x_BPE = take_tokens(x_BPE, restore_BP)
    x_BPE = x_BPE + sincos_2d(grid, width).reshape(1, -1, width).astype(dtype)
    x_BTE = jnp.concatenate([cls_B1E, x_BPE], axis=1)
    block = functools.partial(
      Block,
      num_heads=c.decoder_num_heads,
      attention=c.attention,
      mlp_dim=c.decoder_mlp_dim,
      activation=c.activation,
      norm_eps=c.norm_eps,
      dtype=dtype,
    )
    x_BTE, aux = run_blocks(block, x_BTE, drop_path_rates=np.zeros(c.decoder_depth), scan=c.scan, remat=c.remat)
    x_BTE = LayerNorm(epsilon=c.norm_eps, dtype=dtype, name="norm")(x_BTE)
    pixels = nn.Dense(c.patch_size**2 * c.num_channels, kernel_init=initializers.dense, name="pixels")
    x_BPE = x_BTE[:, 1:] if c.class_token else x_BTE
    return shard_batch(pixels(x_BPE.astype(jnp.float32))), aux


class Model(nn.Module):
  """Images [B, Y, X, C] to the pixels of all patches [B, P, patch * patch * C]."""

  config: Config

  @nn.compact
  def __call__(
    self, image_BYXC: jax.Array, noise_BP: jax.Array | None = None, *, mask_ratio: float = 0.75
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Masks patches, encodes the rest, predicts all.

    Args:
      image_BYXC: images.
      noise_BP: [B, P] determines the mask (`random_mask`); None draws it from the rng `mask`.
      mask_ratio: share of masked patches; 0 encodes the full image.

    Returns:
      pixels [B, P, patch * patch * C] in float32, and aux: "masked" [B, P] bool, "tokens" [B, T, D] of the
      encoder, "embedded", "block_00", ..., "block_00/weights", and the same of the decoder as "decoder/block_00".
    """
    c = self.config
    B, Y, X, _ = image_BYXC.shape
    grid = Y // c.patch_size, X // c.patch_size
    if noise_BP is None:
      noise_BP = random_masking_noise(self, B, grid[0] * grid[1], "an MAE needs the rng `mask`")
    visible_BT, masked_BP, restore_BP = random_mask(noise_BP, mask_ratio)
    tokens_BTD, aux = vit.Encoder(c, name="encoder")(image_BYXC, visible_BT)
    pixels, decoder_aux = Decoder(c, name="decoder")(tokens_BTD, restore_BP, grid)
    aux |= {f"decoder/{k}": v for k, v in decoder_aux.items()}
    return pixels, aux | {"tokens": tokens_BTD, "masked": masked_BP}


# Logical axes of the parameters, those without weight decay, and their layers (`zoo.partitioning`).
LOGICAL_AXES = vit.ENCODER_AXES | {
  "decoder/embed/kernel": ("encoder_embed", "embed"),
  "decoder/embed/bias": ("embed",),
  "decoder/mask": ("embed",),
  **under(f"decoder/{BLOCK}", BLOCK_AXES),
  **under("decoder/norm", NORM_AXES),
  "decoder/pixels/kernel": ("embed", "pixels"),
  "decoder/pixels/bias": ("pixels",),
}
NO_DECAY = vit.NO_DECAY
layer_of = vit.layer_of
