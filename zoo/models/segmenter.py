"""Segmentation: a backbone that looks at an image, and a head that tells the class of every pixel.

A hierarchical backbone, such as Swin or ConvNeXt, has maps of its image at strides 4, 8, 16 and 32. A plain ViT has one
map, from which the others are made (the simple feature pyramid of Li et al. 2022, "Exploring Plain Vision Transformer
Backbones for Object Detection").
"""

import dataclasses
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

from zoo import registry
from zoo.errors import field_faults, nearest
from zoo.layers import initializers
from zoo.layers.activations import ACTIVATIONS
from zoo.layers.dropout import Dropout
from zoo.layers.linear import Dense
from zoo.layers.norms import LayerNorm, norm
from zoo.layers.patch_embed import unpatchify
from zoo.partitioning import by_batch
from zoo.shapes import expect

STRIDES = (4, 8, 16, 32)  # of the maps that are made of a plain ViT's
BINS = (1, 2, 3, 6)  # UPerNet's, and PSPNet's (Zhao et al. 2017, 3.2)
VARIANTS = {
  "linear": dict(head="linear"),
  "fpn": dict(head="fpn", width=256),  # Kirillov et al. 2019, 4
  "upernet": dict(head="upernet", width=512),
  # Another size on every axis, so that no two can be confused unnoticed.
  "test": dict(
    backbone="vit/test",
    options=dict(patch_size=8, depth=2),
    head="upernet",
    width=20,
    num_classes=7,
    image_size=(40, 24),
    bins=(1, 2),
  ),
}


@dataclass(frozen=True)
class Config:
  """What a segmenter is made of.

  Attributes:
    backbone: a model of images, by name: of a family whose encoder gives the maps "stage_0", ..., or a ViT.
    options: fields of the backbone that are otherwise than its name says.
    head: "linear" tells classes from each place of the backbone's last map, so that the norms of its other maps learn
      nothing; "fpn" sums a feature pyramid (Kirillov et al. 2019); "upernet" also pools the last map at several sizes
      (Xiao et al. 2018).
    width: D of the head.
    num_classes: V.
    image_size: rows and columns the backbone is made for; it may take others. channels: of the image.
    bins: rows, and columns, that "upernet" pools the last map to.
    norm: behind the convolutions of "fpn" and "upernet": "batch", as published, or "layer", at each place by itself.
    dropout_rate: of what the classes are told from.
    dtype: compute type, "float32" or "bfloat16"; parameters, norm statistics and logits stay float32.
  """

  backbone: str = "vit/s16"
  options: Mapping = field(default_factory=dict)
  head: str = "upernet"
  width: int = 256
  num_classes: int = 150
  image_size: tuple[int, int] = (512, 512)
  channels: int = 3
  bins: tuple[int, ...] = BINS
  norm: str = "batch"
  dropout_rate: float = 0.0
  dtype: str = "float32"

  def __post_init__(self):
    if not isinstance(self.options, Mapping):
      raise ValueError(f"options is {self.options!r}; wanted fields of the backbone, as dict(drop_path_rate=0.1)")
    object.__setattr__(self, "options", freeze(dict(self.options)))  # which has a hash, as Linen wants it
    choices = dict(head=tuple(HEADS), norm=("batch", "layer"), dtype=("float32", "bfloat16"))
    faults = field_faults(self, choices, {1: ("width", "num_classes", "channels")}, ("dropout_rate",))
    if not self.bins or any(not isinstance(n, int) or n < 1 for n in self.bins):
      faults.append(f"bins is {self.bins}; wanted numbers of rows, at least 1")
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
    given = dict(image_size=self.image_size, channels=self.channels, dtype=self.dtype)
    if twice := sorted(given.keys() & self.options.keys()):
      raise ValueError(f"options has {', '.join(twice)}, which the segmenter tells its backbone: set its own fields")

    def fields_of(name: str) -> set[str]:
      return {f.name for f in dataclasses.fields(registry.family(name).Config)}

    def fits(name: str) -> bool:
      return hasattr(registry.family(name), "Encoder") and given.keys() <= fields_of(name)

    if self.backbone not in registry.list_models():
      raise ValueError(
        f"unknown backbone {self.backbone!r}{nearest(self.backbone, filter(fits, registry.list_models()))}"
      )
    if not fits(self.backbone):
      raise ValueError(f"the backbone {self.backbone} has no encoder of images; wanted a ViT, Swin, or ConvNeXt")
    if "head" in fields_of(self.backbone):
      given["head"] = "features"
    return registry.create(self.backbone, num_classes=0, **given, **self.options).config

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
  """The shapes `Model` is called with."""
  return (jax.ShapeDtypeStruct((batch, *config.image_size, config.channels), jnp.float32),)


def resize(x_BYXD: jax.Array, size: tuple[int, ...], method: str = "bilinear") -> jax.Array:
  """Maps at another size, without smoothing where that is smaller; pixels have centres (align_corners=False)."""
  if x_BYXD.shape[1:3] == tuple(size):
    return x_BYXD
  return jax.image.resize(x_BYXD, (len(x_BYXD), *size, x_BYXD.shape[-1]), method, antialias=False)


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

  Twice the size by a transposed convolution whose steps are as wide as itself, so each place by itself becomes four;
  with a norm and an activation between two of them. A smaller map by the largest values.
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
      grow = Dense(4 * width, kernel_init=initializers.dense, dtype=self.dtype, name=f"grow_{step}")
      x_BYXD = unpatchify(grow(x_BYXD), 2)
    return by_batch(x_BYXD)


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
    return by_batch(x_BYXD)


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
  pooled = [resize(filters(1, name=f"pool_{i}")(pool(last, bins)), size) for i, bins in enumerate(c.bins)]
  levels = [filters(1, name=f"lateral_{i}")(x) for i, x in enumerate(maps[:-1])]
  levels.append(filters(3, name="bottleneck")(jnp.concatenate([last, *pooled], -1)))
  for i in reversed(range(len(maps) - 1)):
    levels[i] += resize(levels[i + 1], levels[i].shape[1:3])
  levels = [*(filters(3, name=f"smooth_{i}")(x) for i, x in enumerate(levels[:-1])), levels[-1]]
  fused = jnp.concatenate([resize(x, levels[0].shape[1:3]) for x in levels], -1)
  return filters(3, name="fuse")(fused)


# Called within `Model`, whose parts they make: the maps [B, Y, X, D] to what classes are told from, [B, Y, X, D].
HEADS = {"linear": _linear, "fpn": _fpn, "upernet": _upernet}


class Model(nn.Module):
  """Images [B, Y, X, C] to logits [B, Y, X, V], a pixel each."""

  config: Config

  def tell(self, maps: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The head alone, from maps that get smaller: logits at their places, and what they are told from."""
    c, dtype = self.config, jnp.dtype(self.config.dtype)
    x_BYXD = Dropout(c.dropout_rate, name="dropout")(HEADS[c.head](c, maps))
    exact = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
    dense = nn.Dense(c.num_classes, kernel_init=initializers.head, dtype=dtype, dot_general=exact, name="head")
    return dense(x_BYXD).astype(jnp.float32), x_BYXD

  @nn.compact
  def __call__(self, image_BYXC: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Tells the classes of pixels; rng `dropout` turns dropout on, and the backbone's stochastic depth.

    Returns:
      logits [B, Y, X, V] in float32, and aux: that of the backbone's encoder; "stage_0", ... [B, Y, X, D], the maps
      that the head reads; "fused" [B, Y, X, D], what it tells the classes from.
    """
    c = self.config
    size = expect(image_BYXC=image_BYXC)
    tokens, aux = registry.family(c.backbone).Encoder(c.encoder, name="encoder")(image_BYXC)
    if "stage_0" not in aux:
      aux |= self.pyramid(tokens, size["Y"], size["X"])
    maps = [aux[name] for name in sorted(aux) if name.startswith("stage_") and "/" not in name]
    logits_BYXV, aux["fused"] = self.tell(maps)
    return by_batch(resize(logits_BYXV, (size["Y"], size["X"]))), aux

  def pyramid(self, tokens_BTD: jax.Array, rows: int, columns: int) -> dict[str, jax.Array]:
    """Maps of a ViT's tokens, for an image of so many pixels: at each of `STRIDES`, or that of its patches alone."""
    c = self.config
    grid = rows // c.patch_size, columns // c.patch_size
    patches_BPD = tokens_BTD[:, tokens_BTD.shape[1] - grid[0] * grid[1] :]  # without the class token
    x_BYXD = patches_BPD.reshape(len(tokens_BTD), *grid, -1)
    if c.head == "linear":
      return {"stage_0": x_BYXD}
    levels = {f"stage_{i}": c.patch_size / stride for i, stride in enumerate(STRIDES)}
    return {name: Level(f, jnp.dtype(c.dtype), name=f"{name}_of_vit")(x_BYXD) for name, f in levels.items()}
