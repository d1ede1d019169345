"""Semantic segmentation: an image backbone, and a head that predicts the class of every pixel.

A hierarchical backbone, Swin or ConvNeXt, has feature maps at strides 4, 8, 16 and 32. From the map of a plain ViT the
others are computed (the simple feature pyramid of Li et al. 2022, "Exploring Plain Vision Transformer Backbones for
Object Detection").
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core import freeze
from jax.typing import DTypeLike

from zoo import config
from zoo.errors import field_faults, nearest
from zoo.layers import initializers
from zoo.layers.activations import ACTIVATIONS
from zoo.layers.dropout import Dropout
from zoo.layers.norms import NORM_AXES, LayerNorm, norm
from zoo.layers.patch_embed import unpatchify
from zoo.models import convnext, hybrid, swin, vit
from zoo.partitioning import shard_batch, under
from zoo.shapes import expect

BACKBONES = {"vit": vit, "hybrid": hybrid, "swin": swin, "convnext": convnext}
STRIDES = (4, 8, 16, 32)  # of the maps computed from a plain ViT's
POOL_SCALES = (1, 2, 3, 6)  # UPerNet's, and PSPNet's (Zhao et al. 2017, 3.2)
VARIANTS = {
  "linear": dict(head="linear"),
  "fpn": dict(head="fpn", width=256),  # Kirillov et al. 2019, 4
  "upernet": dict(head="upernet", width=512),
  # Another size on every axis, so that confusing two is an error.
  "test": dict(
    backbone="vit/test",
    backbone_kwargs=dict(patch_size=8, depth=2),
    head="upernet",
    width=20,
    num_classes=7,
    image_size=(40, 24),
    pool_scales=(1, 2),
  ),
}


@dataclass(frozen=True)
class Config:
  """Hyperparameters.

  Attributes:
    backbone: name of a model of `BACKBONES`.
    backbone_kwargs: fields of the backbone's config that differ from its variant.
    head: "linear" classifies each position of the backbone's last map, so that the norms of its other maps are not
      trained; "fpn" sums a feature pyramid (Kirillov et al. 2019); "upernet" also pools the last map at several sizes
      (Xiao et al. 2018).
    width: D of the head.
    num_classes: V.
    image_size: rows and columns the backbone is made for; it may take others. num_channels: C of the image.
    pool_scales: rows, and columns, that "upernet" pools the last map to.
    norm: after the convolutions of "fpn" and "upernet": "batch", as published, or "layer", at each position.
    dropout_rate: of the classifier's input.
    dtype: compute type, "float32" or "bfloat16"; parameters, norm statistics and logits stay float32.
  """

  backbone: str = "vit/s16"
  backbone_kwargs: Mapping = field(default_factory=dict)
  head: str = "upernet"
  width: int = 256
  num_classes: int = 150
  image_size: tuple[int, int] = (512, 512)
  num_channels: int = 3
  pool_scales: tuple[int, ...] = POOL_SCALES
  norm: str = "batch"
  dropout_rate: float = 0.0
  dtype: str = "float32"

  def __post_init__(self):
    if not isinstance(self.backbone_kwargs, Mapping):
      raise ValueError(
        f"backbone_kwargs is {self.backbone_kwargs!r}; wanted fields of the backbone, as dict(drop_path_rate=0.1)"
      )
    object.__setattr__(
      self, "backbone_kwargs", freeze(dict(self.backbone_kwargs))
    )  # which has a hash, as Linen wants it
    choices = dict(head=tuple(HEADS), norm=("batch", "layer"), dtype=("float32", "bfloat16"))
    faults = field_faults(self, choices, {1: ("width", "num_classes", "num_channels")}, ("dropout_rate",))
    if not self.pool_scales or any(not isinstance(n, int) or n < 1 for n in self.pool_scales):
      faults.append(f"pool_scales is {self.pool_scales}; wanted numbers of rows, at least 1")
    if faults:
      raise ValueError("\n".join(faults))
    plain = not hasattr(self.encoder, "depths") and hasattr(self.encoder, "patch_size")
    if plain and self.head != "linear" and self.encoder.patch_size & (self.encoder.patch_size - 1):
      raise ValueError(
        f"a patch of {self.encoder.patch_size} pixels has no maps at strides {STRIDES}; wanted a power of two, or head"
        " 'linear'"
      )

  @functools.cached_property
  def encoder(self):
    """The config of the backbone."""
    given = dict(num_classes=0, image_size=self.image_size, num_channels=self.num_channels, dtype=self.dtype)
    if twice := sorted(given.keys() & self.backbone_kwargs.keys()):
      raise ValueError(f"backbone_kwargs has {', '.join(twice)}, which are set by the segmenter's own fields")

    family = BACKBONES.get(self.backbone.partition("/")[0])
    known = [f"{name}/{variant}" for name, module in BACKBONES.items() for variant in module.VARIANTS]
    if self.backbone not in known:
      raise ValueError(f"unknown backbone {self.backbone!r}{nearest(self.backbone, known)}")
    if "head" in config.fields(family):
      given["head"] = "features"
    return config.make(family, self.backbone, {**given, **self.backbone_kwargs})

  @property
  def depth(self) -> int:
    """Blocks of the backbone."""
    return sum(self.encoder.depths) if hasattr(self.encoder, "depths") else self.encoder.depth

  @property
  def patch_size(self) -> int:
    """Side of the backbone's patches."""
    return self.encoder.patch_size

  @property
  def resampling(self) -> str:
    """How the backbone interpolates its positions, where it has any."""
    return self.encoder.resampling


def inputs(config: Config, batch: int) -> tuple[jax.ShapeDtypeStruct, ...]:
  """Shapes of the arguments of `Model`."""
  return (jax.ShapeDtypeStruct((batch, *config.image_size, config.num_channels), jnp.float32),)


def resize(x_BYXD: jax.Array, size: tuple[int, ...], method: str = "bilinear") -> jax.Array:
  """Maps at another size, without smoothing where that is smaller; pixels have centres (align_corners=False)."""
  if x_BYXD.shape[1:3] == tuple(size):
    return x_BYXD
  return jax.image.resize(x_BYXD, (x_BYXD.shape[0], *size, x_BYXD.shape[-1]), method, antialias=False)


def pool(x_BYXD: jax.Array, bins: int) -> jax.Array:
  """The means of `bins` x `bins` parts of maps, which overlap where they do not divide them: [B, bins, bins, D].

  Part i of n has the rows from floor(i Y / n) to before ceil((i + 1) Y / n), as torch's adaptive pooling.
  """
  expect(x_BYXD=x_BYXD)

  def shares(size: int) -> np.ndarray:
    part, place = np.arange(bins)[:, None], np.arange(size)
    within = (place >= part * size // bins) & (place < -(-(part + 1) * size // bins))
    return within / within.sum(1, keepdims=True)

  rows, columns = (jnp.asarray(shares(size), x_BYXD.dtype) for size in x_BYXD.shape[1:3])
  return jnp.einsum("aY,BYXD,bX->BabD", rows, x_BYXD, columns, precision="highest")


class Level(nn.Module):
  """A plain ViT's map at `factor` times its size: [B, Y, X, D] to [B, Y factor, X factor, D] (Li et al. 2022, 3).

  A transposed convolution of kernel and stride 2 doubles the size, with a norm and an activation between two of them;
  max pooling makes it smaller.
  """

  factor: float
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x_BYXD: jax.Array) -> jax.Array:
    width = expect(x_BYXD=x_BYXD)["D"]
    if self.factor < 1:
      side = (round(1 / self.factor),) * 2
      return nn.max_pool(x_BYXD, side, side, "SAME")
    for step in range(round(math.log2(self.factor))):
      if step:
        x_BYXD = ACTIVATIONS["gelu"](LayerNorm(epsilon=1e-6, dtype=self.dtype, name=f"norm{step}")(x_BYXD))
      grow = nn.Dense(4 * width, kernel_init=initializers.dense, dtype=self.dtype, name=f"grow_{step}")
      x_BYXD = unpatchify(grow(x_BYXD), 2)
    return shard_batch(x_BYXD)


class Filter(nn.Module):
  """A convolution, and a norm and ReLU, or else a bias: maps [B, Y, X, C] to [B, Y, X, D]."""

  width: int
  size: int
  norm: str = ""
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x_BYXC: jax.Array) -> jax.Array:
    x_BYXD = nn.Conv(
      self.width,
      (self.size, self.size),
      use_bias=not self.norm,
      kernel_init=initializers.he,
      dtype=self.dtype,
      name="filter",
    )(x_BYXC)
    if self.norm:
      x_BYXD = jax.nn.relu(norm(self.norm, 1e-5, self.dtype, "norm")(x_BYXD))
    return shard_batch(x_BYXD)


def _linear(c: Config, maps: list[jax.Array]) -> jax.Array:
  return maps[-1]


def _fpn(c: Config, maps: list[jax.Array]) -> jax.Array:
  """A feature pyramid (Lin et al. 2017, 3), its levels brought to the first's size and summed (Kirillov, 3.1)."""
  filters = functools.partial(Filter, dtype=jnp.dtype(c.dtype))
  laterals = [filters(c.width, 1, name=f"lateral_{i}")(x) for i, x in enumerate(maps)]
  for i in reversed(range(len(maps) - 1)):
    laterals[i] += resize(laterals[i + 1], laterals[i].shape[1:3], "nearest")
  levels = []
  for i, x in enumerate(laterals):
    x = filters(c.width, 3, name=f"smooth_{i}")(x)
    # Each step doubles the map; the first level has one convolution, too.
    for step, size in enumerate([laterals[j].shape[1:3] for j in reversed(range(i))] or [x.shape[1:3]]):
      x = resize(filters(max(c.width // 2, 1), 3, c.norm, name=f"level_{i}_{step}")(x), size)
    levels.append(x)
  return functools.reduce(jnp.add, levels)


def _upernet(c: Config, maps: list[jax.Array]) -> jax.Array:
  """A feature pyramid on top of the last map pooled at several sizes, all levels fused (Xiao et al. 2018, 3.1)."""
  filters = functools.partial(Filter, c.width, norm=c.norm, dtype=jnp.dtype(c.dtype))
  last, size = maps[-1], maps[-1].shape[1:3]
  pooled = [resize(filters(1, name=f"pool_{i}")(pool(last, bins)), size) for i, bins in enumerate(c.pool_scales)]
  levels = [filters(1, name=f"lateral_{i}")(x) for i, x in enumerate(maps[:-1])]
  levels.append(filters(3, name="bottleneck")(jnp.concatenate([last, *pooled], -1)))
  for i in reversed(range(len(maps) - 1)):
    levels[i] += resize(levels[i + 1], levels[i].shape[1:3])
  levels = [*(filters(3, name=f"smooth_{i}")(x) for i, x in enumerate(levels[:-1])), levels[-1]]
  fused = jnp.concatenate([resize(x, levels[0].shape[1:3]) for x in levels], -1)
  return filters(3, name="fuse")(fused)


# Called within `Model`, whose submodules they are: feature maps [B, Y, X, D] to the classifier's input [B, Y, X, D].
HEADS = {"linear": _linear, "fpn": _fpn, "upernet": _upernet}


class Model(nn.Module):
  """Images [B, Y, X, C] to logits [B, Y, X, V], a pixel each."""

  config: Config

  def predict(self, maps: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The head alone, from maps of decreasing size: logits [B, Y, X, V] and the classifier's input [B, Y, X, D]."""
    c, dtype = self.config, jnp.dtype(self.config.dtype)
    x_BYXD = Dropout(c.dropout_rate, name="dropout")(HEADS[c.head](c, maps))
    exact = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
    dense = nn.Dense(c.num_classes, kernel_init=initializers.head, dtype=dtype, dot_general=exact, name="head")
    return dense(x_BYXD).astype(jnp.float32), x_BYXD

  @nn.compact
  def __call__(self, image_BYXC: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Classifies pixels; rng `dropout` enables dropout, and the backbone's stochastic depth.

    Returns:
      logits [B, Y, X, V] in float32, and aux: that of the backbone's encoder; "stage_0", ... [B, Y, X, D], the maps
      that the head reads; "fused" [B, Y, X, D], the classifier's input.
    """
    c = self.config
    size = expect(image_BYXC=image_BYXC)
    tokens, aux = BACKBONES[c.backbone.partition("/")[0]].Encoder(c.encoder, name="encoder")(image_BYXC)
    if "stage_0" not in aux:
      aux |= self.pyramid(tokens, size["Y"], size["X"])
    maps = [aux[name] for name in sorted(aux) if name.startswith("stage_") and "/" not in name]
    logits_BYXV, aux["fused"] = self.predict(maps)
    return shard_batch(resize(logits_BYXV, (size["Y"], size["X"]))), aux

  def pyramid(self, tokens_BTD: jax.Array, rows: int, columns: int) -> dict[str, jax.Array]:
    """Maps of a ViT's tokens, for an image of so many pixels: at each of `STRIDES`, or that of its patches alone."""
    c = self.config
    grid = rows // c.patch_size, columns // c.patch_size
    patches_BPD = tokens_BTD[:, tokens_BTD.shape[1] - grid[0] * grid[1] :]  # without the class token
    x_BYXD = patches_BPD.reshape(tokens_BTD.shape[0], *grid, -1)
    if c.head == "linear":
      return {"stage_0": x_BYXD}
    levels = {f"stage_{i}": c.patch_size / stride for i, stride in enumerate(STRIDES)}
    return {name: Level(f, jnp.dtype(c.dtype), name=f"{name}_of_vit")(x_BYXD) for name, f in levels.items()}


# Logical axes of the parameters, those without weight decay, and their layers (`zoo.partitioning`).
_CONVOLUTION = r"(lateral|smooth|level|pool|bottleneck|fuse)[_\d]*"
LOGICAL_AXES = {
  path: names
  for family in BACKBONES.values()
  for path, names in family.LOGICAL_AXES.items()
  if path.startswith("encoder")
} | {
  f"{_CONVOLUTION}/filter/kernel": ("kernel_rows", "kernel_columns", "filter_input", "embed"),
  f"{_CONVOLUTION}/filter/bias": ("embed",),
  **under(f"{_CONVOLUTION}/norm", NORM_AXES),
  r"stage_\d_of_vit/grow_\d/kernel": ("embed", "grown"),
  r"stage_\d_of_vit/grow_\d/bias": ("grown",),
  **under(r"stage_\d_of_vit/norm\d", NORM_AXES),
  "head/kernel": ("features", "classes"),
  "head/bias": ("classes",),
}
NO_DECAY = tuple(dict.fromkeys(pattern for family in BACKBONES.values() for pattern in family.NO_DECAY))


def layer_of(config: Config, path: str) -> int:
  """The backbone's layers; L + 1 for the head.

  Raises:
    ValueError: the backbone has no numbered layers, as ConvNeXt.
  """
  family = BACKBONES[config.backbone.partition("/")[0]]
  if not hasattr(family, "layer_of"):
    raise ValueError(f"the backbone {config.backbone} has no numbered layers; wanted a ViT, hybrid or Swin")
  return family.layer_of(config.encoder, path) if path.startswith("encoder/") else config.depth + 1
