"""Swin Transformer (Liu et al. 2021, "Hierarchical Vision Transformer using Shifted Windows"); V2 (Liu et al. 2022).

Self-attention is within windows; the windows of every second block are shifted by half their side, which connects
neighbouring windows. Between stages 2 x 2 patches are merged into one of twice the width: feature maps at strides 4, 8,
16 and 32, at a cost linear in the image size.
"""

import functools
import re
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.errors import field_faults
from zoo.layers import initializers
from zoo.layers.activations import ACTIVATIONS
from zoo.layers.attention import check_heads
from zoo.layers.block import BLOCK_AXES
from zoo.layers.dropout import Dropout, DropPath, drop_path_rates
from zoo.layers.mlp import Mlp
from zoo.layers.norms import NORM_AXES, LayerNorm
from zoo.layers.patch_embed import pad_to_multiple, patchify
from zoo.layers.position_embeddings import (
  RESAMPLINGS,
  WINDOW_BIAS_AXES,
  ContinuousRelativePositionBias,
  WindowRelativePositionBias,
)
from zoo.layers.stack import run_blocks
from zoo.layers.window_attention import WINDOW_IMPLEMENTATIONS, attend_windows, resolve_window_implementation
from zoo.layers.windows import WindowLayout
from zoo.partitioning import BIASES_AND_SCALES, BLOCK, shard_batch, under
from zoo.shapes import expect

# Liu et al. 2021, 3.3.
SIZES = {
  "t": dict(width=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
  "s": dict(width=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
  "b": dict(width=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
  "l": dict(width=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48)),
}
V1 = dict(norm_position="pre", attention_score="dot", relative_position_bias="table")
V2 = dict(norm_position="res_post", attention_score="cosine", relative_position_bias="continuous")
VARIANTS = (
  {size: dict(**SIZES[size]) for size in SIZES}
  | {f"{size}_w12_384": dict(window_size=12, image_size=(384, 384), **SIZES[size]) for size in ("b", "l")}
  | {f"v2_{size}": dict(window_size=8, image_size=(256, 256), **SIZES[size], **V2) for size in ("t", "s", "b")}
  | {
    # For 28 x 28 grey images, as in Fashion-MNIST: 14 x 14 patches in four windows, then 7 x 7 in one.
    "nano": dict(
      patch_size=2, width=48, depths=(2, 2), num_heads=(3, 6), mlp_ratio=2.0, image_size=(28, 28), num_channels=1,
      num_classes=10,
    ),
    # For the same, with a quarter of the patches: 7 x 7 in four windows, then 4 x 4 and 2 x 2 in one.
    "nano4": dict(
      width=48, depths=(2, 2, 2), num_heads=(3, 6, 12), window_size=4, mlp_ratio=2.0, image_size=(28, 28),
      num_channels=1, num_classes=10,
    ),
    # Another size on every axis, so that confusing two is an error; maps of 8 x 10 and 4 x 5 need padding.
    "test": dict(
      width=24, depths=(2, 4), num_heads=(2, 6), window_size=3, mlp_ratio=1.75, image_size=(32, 40), num_channels=3,
      num_classes=7,
    ),
  }
)  # fmt: skip
HEADS = ("classification", "none", "features")


@dataclass(frozen=True)
class Config:
  """Hyperparameters; `V2` has the three fields that make a Swin V2.

  Attributes:
    width: D of the first stage; it doubles from stage to stage.
    depths: blocks of each stage: even, since regular and shifted windows alternate. num_heads: N of each stage.
    patch_size: side of a patch in pixels. window_size: M, side of a window in tokens.
    mlp_ratio: F over D.
    image_size: default rows and columns. Any other size works: images and maps are padded at the bottom and on the
      right to multiples of a patch, a window, and of 2 for merging. Parameters do not depend on it.
    num_channels: C of the image.
    num_classes: V of "classification"; 0 leaves the classifier out, and the output is the pooled features [B, D].
    head: "classification"; "none": the last map, normalised; "features": the last map, and in aux those of all stages,
      each with a norm of its own, as a backbone for dense tasks.
    norm_position: norms before sublayers, "pre", or "res_post": behind them, before the sum (V2, 3.2).
    attention_score: "dot" products, or "cosine" (V2, eq. 2).
    relative_position_bias: a learned "table", or "continuous": a network of log-spaced coordinates (V2, 3.3).
    pretrained_window_sizes: of each stage, the window side that a continuous bias was trained with; 0 or () for that of
      `image_size` (V2, 3.3).
    clamp_window: for maps no larger than a window: "both": the window is a square of the map's smaller side, without
      shift, as published for classification; "each": the same along each axis by itself; "never": windows are not
      changed, as in the published backbones for dense tasks.
    shift: "roll" or "pad", see `zoo.layers.windows`; they differ in cost alone.
    mask_padding: mask the padding of maps in attention. Published code attends to it, as zeros: False reproduces its
      numbers (`zoo.load` of a Hugging Face directory sets it). No difference where windows divide the maps.
    resampling: how `zoo.load` interpolates a table of another window size: one of
      `zoo.layers.position_embeddings.RESAMPLINGS`.
    dropout_rate: of embeddings, MLPs and sublayer outputs. attention_dropout_rate: of attention weights.
    drop_path_rate: stochastic depth rate of the last block; it grows linearly from 0 over all stages.
    activation: one of `zoo.layers.activations.ACTIVATIONS`. norm_eps: of the layer norms.
    scan: compile one pair of blocks for all of a stage. remat: what the backward pass recomputes
      (`zoo.layers.stack.run_blocks`).
    dtype: compute type, "float32" or "bfloat16"; parameters, norm statistics, softmax and logits stay float32.
    attention: one of `zoo.layers.window_attention.WINDOW_IMPLEMENTATIONS`; "auto" is "xla" where weights are dropped.
  """

  width: int
  depths: tuple[int, ...]
  num_heads: tuple[int, ...]
  patch_size: int = 4
  window_size: int = 7
  mlp_ratio: float = 4.0
  image_size: tuple[int, int] = (224, 224)
  num_channels: int = 3
  num_classes: int = 1000
  head: str = "classification"
  norm_position: str = "pre"
  attention_score: str = "dot"
  relative_position_bias: str = "table"
  pretrained_window_sizes: tuple[int, ...] = ()
  clamp_window: str = "both"
  shift: str = "roll"
  mask_padding: bool = True
  resampling: str = "bicubic"
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  drop_path_rate: float = 0.0
  activation: str = "gelu"
  norm_eps: float = 1e-5
  scan: bool = False
  remat: str = "none"
  dtype: str = "float32"
  attention: str = "auto"

  def __post_init__(self):
    choices = dict(
      head=HEADS,
      norm_position=("pre", "res_post"),
      attention_score=("dot", "cosine"),
      relative_position_bias=("table", "continuous"),
      clamp_window=("both", "each", "never"),
      shift=("roll", "pad"),
      resampling=RESAMPLINGS,
      activation=tuple(ACTIVATIONS),
      dtype=("float32", "bfloat16"),
      attention=WINDOW_IMPLEMENTATIONS,
    )
    at_least = {1: ("patch_size", "width", "window_size", "num_channels"), 0: ("num_classes",)}
    faults = field_faults(self, choices, at_least, ("dropout_rate", "attention_dropout_rate", "drop_path_rate"))
    if self.mlp_ratio <= 0:
      faults.append(f"mlp_ratio is {self.mlp_ratio}; wanted more than 0")
    if not self.depths or any(depth < 2 or depth % 2 for depth in self.depths):
      faults.append(f"depths is {self.depths}; wanted even numbers, at least 2: regular and shifted windows alternate")
    if len(self.num_heads) != len(self.depths) or any(n < 1 for n in self.num_heads):
      faults.append(f"num_heads is {self.num_heads}; wanted at least 1 for each of the {len(self.depths)} stages")
    sides = self.pretrained_window_sizes
    if sides and (len(sides) < len(self.depths) or min(sides) < 0):
      faults.append(f"pretrained_window_sizes is {sides}; wanted none, or 0 or more for each stage")
    if faults:
      raise ValueError("\n".join(faults))
    for stage, num_heads in enumerate(self.num_heads):
      check_heads(self.width_of(stage), num_heads)

  @property
  def depth(self) -> int:
    """L, the blocks of all stages."""
    return sum(self.depths)

  def width_of(self, stage: int) -> int:
    """D of a stage, from 0 on."""
    return self.width * 2**stage

  def implementation(self, stage: int, size: tuple[int, int]) -> str:
    """What attends within the windows of a stage's map of this size, where it is traced."""
    width, num_heads = self.width_of(stage), self.num_heads[stage]
    return resolve_window_implementation(
      self.attention, width, num_heads, size, self.dtype, self.attention_dropout_rate
    )

  def window_layout(self, size: tuple[int, int], shifted: bool = False) -> WindowLayout:
    """The window layout of a map of this size."""
    window, half = (self.window_size, self.window_size), self.window_size // 2
    shift = (half, half)
    if self.clamp_window == "both" and min(size) <= self.window_size:
      window, shift = (min(size), min(size)), (0, 0)
    elif self.clamp_window == "each":
      window = min(size[0], self.window_size), min(size[1], self.window_size)
      shift = half if size[0] > self.window_size else 0, half if size[1] > self.window_size else 0
    return WindowLayout(size, window, shift if shifted else (0, 0), self.shift, self.mask_padding)

  def trained_window(self, stage: int) -> tuple[int, int]:
    """Rows and columns of the windows that a stage's continuous bias was trained with."""
    if self.pretrained_window_sizes and (side := self.pretrained_window_sizes[stage]):
      return side, side
    stride = self.patch_size * 2**stage
    Y, X = (-(-side // stride) for side in self.image_size)
    return self.window_layout((Y, X)).window_size


def inputs(config: Config, batch: int) -> tuple[jax.ShapeDtypeStruct, ...]:
  """Shapes of the arguments of `Model`."""
  return (jax.ShapeDtypeStruct((batch, *config.image_size, config.num_channels), jnp.float32),)


class Block(nn.Module):
  """Attention within windows and an MLP, each added to its input (eq. 3): [B, Y, X, D] to [B, Y, X, D]."""

  config: Config
  stage: int
  shifted: bool

  @nn.compact
  def __call__(self, x_BYXD: jax.Array, drop_path_rate: float | jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Returns the output, and the attention weights [B W, N, T, T]."""
    c, dtype, num_heads = self.config, jnp.dtype(self.config.dtype), self.config.num_heads[self.stage]
    B, Y, X, D = x_BYXD.shape
    layout = c.window_layout((Y, X), self.shifted)
    post = c.norm_position == "res_post"

    # V2's released code begins with blocks that are the identity: the norms behind the sublayers start with scale 0.
    scale_init = nn.initializers.zeros if post else nn.initializers.ones
    norm = functools.partial(LayerNorm, epsilon=c.norm_eps, dtype=dtype, scale_init=scale_init)
    bias_name = "relative_position_bias"
    if c.relative_position_bias == "table":
      position_bias = WindowRelativePositionBias(num_heads, c.window_size, name=bias_name)
    else:
      position_bias = ContinuousRelativePositionBias(num_heads, c.trained_window(self.stage), name=bias_name)
    mlp = Mlp(int(c.mlp_ratio * D), c.activation, c.dropout_rate, dtype, initializers.swin, name="mlp")
    x_BYXD, chosen = shard_batch(x_BYXD), c.implementation(self.stage, (Y, X))
    x, examples = (x_BYXD, 0) if chosen == "xla" else (x_BYXD.reshape(-1, D), B)

    norm1 = norm(name="norm1")
    y_BYXD, weights = attend_windows(
      (x if post else norm1(x)).reshape(B, Y, X, D),
      position_bias(layout.window_size),
      *(layout, chosen, c.attention_dropout_rate),
      num_heads=num_heads,
      dtype=dtype,
      kernel_init=initializers.swin,
      cosine_attention=c.attention_score == "cosine",
      name="attn",
    )
    y = Dropout(c.dropout_rate, name="attn_dropout")(y_BYXD.reshape(x.shape))
    x = x + DropPath(name="attn_drop_path")(norm1(y) if post else y, drop_path_rate, examples)

    norm2 = norm(name="norm2")
    y = Dropout(c.dropout_rate, name="mlp_dropout")(mlp(x if post else norm2(x)))
    x = x + DropPath(name="mlp_drop_path")(norm2(y) if post else y, drop_path_rate, examples)
    return shard_batch(x.reshape(B, Y, X, D)), weights


class Pair(nn.Module):
  """Two successive blocks (figure 3b), with regular and with shifted windows: [B, Y, X, D] to [B, Y, X, D]."""

  config: Config
  stage: int

  @nn.compact
  def __call__(
    self, x_BYXD: jax.Array, drop_path_rate: Any = None, shared_inputs: Any = None, block_inputs: Any = None
  ) -> tuple[jax.Array, dict]:
    """Returns the output and aux, for `run_blocks`; `drop_path_rate` are two rates, or None."""
    aux = {}
    for i, name in enumerate(("regular", "shifted")):
      block = Block(self.config, self.stage, name == "shifted", name=name)
      x_BYXD, weights = block(x_BYXD, None if drop_path_rate is None else drop_path_rate[i])
      aux |= {name: x_BYXD, f"{name}/weights": weights}
    return x_BYXD, aux


class Stage(nn.Module):
  """An image [B, Y, X, C] to the first map [B, Y / patch, X / patch, D], or a map to the next, half as large."""

  config: Config
  stage: int

  @nn.compact
  def __call__(
    self, x: jax.Array, masked_BYX: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Returns the map for the next stage, the one for the head (normalised if the head is "features"), and aux."""
    c, dtype, stage = self.config, jnp.dtype(self.config.dtype), self.stage
    norm = functools.partial(LayerNorm, epsilon=c.norm_eps, dtype=dtype)
    aux = {}
    side = 2 if stage else c.patch_size
    patches = patchify(pad_to_multiple(x, side), side)
    size = patches.shape[:3]
    if c.implementation(stage, (size[1], size[2])) != "xla":
      patches = patches.reshape(-1, patches.shape[-1])
    if stage == 0:
      x = nn.Dense(c.width, kernel_init=initializers.fan_in, dtype=dtype, name="patch")(patches)
      x = norm(name="embed_norm")(x)
      if masked_BYX is not None:
        mask_D = self.param("mask", initializers.token, (c.width,)).astype(dtype)
        x = jnp.where(masked_BYX.reshape(*x.shape[:-1], 1), mask_D, x)
      x = Dropout(c.dropout_rate, name="dropout")(x)
      aux["embedded"] = x.reshape(*size, -1)
    else:
      merge = nn.Dense(c.width_of(stage), use_bias=False, kernel_init=initializers.swin, dtype=dtype, name="merge")
      post = c.norm_position == "res_post"
      x = norm(name="norm")(merge(patches)) if post else merge(norm(name="merged_norm")(patches))
    x_BYXD = x.reshape(*size, -1)
    first, pairs = sum(c.depths[:stage]), c.depths[stage] // 2
    rates = drop_path_rates(c.drop_path_rate, c.depth)[first : first + 2 * pairs].reshape(pairs, 2)
    pair = functools.partial(Pair, config=c, stage=stage)
    x_BYXD, block_aux = run_blocks(pair, x_BYXD, drop_path_rates=rates, scan=c.scan, remat=c.remat)
    feature_map_BYXD = norm(name="head_norm")(x_BYXD) if c.head == "features" else x_BYXD
    return x_BYXD, feature_map_BYXD, aux | block_aux


class Encoder(nn.Module):
  """Images [B, Y, X, C] to the last map [B, Y, X, D], normalised."""

  config: Config

  @nn.compact
  def __call__(
    self, image_BYXC: jax.Array, masked_BYX: jax.Array | None = None
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`masked_BYX` [B, Y / patch, X / patch] replaces embeddings of patches by a learned vector; None for no mask."""
    c = self.config
    if (channels := expect(image_BYXC=image_BYXC)["C"]) != c.num_channels:
      raise ValueError(f"the images have {channels} channels, the model takes {c.num_channels}")
    if not min(size := image_BYXC.shape[1:3]):
      raise ValueError(f"an image of {size[0]} x {size[1]} pixels is empty; wanted at least 1 each way")
    x, aux = image_BYXC, {}
    for stage in range(len(c.depths)):
      name = f"stage_{stage}"
      x, aux[name], stage_aux = Stage(c, stage, name=name)(x, masked_BYX if stage == 0 else None)
      aux |= {f"{name}/{key}": value for key, value in stage_aux.items()}
    aux["embedded"] = aux.pop("stage_0/embedded")
    if c.head == "features":
      return aux[f"stage_{len(c.depths) - 1}"], aux
    return LayerNorm(epsilon=c.norm_eps, dtype=jnp.dtype(c.dtype), name="norm")(x), aux


def features(model: nn.Module, variables: dict, image_BYXC: jax.Array) -> jax.Array:
  """The mean of the last map [B, D], the features of linear probing."""
  tokens_BYXD, _ = Encoder(model.config).apply({"params": variables["params"]["encoder"]}, image_BYXC)
  return tokens_BYXD.mean((1, 2))


class Model(nn.Module):
  """Images [B, Y, X, C] to the output of `Config.head`."""

  config: Config

  @nn.compact
  def __call__(self, image_BYXC: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Encodes images of any size; rng `dropout` enables dropout and stochastic depth.

    Returns:
      float32: logits [B, V] of "classification", or the last map [B, Y, X, D]. And aux: "embedded", "stage_0", ..., the
      maps [B, Y, X, D] at strides 4, 8, 16, 32, with norms if the head is "features"; of every block
      "stage_0/block_00/regular", "stage_0/block_00/shifted", ... [B, Y, X, D], and their weights,
      "stage_0/block_00/regular/weights", ... [B W, N, T, T]; "tokens" [B, Y, X, D], the last map, normalised, and
      "features" [B, D], their mean.
    """
    c = self.config
    tokens_BYXD, aux = Encoder(c, name="encoder")(image_BYXC)
    x_BD = shard_batch(tokens_BYXD.astype(jnp.float32).mean((1, 2)))
    aux |= {"tokens": tokens_BYXD, "features": x_BD}
    if c.head != "classification":
      return tokens_BYXD.astype(jnp.float32), aux
    if not c.num_classes:
      return x_BD, aux
    return shard_batch(nn.Dense(c.num_classes, kernel_init=initializers.swin, name="head")(x_BD)), aux


# Logical axes of the parameters, those without weight decay, and their layers (`zoo.partitioning`).
_BLOCK = rf"encoder/stage_\d+/{BLOCK}/(regular|shifted)"
ENCODER_AXES = {
  r"encoder/stage_\d+/patch/kernel": ("pixels", "embed"),
  r"encoder/stage_\d+/patch/bias": ("embed",),
  "encoder/stage_0/mask": ("embed",),
  **under(_BLOCK, BLOCK_AXES),
  **under(f"{_BLOCK}/relative_position_bias", WINDOW_BIAS_AXES),
  r"encoder/stage_\d+/merge/kernel": ("merged", "embed"),
  r"encoder/stage_\d+/merged_norm/(scale|bias)": ("merged",),
  **under(r"encoder/stage_\d+/norm", NORM_AXES),
  **under(r"encoder/stage_\d+/(embed_norm|head_norm)", NORM_AXES),
  **under("encoder/norm", NORM_AXES),
}
LOGICAL_AXES = ENCODER_AXES | {"head/kernel": ("features", "classes"), "head/bias": ("classes",)}
NO_DECAY = (*BIASES_AND_SCALES, r"(^|/)relative_position_bias/", r"(^|/)mask$")


def layer_of(config: Config, path: str) -> int:
  """0 for the patch embedding, i + 1 for block i, counted over all stages, L + 1 for all else.

  A merging belongs to the last block before it, as in the code of Xie et al. 2022.
  """
  if block := re.match(r"encoder/stage_(\d+)/block_(\d+)/(regular|shifted)/", path):
    return sum(config.depths[: int(block[1])]) + 2 * int(block[2]) + (block[3] == "shifted") + 1
  if merging := re.match(r"encoder/stage_([1-9]\d*)/(?:merge|merged_norm|norm)/", path):
    return sum(config.depths[: int(merging[1])])
  return 0 if re.match(r"encoder/stage_0/(patch|mask|embed_norm)", path) else config.depth + 1
