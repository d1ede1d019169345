"""Vision Transformer (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words").

An image is cut into patches; each is projected to a token; a Transformer encoder mixes the tokens; one vector is
pooled from them and classified.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo import init
from zoo.axes import by_batch
from zoo.dense import Dense
from zoo.errors import field_faults
from zoo.layers import (
  ACTIVATIONS,
  AttentionPool,
  Block,
  Dropout,
  LayerNorm,
  check_heads,
  check_patches,
  choose_tokens,
  drop_path_rates,
  patchify,
)
from zoo.norms import STATISTICS
from zoo.positions import KINDS, RESAMPLINGS, Positions
from zoo.shapes import expect
from zoo.stack import run_blocks
from zoo.weights import torch_layout as torch
from zoo.weights.table import Rule, Transform

# ViT, table 1; Ti and S: DeiT (Touvron et al. 2021), table 1; M, g, G: Zhai et al. 2022, table 2.
SIZES = {
  "ti": dict(width=192, depth=12, mlp_dim=768, heads=3),
  "s": dict(width=384, depth=12, mlp_dim=1536, heads=6),
  "m": dict(width=512, depth=12, mlp_dim=2048, heads=8),
  "b": dict(width=768, depth=12, mlp_dim=3072, heads=12),
  "l": dict(width=1024, depth=24, mlp_dim=4096, heads=16),
  "h": dict(width=1280, depth=32, mlp_dim=5120, heads=16),
  "g": dict(width=1408, depth=40, mlp_dim=6144, heads=16),
  "G": dict(width=1664, depth=48, mlp_dim=8192, heads=16),
}
# For 28 x 28 grey images, as in Fashion-MNIST: small enough to train on a CPU.
SMALL = dict(patch=4, image_size=(28, 28), channels=1, num_classes=10)
VARIANTS = {f"{size}{p}": dict(patch=p, **SIZES[size]) for size in SIZES for p in (8, 14, 16, 32)} | {
  "nano4": dict(width=96, depth=4, mlp_dim=192, heads=4, **SMALL),
  # Another size on every axis, so that no two can be confused unnoticed.
  "test": dict(patch=4, width=24, depth=3, mlp_dim=40, heads=2, image_size=(20, 12), channels=3, num_classes=7),
}


@dataclass(frozen=True)
class Config:
  """What a ViT is made of.

  Attributes:
    patch: side of a patch in pixels.
    width: D. depth: L. mlp_dim: F. heads: N.
    image_size: rows and columns the positions are made for; other sizes resample them (`resampling`).
    channels: of the image.
    num_classes: V; 0 leaves the classifier out, and the output is the pooled features [B, D].
    pool: "cls" reads the class token, "gap" averages the patch tokens, "map" attends to them by a learned query.
    class_token: whether there is one; "cls" needs it, MAE's fine-tuning keeps it beside "gap".
    positions: one of `zoo.positions.KINDS`. resampling: one of `zoo.positions.RESAMPLINGS`.
    representation: width of the tanh layer before the classifier (ViT, B.1), 0 for none.
    final_norm: normalise the tokens after the last block.
    head_norm: normalise the pooled features: "none", "layer" (MAE's fine-tuning, in the place of `final_norm`),
      "batch" (without scale and bias: MAE's linear probing, A.1).
    dropout: of embeddings, MLPs and block outputs. attention_dropout: of attention weights.
    drop_path: stochastic depth rate of the last block; it grows linearly from 0.
    activation: "gelu" (exact) or "gelu_tanh". epsilon: of the layer norms.
    scan: compile one block for all. remat: what the backward pass recomputes (`zoo.stack.run_blocks`).
    dtype: compute type, "float32" or "bfloat16"; parameters, norm statistics, softmax and logits stay float32.
  """

  patch: int
  width: int
  depth: int
  mlp_dim: int
  heads: int
  image_size: tuple[int, int] = (224, 224)
  channels: int = 3
  num_classes: int = 1000
  pool: str = "cls"
  class_token: bool = True
  positions: str = "learned_1d"
  resampling: str = "bicubic"
  representation: int = 0
  final_norm: bool = True
  head_norm: str = "none"
  dropout: float = 0.0
  attention_dropout: float = 0.0
  drop_path: float = 0.0
  activation: str = "gelu"
  epsilon: float = 1e-6
  scan: bool = False
  remat: str = "none"
  dtype: str = "float32"

  def __post_init__(self):
    choices = dict(
      pool=("cls", "gap", "map"),
      positions=KINDS,
      resampling=RESAMPLINGS,
      head_norm=("none", "layer", "batch"),
      activation=tuple(ACTIVATIONS),
      dtype=("float32", "bfloat16"),
    )
    faults = field_faults(
      self,
      choices,
      {1: ("patch", "width", "depth", "mlp_dim", "heads", "channels"), 0: ("num_classes", "representation")},
      ("dropout", "attention_dropout", "drop_path"),
    )
    if self.pool == "cls" and not self.class_token:
      faults.append("pool='cls' needs class_token=True; without a class token use 'gap' or 'map'")
    if faults:
      raise ValueError("\n".join(faults))
    check_heads(self.width, self.heads)
    check_patches(self.image_size, self.patch)

  @property
  def grid(self) -> tuple[int, int]:
    """Rows and columns of patches."""
    return self.image_size[0] // self.patch, self.image_size[1] // self.patch

  @property
  def cell(self) -> int:
    """Side of a patch on the map that the encoder cuts up: here the image itself."""
    return self.patch


def inputs(config: Config, batch: int) -> tuple[jax.ShapeDtypeStruct, ...]:
  """The shapes `Model` is called with."""
  return (jax.ShapeDtypeStruct((batch, *config.image_size, config.channels), jnp.float32),)


class Encoder(nn.Module):
  """Images [B, Y, X, C] to tokens [B, T, D]: the class token, if any, then the patches row by row."""

  config: Config

  def cut(self, image_BYXC: jax.Array) -> jax.Array:
    """Images to the numbers of their patches, [B, Y / patch, X / patch, F]."""
    return patchify(image_BYXC, self.config.cell)

  @nn.compact
  def __call__(
    self,
    image_BYXC: jax.Array,
    visible_BT: jax.Array | None = None,
    corrupted: tuple[jax.Array, jax.Array] | None = None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Encodes all patches, or some, or what was put in their places.

    Args:
      image_BYXC: the images.
      visible_BT: indices of the patches to encode; None for all.
      corrupted: (source_BP, masked_BP). A patch is embedded as the one that `source` tells, or, where `masked`, is a
        learned vector instead; its position stays. None for the patches as they are.
    """
    c = self.config
    if (channels := expect(image_BYXC=image_BYXC)["C"]) != c.channels:
      raise ValueError(f"the images have {channels} channels, the model takes {c.channels}")
    patches = self.cut(image_BYXC)
    B, *grid, values = patches.shape
    positions_YXD, cls_position_D = Positions(c.positions, c.grid, c.width, c.class_token, c.resampling, name="pos")(
      tuple(grid)
    )
    patches = patches.reshape(B, -1, values)
    positions_BPD = positions_YXD.reshape(1, -1, c.width)
    if visible_BT is not None:  # before the projection, which then costs only what is visible
      patches = choose_tokens(patches, visible_BT)
      positions_BPD = positions_BPD[0][visible_BT]
    dtype = jnp.dtype(c.dtype)
    x_BTD = Dense(c.width, kernel_init=init.dense, dtype=dtype, name="patch")(patches)
    if corrupted is not None:
      source_BP, masked_BP = corrupted
      mask_D = self.param("mask", init.token, (c.width,)).astype(dtype)
      x_BTD = jnp.where(masked_BP[..., None], mask_D, choose_tokens(x_BTD, source_BP))
    x_BTD = x_BTD + positions_BPD.astype(dtype)
    if c.class_token:
      cls_D = self.param("cls", init.token, (c.width,)) + cls_position_D
      cls_B1D = jnp.broadcast_to(cls_D.astype(dtype), (B, 1, c.width))
      x_BTD = jnp.concatenate([cls_B1D, x_BTD], 1)
    x_BTD = Dropout(c.dropout, name="dropout")(x_BTD)
    aux = {"embedded": x_BTD}
    block = functools.partial(
      Block,
      heads=c.heads,
      mlp_dim=c.mlp_dim,
      activation=c.activation,
      epsilon=c.epsilon,
      dropout=c.dropout,
      attention_dropout=c.attention_dropout,
      relative_length=c.grid[0] * c.grid[1] + c.class_token if c.positions == "relative" else 0,
      dtype=dtype,
    )
    x_BTD, block_aux = run_blocks(
      block, x_BTD, per_block=drop_path_rates(c.drop_path, c.depth), scan=c.scan, remat=c.remat
    )
    if c.final_norm:
      x_BTD = LayerNorm(epsilon=c.epsilon, dtype=dtype, name="norm")(x_BTD)
    return x_BTD, aux | block_aux


def features(model: nn.Module, variables: dict, image_BYXC: jax.Array, encoder: type[nn.Module] = Encoder) -> jax.Array:
  """The mean of the encoder's patch tokens [B, D]: what a linear probe judges."""
  c = model.config
  tokens_BTD, _ = encoder(c).apply({"params": variables["params"]["encoder"]}, image_BYXC)
  return tokens_BTD[:, int(c.class_token) :].mean(1)


class Model(nn.Module):
  """Images [B, Y, X, C] to logits [B, V]."""

  config: Config
  encoder_class = Encoder

  @nn.compact
  def __call__(self, image_BYXC: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Classifies images; rng `dropout` turns dropout and stochastic depth on.

    Returns:
      logits [B, V] in float32, and aux: "embedded" and "block_00", ... [B, T, D], "block_00/weights", ...
      [B, N, T, T], "tokens" [B, T, D], "features" [B, D] (what the classifier sees).
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
      x_BD = AttentionPool(c.heads, c.mlp_dim, c.activation, c.epsilon, dtype=dtype, name="pool")(patches_BPD)
    if c.head_norm == "layer":
      x_BD = LayerNorm(epsilon=c.epsilon, dtype=dtype, name="head_norm")(x_BD)
    elif c.head_norm == "batch":
      # Training is when somebody keeps the running statistics. Their momentum, 0.9, is PyTorch's 0.1.
      x_BD = nn.BatchNorm(
        use_running_average=not self.is_mutable_collection(STATISTICS),
        momentum=0.9,
        epsilon=1e-6,
        use_bias=False,
        use_scale=False,
        name="head_norm",
      )(x_BD.astype(jnp.float32))
    if c.representation:
      x_BD = nn.Dense(c.representation, kernel_init=init.dense, dtype=dtype, name="representation")(x_BD)
      x_BD = jnp.tanh(x_BD)
    x_BD = by_batch(x_BD.astype(jnp.float32))
    aux |= {"tokens": tokens_BTD, "features": x_BD}
    if not c.num_classes:
      return x_BD, aux
    return by_batch(nn.Dense(c.num_classes, kernel_init=init.head, name="head")(x_BD)), aux


# A Hugging Face `config.json` (ViTConfig): the fields of ours that its kind of model fixes, those that it tells, keys
# of theirs that must be equal, and the tensors whose size tells the rest.
HUGGINGFACE = dict(
  model_types={"vit": {}},
  fields=dict(
    patch="patch_size",
    width="hidden_size",
    depth="num_hidden_layers",
    mlp_dim="intermediate_size",
    heads="num_attention_heads",
    image_size="image_size",
    channels="num_channels",
    activation="hidden_act",
    epsilon="layer_norm_eps",
  ),
  equal={},
  tops=dict(num_classes="classifier.bias", representation="pooler.dense.bias"),
)


def tables(config: Config) -> dict[str, tuple[Rule, ...]]:
  """What published weights call our parameters (`zoo.weights`).

  "huggingface": ViTModel (write a model without classes) and ViTForImageClassification.
  "timm": its VisionTransformer, which MAE's released encoders and fine-tuned classifiers are too.
  "google": the .npz files of the paper and of AugReg (Steiner et al. 2022), and those of big_vision that are not
  stacked by a scan; for models of activation "gelu_tanh", as theirs are.
  """
  prefix = r"(?:vit\.|)" if config.num_classes else r"(?:|vit\.)"
  return {
    "huggingface": (
      *encoder_huggingface(config, prefix),
      *torch.dense(rf"{prefix}pooler\.dense", "representation"),
      *torch.dense("classifier", "head"),
    ),
    "timm": (
      *encoder_timm(config),
      Rule(r"attn_pool\.latent", "pool/probe", torch.TOKEN),
      *torch.heads(r"attn_pool\.q", "pool/attn/q"),
      *torch.heads(r"attn_pool\.kv", "pool/attn/k", "pool/attn/v"),
      *torch.heads_out(r"attn_pool\.proj", "pool/attn/out"),
      *torch.norm(r"attn_pool\.norm", "pool/norm"),
      *torch.dense(r"attn_pool\.mlp\.fc1", "pool/mlp/up"),
      *torch.dense(r"attn_pool\.mlp\.fc2", "pool/mlp/down"),
      *torch.norm("fc_norm", "head_norm"),
      *torch.dense(r"pre_logits\.fc", "representation"),
      *torch.dense("head", "head"),
    ),
    "google": (
      *encoder_google(config),
      *_pool_google(rf"{GOOGLE}MAPHead_0"),
      *_as_they_are(rf"{GOOGLE}pre_logits", "representation"),
      *_as_they_are(rf"{GOOGLE}head", "head"),
    ),
  }


def encoder_huggingface(config: Config, prefix: str) -> tuple[Rule, ...]:
  """The encoder's part of a Hugging Face table."""
  return (
    Rule(rf"{prefix}embeddings\.cls_token", "encoder/cls", torch.TOKEN),
    *torch.patches(rf"{prefix}embeddings\.patch_embeddings\.projection", "encoder/patch", config.cell),
    *_positions(rf"{prefix}embeddings\.position_embeddings", config),
    *block_huggingface(rf"{prefix}(?:encoder\.layer|layers)\.(\d+)", "encoder/block_{:02d}"),
    *torch.norm(rf"{prefix}layernorm", "encoder/norm"),
  )


def block_huggingface(key: str, path: str) -> tuple[Rule, ...]:
  """A block in a Hugging Face table: the names in files, or else those of transformers 5 in memory."""
  return (
    *torch.norm(rf"{key}\.layernorm_before", f"{path}/norm1"),
    *torch.heads(rf"{key}\.attention\.(?:attention\.query|q_proj)", f"{path}/attn/q"),
    *torch.heads(rf"{key}\.attention\.(?:attention\.key|k_proj)", f"{path}/attn/k"),
    *torch.heads(rf"{key}\.attention\.(?:attention\.value|v_proj)", f"{path}/attn/v"),
    *torch.heads_out(rf"{key}\.attention\.(?:output\.dense|o_proj)", f"{path}/attn/out"),
    *torch.norm(rf"{key}\.layernorm_after", f"{path}/norm2"),
    *torch.dense(rf"{key}\.(?:intermediate\.dense|mlp\.fc1)", f"{path}/mlp/up"),
    *torch.dense(rf"{key}\.(?:output\.dense|mlp\.fc2)", f"{path}/mlp/down"),
  )


def encoder_timm(config: Config) -> tuple[Rule, ...]:
  """The encoder's part of a timm table."""
  return (
    Rule("cls_token", "encoder/cls", torch.TOKEN),
    *torch.patches(r"patch_embed\.proj", "encoder/patch", config.cell),
    *_positions("pos_embed", config),
    *block_timm(r"blocks\.(\d+)", "encoder/block_{:02d}"),
    *torch.norm("norm", "encoder/norm"),
  )


def block_timm(key: str, path: str) -> tuple[Rule, ...]:
  """A block in a timm table."""
  return (
    *torch.norm(rf"{key}\.norm1", f"{path}/norm1"),
    *torch.heads(rf"{key}\.attn\.qkv", f"{path}/attn/q", f"{path}/attn/k", f"{path}/attn/v"),
    *torch.heads_out(rf"{key}\.attn\.proj", f"{path}/attn/out"),
    *torch.norm(rf"{key}\.norm2", f"{path}/norm2"),
    *torch.dense(rf"{key}\.mlp\.fc1", f"{path}/mlp/up"),
    *torch.dense(rf"{key}\.mlp\.fc2", f"{path}/mlp/down"),
  )


# Where a file of Google's keeps the parameters: at the top, or as big_vision and the optimiser's state have it.
GOOGLE = r"(?:|params/|opt/target/)"


def encoder_google(config: Config) -> tuple[Rule, ...]:
  """The encoder's part of a table for Google's files: Flax's arrays, which lie as ours do, by other names."""
  embedding = Transform(
    lambda t, shape: t.reshape(shape), lambda a: a.reshape(config.cell, config.cell, -1, a.shape[-1])
  )
  key, path = rf"{GOOGLE}Transformer/encoderblock_(\d+)", "encoder/block_{:02d}"
  return (
    Rule(rf"{GOOGLE}cls", "encoder/cls", torch.TOKEN),
    Rule(rf"{GOOGLE}embedding/kernel", "encoder/patch/kernel", embedding),
    Rule(rf"{GOOGLE}embedding/bias", "encoder/patch/bias", torch.AS_IS),
    *_positions(rf"{GOOGLE}(?:Transformer/posembed_input/pos_embedding|pos_embedding)", config),
    *_as_they_are(rf"{key}/LayerNorm_0", f"{path}/norm1", "scale"),
    *_attention_google(rf"{key}/(?:MultiHeadDotProductAttention_1|MultiHeadDotProductAttention_0)", f"{path}/attn"),
    *_as_they_are(rf"{key}/(?:LayerNorm_2|LayerNorm_1)", f"{path}/norm2", "scale"),
    *_as_they_are(rf"{key}/(?:MlpBlock_3|MlpBlock_0)/Dense_0", f"{path}/mlp/up"),
    *_as_they_are(rf"{key}/(?:MlpBlock_3|MlpBlock_0)/Dense_1", f"{path}/mlp/down"),
    *_as_they_are(rf"{GOOGLE}Transformer/encoder_norm", "encoder/norm", "scale"),
  )


def _pool_google(key: str) -> tuple[Rule, ...]:
  return (
    Rule(rf"{key}/probe", "pool/probe", torch.TOKEN),
    *_attention_google(rf"{key}/MultiHeadDotProductAttention_0", "pool/attn"),
    *_as_they_are(rf"{key}/LayerNorm_0", "pool/norm", "scale"),
    *_as_they_are(rf"{key}/MlpBlock_0/Dense_0", "pool/mlp/up"),
    *_as_they_are(rf"{key}/MlpBlock_0/Dense_1", "pool/mlp/down"),
  )


def _attention_google(key: str, path: str) -> tuple[Rule, ...]:
  names = dict(query="q", key="k", value="v", out="out")
  return tuple(rule for name, ours in names.items() for rule in _as_they_are(rf"{key}/{name}", f"{path}/{ours}"))


def _as_they_are(key: str, path: str, weight: str = "kernel") -> tuple[Rule, ...]:
  return tuple(Rule(rf"{key}/{name}", f"{path}/{name}", torch.AS_IS) for name in (weight, "bias"))


def _positions(key: str, config: Config) -> tuple[Rule, ...]:
  """Published tables hold one vector a patch; the other kinds of positions have no place there."""
  if config.positions == "learned_1d":
    paths = ("encoder/pos/table", "encoder/pos/cls")[: 1 + config.class_token]
    return (Rule(key, paths, torch.POSITIONS),)
  if config.positions == "sincos_2d":
    return (Rule(key, (), torch.sincos_positions(config.grid, config.width, config.class_token)),)
  return ()
