"""Hybrid of a ResNet and a ViT (Dosovitskiy et al. 2021, 3.1 "Hybrid Architecture" and B; Steiner et al. 2022).

The stem is the first stages of a ResNet, with group norm and weight standardisation as in BiT (Kolesnikov et al. 2020,
2.1); patches of its feature map are the tokens of a ViT.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from zoo.layers import initializers
from zoo.layers.patch_embed import check_patches, patchify
from zoo.layers.stack import remat_policy, run_blocks
from zoo.models import vit
from zoo.partitioning import BLOCK, shard_batch
from zoo.shapes import expect

VARIANTS = {
  # R50 for /16 has the fourth stage's blocks in its third (ViT, B.1); R+Ti/16 is the root alone. Its name counts a
  # stride of 2, but there is a pooling behind the convolution, also in the released code: its tokens are of 32 pixels.
  "r_ti16": dict(patch_size=32, stem_depths=(), **vit.SIZES["ti"]),
  "r26_s32": dict(patch_size=32, stem_depths=(2, 2, 2, 2), **vit.SIZES["s"]),
  "r50_b16": dict(patch_size=16, stem_depths=(3, 4, 9), **vit.SIZES["b"]),
  "r50_l32": dict(patch_size=32, stem_depths=(3, 4, 6, 3), **vit.SIZES["l"]),
  "test": vit.VARIANTS["test"]
  | dict(patch_size=16, stem_depths=(1, 2), stem_width=8, stem_groups=4, image_size=(48, 32), depth=2),
}


@dataclass(frozen=True)
class Config(vit.Config):
  """Hyperparameters of the ViT and its ResNet stem.

  Attributes (beside those of `vit.Config`):
    patch_size: side in pixels of the image patch of a token, a multiple of `stride`.
    stem_depths: residual units of each stage; () for the root alone.
    stem_width: of the root; stage i has 2^i times as many narrow features, and 4 times as many between its units.
    stem_groups: of the group norms. stem_norm_eps: of the same, 1e-5 in timm.
  """

  stem_depths: tuple[int, ...] = ()
  stem_width: int = 64
  stem_groups: int = 32
  stem_norm_eps: float = 1e-6

  def __post_init__(self):
    super().__post_init__()
    faults = []
    if min(self.stem_depths, default=1) < 1:
      faults.append(f"stem_depths is {self.stem_depths}; wanted at least 1 for each stage")
    if self.stem_width < 1 or self.stem_groups < 1 or self.stem_width % self.stem_groups:
      fitting = [n for n in range(1, self.stem_width + 1) if self.stem_width % n == 0]
      faults.append(f"{self.stem_groups} groups do not divide the stem's width {self.stem_width}; try one of {fitting}")
    if self.patch_size % self.stride:
      near = max(round(self.patch_size / self.stride), 1) * self.stride
      faults.append(
        f"patch_size is {self.patch_size}, no multiple of the stem's stride of {self.stride} pixels; the nearest is "
        f"{near}"
      )
    if faults:
      raise ValueError("\n".join(faults))

  @property
  def stride(self) -> int:
    """Stride of the stem's map in pixels: 4 after the root and the first stage."""
    return 4 * 2 ** max(len(self.stem_depths) - 1, 0)

  @property
  def feature_patch_size(self) -> int:
    """Side of a patch on the stem's map."""
    return self.patch_size // self.stride


inputs = vit.inputs


class StdConv(nn.Module):
  """A convolution with weight standardisation: [B, Y, X, C] to [B, Y / stride, X / stride, features].

  The weights of each output feature have mean 0 and variance 1 (Qiao et al. 2019, eq. 3; BiT, 2.1). 1e-8 is added to
  the variance, as in timm; the code of the released weights adds 1e-5 to the standard deviation.
  """

  features: int
  size: int
  stride: int = 1
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x_BYXC: jax.Array) -> jax.Array:
    channels = expect(x_BYXC=x_BYXC)["C"]
    kernel = self.param("kernel", initializers.he, (self.size, self.size, channels, self.features))
    of_feature = (0, 1, 2)
    kernel = (kernel - kernel.mean(of_feature)) * jax.lax.rsqrt(kernel.var(of_feature) + 1e-8)
    return jax.lax.conv_general_dilated(
      x_BYXC.astype(self.dtype),
      kernel.astype(self.dtype),
      (self.stride, self.stride),
      "SAME",  # where the stride leaves an odd number of pixels to pad, the larger half comes last
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


class Unit(nn.Module):
  """A residual unit, [B, Y, X, C] to [B, Y / stride, X / stride, 4 width]: narrowed, convolved and widened.

  The bottleneck of He et al. 2016 ("Deep Residual Learning", fig. 5), with the stride at the 3 x 3 convolution. Norms
  follow convolutions, and the last activation follows the sum, as in the released hybrids; BiT is pre-activation (He et
  al. 2016, "Identity Mappings").

  Attributes:
    width: of the 3 x 3 convolution. groups, norm_eps: of the group norms.
    stride: of the convolution. project: whether the input is projected before it is added.
    dtype: compute type.
  """

  width: int
  groups: int
  norm_eps: float
  stride: int = 1
  project: bool = False
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    x_BYXC: jax.Array,
    drop_path_rate: float | jax.Array | None = None,
    shared_inputs: Any = None,
    block_inputs: Any = None,
  ) -> tuple[jax.Array, dict]:
    """Returns the output and an empty aux; the other arguments of a block are not used."""
    del drop_path_rate, shared_inputs, block_inputs
    x = shard_batch(x_BYXC)

    def convolve(y: jax.Array, features: int, size: int, stride: int, name: str, scale=nn.initializers.ones):
      y = StdConv(features, size, stride, self.dtype, name=name)(y)
      return group_norm(self.groups, self.norm_eps, self.dtype, f"{name}_norm", scale)(y)

    y = jax.nn.relu(convolve(x, self.width, 1, 1, "conv1"))
    y = jax.nn.relu(convolve(y, self.width, 3, self.stride, "conv2"))
    # With a scale of 0 the unit is the identity at first (Goyal et al. 2017, 5.1; the released code).
    y = convolve(y, 4 * self.width, 1, 1, "conv3", nn.initializers.zeros)
    if self.project:
      x = convolve(x, 4 * self.width, 1, self.stride, "proj")
    return shard_batch(jax.nn.relu(x + y)), {}


def group_norm(groups: int, epsilon: float, dtype: DTypeLike, name: str, scale_init: Callable = nn.initializers.ones):
  """Group normalisation (Wu & He 2018, eq. 7), statistics in float32 as those of `zoo.layers.norms.LayerNorm`."""
  return nn.GroupNorm(groups, epsilon=epsilon, dtype=dtype, scale_init=scale_init, use_fast_variance=False, name=name)


class Stage(nn.Module):
  """Residual units of one width, [B, Y, X, C] to [B, Y / stride, X / stride, D]: the first strides and projects."""

  config: Config
  index: int

  @nn.compact
  def __call__(self, x_BYXC: jax.Array) -> jax.Array:
    c, i = self.config, self.index
    sizes = dict(width=c.stem_width * 2**i, groups=c.stem_groups, norm_eps=c.stem_norm_eps, dtype=jnp.dtype(c.dtype))
    first = Unit if c.remat == "none" else nn.remat(Unit, policy=remat_policy(c.remat))
    x_BYXD, _ = first(stride=2 if i else 1, project=True, name="first", **sizes)(x_BYXC)
    if rest := c.stem_depths[i] - 1:
      unit = functools.partial(Unit, **sizes)
      x_BYXD, _ = run_blocks(unit, x_BYXD, drop_path_rates=np.zeros(rest), scan=c.scan, remat=c.remat)
    return x_BYXD


class Stem(nn.Module):
  """Images [B, Y, X, C] to a map [B, Y / stride, X / stride, D]: the first stages of a ResNet."""

  config: Config

  @nn.compact
  def __call__(self, image_BYXC: jax.Array) -> jax.Array:
    c = self.config
    dtype = jnp.dtype(c.dtype)
    x_BYXD = StdConv(c.stem_width, 7, 2, dtype, name="root")(image_BYXC)
    x_BYXD = jax.nn.relu(group_norm(c.stem_groups, c.stem_norm_eps, dtype, "root_norm")(x_BYXD))
    x_BYXD = shard_batch(nn.max_pool(x_BYXD, (3, 3), (2, 2), "SAME"))
    for i in range(len(c.stem_depths)):
      x_BYXD = Stage(c, i, name=f"stage_{i}")(x_BYXD)
    return x_BYXD


class Encoder(vit.Encoder):
  """Images [B, Y, X, C] to tokens [B, T, D]: `vit.Encoder` of the stem's map."""

  config: Config

  def patchify(self, image_BYXC: jax.Array) -> jax.Array:
    """Images to patches of the stem's map, [B, Y / patch_size, X / patch_size, F]."""
    c = self.config
    _, Y, X, _ = image_BYXC.shape
    check_patches((Y, X), c.patch_size)
    return patchify(Stem(c, name="stem")(image_BYXC), c.feature_patch_size)


class Model(vit.Model):
  """Images [B, Y, X, C] to logits [B, V]."""

  config: Config
  encoder_class = Encoder


features = functools.partial(vit.features, encoder=Encoder)


# Logical axes of the parameters, those without weight decay, and their layers (`zoo.partitioning`).
_UNIT = rf"encoder/stem/stage_\d+/(first|{BLOCK})"
LOGICAL_AXES = vit.LOGICAL_AXES | {
  "encoder/stem/root/kernel": ("kernel_rows", "kernel_columns", "channels", "root"),
  "encoder/stem/root_norm/(scale|bias)": ("root",),
  # The units of a ResNet: wide, narrow, narrow, wide; the first of a stage comes from another width.
  r"encoder/stem/stage_\d+/first/conv1/kernel": ("point_rows", "point_columns", "unit_input", "narrow"),
  rf"encoder/stem/stage_\d+/{BLOCK}/conv1/kernel": ("point_rows", "point_columns", "wide", "narrow"),
  f"{_UNIT}/conv2/kernel": ("kernel_rows", "kernel_columns", "narrow_input", "narrow"),
  f"{_UNIT}/conv3/kernel": ("point_rows", "point_columns", "narrow", "wide"),
  f"{_UNIT}/proj/kernel": ("point_rows", "point_columns", "proj_input", "wide"),
  f"{_UNIT}/(conv1|conv2)_norm/(scale|bias)": ("narrow",),
  f"{_UNIT}/(conv3|proj)_norm/(scale|bias)": ("wide",),
}
NO_DECAY = vit.NO_DECAY
layer_of = vit.layer_of
