"""Vision Transformer (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words").

Patches of an image are projected to tokens, which a Transformer encoder processes; the pooled output is classified.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.errors import field_faults
from zoo.layers import initializers
from zoo.layers.activations import ACTIVATIONS
from zoo.layers.attention import IMPLEMENTATIONS, check_heads
from zoo.layers.block import BLOCK_AXES, Block
from zoo.layers.dropout import Dropout, drop_path_rates
from zoo.layers.norms import NORM_AXES, STATISTICS, LayerNorm
from zoo.layers.patch_embed import check_patches, patchify, take_tokens
from zoo.layers.pooling import ATTENTION_POOL_AXES, AttentionPool
from zoo.layers.position_embeddings import KINDS, POSITION_AXES, RESAMPLINGS, Positions
from zoo.layers.stack import run_blocks
from zoo.partitioning import BIASES_AND_SCALES, BLOCK, layer_of_encoder, shard_batch, under
from zoo.shapes import expect

# ViT, table 1; Ti and S: DeiT (Touvron et al. 2021), table 1; M, g, G: Zhai et al. 2022, table 2.
SIZES = {
  "ti": dict(width=192, depth=12, mlp_dim=768, num_heads=3),
  "s": dict(width=384, depth=12, mlp_dim=1536, num_heads=6),
  "m": dict(width=512, depth=12, mlp_dim=2048, num_heads=8),
  "b": dict(width=768, depth=12, mlp_dim=3072, num_heads=12),
  "l": dict(width=1024, depth=24, mlp_dim=4096, num_heads=16),
  "h": dict(width=1280, depth=32, mlp_dim=5120, num_heads=16),
  "g": dict(width=1408, depth=40, mlp_dim=6144, num_heads=16),
  "G": dict(width=1664, depth=48, mlp_dim=8192, num_heads=16),
}
# For 28 x 28 grey images, as in Fashion-MNIST: small enough to train on a CPU.
SMALL = dict(patch_size=4, image_size=(28, 28), num_channels=1, num_classes=10)
VARIANTS = {f"{size}{p}": dict(patch_size=p, **SIZES[size]) for size in SIZES for p in (8, 14, 16, 32)} | {
  "nano4": dict(width=96, depth=4, mlp_dim=192, num_heads=4, **SMALL),
  # Another size on every axis, so that confusing two is an error.
  "test": dict(
    patch_size=4, width=24, depth=3, mlp_dim=40, num_heads=2, image_size=(20, 12), num_channels=3, num_classes=7
  ),
}


@dataclass(frozen=True)
class Config:
  """Hyperparameters.

  Attributes:
    patch_size: side of a patch in pixels.
    width: D. depth: L. mlp_dim: F. num_heads: N.
    image_size: rows and columns that the position embeddings are for; they are resampled to others (`resampling`).
    num_channels: C of the image.
    num_classes: V; 0 for no classifier: the output is the pooled features [B, D].
    pool: "cls", the class token; "gap", the mean of the patch tokens; "map", attention with a learned query.
    class_token: whether there is one; "cls" needs it, MAE's fine-tuning has it with "gap".
    position_embedding: one of `zoo.layers.position_embeddings.KINDS`. resampling: one of
      `zoo.layers.position_embeddings.RESAMPLINGS`.
    representation_size: width of the tanh layer before the classifier (ViT, B.1), 0 for none.
    final_norm: a norm of the tokens after the last block.
    head_norm: norm of the pooled features: "none", "layer" (MAE's fine-tuning, instead of `final_norm`), "batch"
      (without scale and bias: MAE's linear probing, A.1).
    dropout_rate: of embeddings, MLPs and block outputs. attention_dropout_rate: of attention weights.
    drop_path_rate: stochastic depth rate of the last block; it grows linearly from 0.
    activation: "gelu" (exact) or "gelu_tanh". norm_eps: of the layer norms.
    scan: compile one block for all. remat: what the backward pass recomputes (`zoo.layers.stack.run_blocks`).
    dtype: compute type, "float32" or "bfloat16"; parameters, norm statistics, softmax and logits stay float32.
    attention: one of `zoo.layers.attention.IMPLEMENTATIONS`.
  """

  patch_size: int
  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  image_size: tuple[int, int] = (224, 224)
  num_channels: int = 3
  num_classes: int = 1000
  pool: str = "cls"
  class_token: bool = True
  position_embedding: str = "learned_1d"
  resampling: str = "bicubic"
  representation_size: int = 0
  final_norm: bool = True
  head_norm: str = "none"
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  drop_path_rate: float = 0.0
  activation: str = "gelu"
  norm_eps: float = 1e-6
  scan: bool = False
  remat: str = "none"
  dtype: str = "float32"
  attention: str = "auto"

  def __post_init__(self):
    choices = dict(
      pool=("cls", "gap", "map"),
      position_embedding=KINDS,
      resampling=RESAMPLINGS,
      head_norm=("none", "layer", "batch"),
      activation=tuple(ACTIVATIONS),
      dtype=("float32", "bfloat16"),
      attention=IMPLEMENTATIONS,
    )
    faults = field_faults(
      self,
      choices,
      {
        1: ("patch_size", "width", "depth", "mlp_dim", "num_heads", "num_channels"),
        0: ("num_classes", "representation_size"),
      },
      ("dropout_rate", "attention_dropout_rate", "drop_path_rate"),
    )
    if self.pool == "cls" and not self.class_token:
      faults.append("pool='cls' needs class_token=True; without a class token use 'gap' or 'map'")
    if faults:
      raise ValueError("\n".join(faults))
    check_heads(self.width, self.num_heads)
    check_patches(self.image_size, self.patch_size)

  @property
  def grid(self) -> tuple[int, int]:
    """Rows and columns of patches."""
    return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

  @property
  def feature_patch_size(self) -> int:
    """Side of a patch on the map that the encoder patchifies: here the image itself."""
    return self.patch_size


def inputs(config: Config, batch: int) -> tuple[jax.ShapeDtypeStruct, ...]:
  """Shapes of the arguments of `Model`."""
  return (jax.ShapeDtypeStruct((batch, *config.image_size, config.num_channels), jnp.float32),)


class Encoder(nn.Module):
  """Images [B, Y, X, C] to tokens [B, T, D]: the class token, if any, then the patches row by row."""

  config: Config

  def patchify(self, image_BYXC: jax.Array) -> jax.Array:
    """Images to patches [B, Y / patch_size, X / patch_size, F]."""
    return patchify(image_BYXC, self.config.feature_patch_size)

  @nn.compact
  def __call__(
    self,
    image_BYXC: jax.Array,
    visible_BT: jax.Array | None = None,
    corrupted: tuple[jax.Array, jax.Array] | None = None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Encodes all patches, some of them, or corrupted ones.

    Args:
      image_BYXC: images.
      visible_BT: indices of the patches to encode; None for all.
      corrupted: (source_BP, masked_BP). The embedding of a patch is replaced by that of patch `source_BP`, and where
        `masked_BP` by a learned vector; position embeddings are unchanged. None for no corruption.
    """
    c = self.config
    if (channels := expect(image_BYXC=image_BYXC)["C"]) != c.num_channels:
      raise ValueError(f"the images have {channels} channels, the model takes {c.num_channels}")
    patches = self.patchify(image_BYXC)
    B, rows, columns, values = patches.shape
    positions_YXD, cls_position_D = Positions(
      c.position_embedding, c.grid, c.width, c.class_token, c.resampling, name="pos"
    )((rows, columns))
    patches = patches.reshape(B, -1, values)
    positions_BPD = positions_YXD.reshape(1, -1, c.width)
    if visible_BT is not None:  # before the projection, so that masked patches are not projected
      patches = take_tokens(patches, visible_BT)
      positions_BPD = positions_BPD[0][visible_BT]
    dtype = jnp.dtype(c.dtype)
    x_BTD = nn.Dense(c.width, kernel_init=initializers.dense, dtype=dtype, name="patch")(patches)
    if corrupted is not None:
      source_BP, masked_BP = corrupted
      mask_D = self.param("mask", initializers.token, (c.width,)).astype(dtype)
      x_BTD = jnp.where(masked_BP[..., None], mask_D, take_tokens(x_BTD, source_BP))
    x_BTD = x_BTD + positions_BPD.astype(dtype)
    if c.class_token:
      cls_D = self.param("cls", initializers.token, (c.width,)) + cls_position_D
      cls_B1D = jnp.broadcast_to(cls_D.astype(dtype), (B, 1, c.width))
      x_BTD = jnp.concatenate([cls_B1D, x_BTD], 1)
    x_BTD = Dropout(c.dropout_rate, name="dropout")(x_BTD)
    aux = {"embedded": x_BTD}
    block = functools.partial(
      Block,
      num_heads=c.num_heads,
      attention=c.attention,
      mlp_dim=c.mlp_dim,
      activation=c.activation,
      norm_eps=c.norm_eps,
      dropout_rate=c.dropout_rate,
      attention_dropout_rate=c.attention_dropout_rate,
      relative_length=c.grid[0] * c.grid[1] + c.class_token if c.position_embedding == "relative" else 0,
      dtype=dtype,
    )
    x_BTD, block_aux = run_blocks(
      block, x_BTD, drop_path_rates=drop_path_rates(c.drop_path_rate, c.depth), scan=c.scan, remat=c.remat
    )
    if c.final_norm:
      x_BTD = LayerNorm(epsilon=c.norm_eps, dtype=dtype, name="norm")(x_BTD)
    return x_BTD, aux | block_aux


def features(model: nn.Module, variables: dict, image_BYXC: jax.Array, encoder: type[nn.Module] = Encoder) -> jax.Array:
  """The mean of the encoder's patch tokens [B, D], the features of linear probing."""
  c = model.config
  tokens_BTD, _ = encoder(c).apply({"params": variables["params"]["encoder"]}, image_BYXC)
  return tokens_BTD[:, int(c.class_token) :].mean(1)


class Model(nn.Module):
  """Images [B, Y, X, C] to logits [B, V]."""

  config: Config
  encoder_class = Encoder

  @nn.compact
  def __call__(self, image_BYXC: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Classifies images; rng `dropout` enables dropout and stochastic depth.

    Returns:
      logits [B, V] in float32, and aux: "embedded" and "block_00", ... [B, T, D], "block_00/weights", ...
      [B, N, T, T], "tokens" [B, T, D], "features" [B, D] (input of the classifier).
    """
    c = self.config
    tokens_BTD, aux = self.encoder_class(c, name="encoder")(image_BYXC)
    patches_BPD = tokens_BTD[:, 1:] if c.class_token else tokens_BTD
    dtype = jnp.dtype(c.dtype)
    if c.pool == "cls":
      x_BD = tokens_BTD[:, 0]
    elif c.pool == "gap":
      x_BD = patches_BPD.mean(1)
    else:
      x_BD = AttentionPool(c.num_heads, c.mlp_dim, c.activation, c.norm_eps, dtype=dtype, name="pool")(patches_BPD)
    if c.head_norm == "layer":
      x_BD = LayerNorm(epsilon=c.norm_eps, dtype=dtype, name="head_norm")(x_BD)
    elif c.head_norm == "batch":
      # Training mode if the running statistics are mutable. Their momentum, 0.9, is PyTorch's 0.1.
      x_BD = nn.BatchNorm(
        use_running_average=not self.is_mutable_collection(STATISTICS),
        momentum=0.9,
        epsilon=1e-6,
        use_bias=False,
        use_scale=False,
        name="head_norm",
      )(x_BD.astype(jnp.float32))
    if c.representation_size:
      x_BD = nn.Dense(c.representation_size, kernel_init=initializers.dense, dtype=dtype, name="representation")(x_BD)
      x_BD = jnp.tanh(x_BD)
    x_BD = shard_batch(x_BD.astype(jnp.float32))
    aux |= {"tokens": tokens_BTD, "features": x_BD}
    if not c.num_classes:
      return x_BD, aux
    return shard_batch(nn.Dense(c.num_classes, kernel_init=initializers.head, name="head")(x_BD)), aux


# Logical axes of the parameters, those without weight decay, and their layers (`zoo.partitioning`).
ENCODER_AXES = {
  "encoder/patch/kernel": ("pixels", "embed"),
  "encoder/patch/bias": ("embed",),
  "encoder/(cls|mask)": ("embed",),
  **under("encoder/pos", POSITION_AXES),
  **under(f"encoder/{BLOCK}", BLOCK_AXES),
  **under("encoder/norm", NORM_AXES),
}
LOGICAL_AXES = ENCODER_AXES | {
  **under("pool", ATTENTION_POOL_AXES),
  **under("head_norm", NORM_AXES),
  "representation/kernel": ("embed", "representation"),
  "representation/bias": ("representation",),
  "head/kernel": ("features", "classes"),
  "head/bias": ("classes",),
}
NO_DECAY = (*BIASES_AND_SCALES, r"(^|/)pos/", r"(^|/)(cls|probe|mask|relative)$")


def layer_of(config: Config, path: str) -> int:
  """0 for the patch embedding, positions and learned tokens, i + 1 for block i, L + 1 for all else."""
  return layer_of_encoder(path, config.depth, ("stem", "patch", "pos", "cls", "mask"))
