"""ConvNeXt (Liu et al. 2022, "A ConvNet for the 2020s"): a convolutional network built like a Transformer.

Four stages, each at half the resolution of the previous one. In a block a depthwise convolution mixes positions, where
a Transformer has attention, and an MLP mixes features.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from zoo.errors import field_faults
from zoo.kernels.depthwise_conv import depthwise_conv
from zoo.layers import initializers
from zoo.layers.activations import ACTIVATIONS
from zoo.layers.dropout import DropPath, drop_path_rates
from zoo.layers.mlp import MLP_AXES, Mlp
from zoo.layers.norms import NORM_AXES, LayerNorm
from zoo.layers.patch_embed import patchify
from zoo.layers.stack import run_blocks
from zoo.partitioning import BIASES_AND_SCALES, BLOCK, replicate, shard_batch, under
from zoo.shapes import expect

KERNEL = 7  # side of the depthwise convolutions (2.5)
RATIO = 4  # of the MLPs' width to the blocks' (2.4)

VARIANTS = {
  # Section 3 and table 9.
  "t": dict(patch_size=4, widths=(96, 192, 384, 768), depths=(3, 3, 9, 3)),
  "s": dict(patch_size=4, widths=(96, 192, 384, 768), depths=(3, 3, 27, 3)),
  "b": dict(patch_size=4, widths=(128, 256, 512, 1024), depths=(3, 3, 27, 3)),
  "l": dict(patch_size=4, widths=(192, 384, 768, 1536), depths=(3, 3, 27, 3)),
  # As many parameters as vit/nano4, for the same images.
  "nano": dict(
    patch_size=2,
    widths=(32, 64, 128),
    depths=(2, 3, 1),
    image_size=(28, 28),
    num_channels=1,
    num_classes=10,
    layer_scale_init_value=0.1,
  ),
  # Another size on every axis, so that confusing two is an error.
  "test": dict(patch_size=4, widths=(8, 12, 20), depths=(1, 2, 1), image_size=(16, 32), num_classes=7),
}


@dataclass(frozen=True)
class Config:
  """Hyperparameters.

  Attributes:
    widths: D of each stage. depths: blocks of each stage.
    patch_size: side in pixels of the patches of the first stage.
    image_size: default rows and columns; any others that the last stage's stride fits into work.
    num_channels: C of the image.
    num_classes: V of head "classification"; 0 for no classifier: the output is the pooled features [B, D].
    head: "classification" pools the last stage and classifies; "features" normalises every stage's map, for dense
      prediction.
    drop_path_rate: stochastic depth rate of the last block; it grows linearly from 0 at the first, over all stages.
    layer_scale_init_value: initial value of layer scale (Touvron et al. 2021, eq. 4); 0 for none.
    activation: "gelu" (exact) or "gelu_tanh".
    norm_eps: of the layer norms. head_norm_eps: of the one before the classifier, 1e-12 at Hugging Face.
    scan: compile one block for all of a stage. remat: what the backward pass recomputes
      (`zoo.layers.stack.run_blocks`).
    dtype: compute type, "float32" or "bfloat16"; parameters, norm statistics and logits stay float32.
  """

  widths: tuple[int, ...]
  depths: tuple[int, ...]
  patch_size: int = 4
  image_size: tuple[int, int] = (224, 224)
  num_channels: int = 3
  num_classes: int = 1000
  head: str = "classification"
  drop_path_rate: float = 0.0
  layer_scale_init_value: float = 1e-6
  activation: str = "gelu"
  norm_eps: float = 1e-6
  head_norm_eps: float = 1e-6
  scan: bool = False
  remat: str = "none"
  dtype: str = "float32"

  def __post_init__(self):
    choices = dict(head=("classification", "features"), activation=tuple(ACTIVATIONS), dtype=("float32", "bfloat16"))
    least = {1: ("patch_size", "num_channels"), 0: ("num_classes", "layer_scale_init_value")}
    faults = field_faults(self, choices, least, ("drop_path_rate",))
    for field in ("widths", "depths"):
      if min(getattr(self, field), default=0) < 1:
        faults.append(f"{field} is {getattr(self, field)}; wanted one for each stage, at least 1")
    if len(self.widths) != len(self.depths):
      faults.append(f"{len(self.widths)} widths and {len(self.depths)} depths; wanted one of both for each stage")
    if faults:
      raise ValueError("\n".join(faults))

  @property
  def strides(self) -> tuple[int, ...]:
    """Stride of each stage's map in pixels."""
    return tuple(self.patch_size * 2**i for i in range(len(self.widths)))


def inputs(config: Config, batch: int) -> tuple[jax.ShapeDtypeStruct, ...]:
  """Shapes of the arguments of `Model`."""
  return (jax.ShapeDtypeStruct((batch, *config.image_size, config.num_channels), jnp.float32),)


class DepthwiseConv(nn.Module):
  """Maps [B, Y, X, D] to [B, Y, X, D]: each feature convolved by itself (Liu et al. 2022, 2.3)."""

  size: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x_BYXD: jax.Array) -> jax.Array:
    width = expect(x_BYXD=x_BYXD)["D"]
    kernel = self.param("kernel", initializers.normal, (self.size, self.size, 1, width))
    bias_D = self.param("bias", nn.initializers.zeros, (width,))
    # If it were sharded along the features, XLA would move the maps, which are larger.
    kernel = replicate(kernel.astype(self.dtype))
    return depthwise_conv(x_BYXD.astype(self.dtype), kernel) + bias_D.astype(self.dtype)


class Block(nn.Module):
  """Maps [B, Y, X, D] to [B, Y, X, D] (figure 4): a 7 x 7 depthwise convolution, then an MLP."""

  activation: str = "gelu"
  norm_eps: float = 1e-6
  initial_scale: float = 1e-6
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    x_BYXD: jax.Array,
    drop_path_rate: float | jax.Array | None = None,
    shared_inputs: Any = None,
    block_inputs: Any = None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the output and an empty aux; `drop_path_rate` is the rate of stochastic depth."""
    del shared_inputs, block_inputs
    width = expect(x_BYXD=x_BYXD)["D"]
    x_BYXD = shard_batch(x_BYXD)
    y_BYXD = DepthwiseConv(KERNEL, self.dtype, name="conv")(x_BYXD)
    y_BYXD = LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, name="norm")(y_BYXD)
    y_BYXD = Mlp(RATIO * width, self.activation, dtype=self.dtype, kernel_init=initializers.normal, name="mlp")(y_BYXD)
    if self.initial_scale:
      scale_D = self.param("layer_scale", nn.initializers.constant(self.initial_scale), (width,))
      y_BYXD = y_BYXD * scale_D.astype(self.dtype)
    x_BYXD = shard_batch(x_BYXD + DropPath(name="drop_path")(y_BYXD, drop_path_rate))
    return x_BYXD, {}


class Stage(nn.Module):
  """A stage's input [B, Y, X, C] to its map [B, Y / 2, X / 2, D]; the first stage's patches are of `config.patch_size`.

  Rows and columns beyond the last full patch are dropped, as in a convolution without padding.
  """

  config: Config
  index: int

  @nn.compact
  def __call__(self, x_BYXC: jax.Array) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Returns the map for the next stage, the one for the head, and every block's output."""
    c, i = self.config, self.index
    dtype = jnp.dtype(c.dtype)
    norm = functools.partial(LayerNorm, epsilon=c.norm_eps, dtype=dtype)
    patch = 2 if i else c.patch_size
    if i:
      x_BYXC = norm(name="input_norm")(x_BYXC)
    rows, columns = (size // patch * patch for size in x_BYXC.shape[1:3])
    patches = patchify(x_BYXC[:, :rows, :columns], patch)
    x_BYXD = nn.Dense(c.widths[i], kernel_init=initializers.normal, dtype=dtype, name="patch")(patches)
    if not i:
      x_BYXD = norm(name="norm")(x_BYXD)
    block = functools.partial(
      Block, activation=c.activation, norm_eps=c.norm_eps, initial_scale=c.layer_scale_init_value, dtype=dtype
    )
    first = sum(c.depths[:i])
    rates = drop_path_rates(c.drop_path_rate, sum(c.depths))[first : first + c.depths[i]]
    x_BYXD, aux = run_blocks(block, x_BYXD, drop_path_rates=rates, scan=c.scan, remat=c.remat)
    return x_BYXD, norm(name="feature_norm")(x_BYXD) if c.head == "features" else x_BYXD, aux


class Encoder(nn.Module):
  """Images [B, Y, X, C] to the last stage's map [B, Y / 32, X / 32, D]."""

  config: Config

  @nn.compact
  def __call__(self, image_BYXC: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Aux has "stage_0", ... [B, Y, X, D] at `config.strides` and "stage_0/block_00", ..."""
    c = self.config
    sizes = expect(image_BYXC=image_BYXC)
    if sizes["C"] != c.num_channels:
      raise ValueError(f"the images have {sizes['C']} channels, the model takes {c.num_channels}")
    if min(sizes["Y"], sizes["X"]) < c.strides[-1]:
      raise ValueError(
        f"an image of {sizes['Y']} x {sizes['X']} pixels is smaller than the last stage's stride; wanted at "
        f"least {c.strides[-1]} each way"
      )
    x, aux = image_BYXC, {}
    for i in range(len(c.widths)):
      x, aux[f"stage_{i}"], blocks = Stage(c, i, name=f"stage_{i}")(x)
      aux |= {f"stage_{i}/{name}": value for name, value in blocks.items()}
    return aux[f"stage_{len(c.widths) - 1}"], aux


def features(model: nn.Module, variables: dict, image_BYXC: jax.Array) -> jax.Array:
  """The mean of the last stage's map [B, D], the features of linear probing."""
  x_BYXD, _ = Encoder(model.config).apply({"params": variables["params"]["encoder"]}, image_BYXC)
  return x_BYXD.mean((1, 2))


class Model(nn.Module):
  """Images [B, Y, X, C] to logits [B, V]; with head "features" to the last stage's map [B, Y, X, D]."""

  config: Config

  @nn.compact
  def __call__(self, image_BYXC: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Classifies images; rng `dropout` enables stochastic depth.

    Returns:
      logits [B, V] in float32, and aux: "stage_0", ... [B, Y, X, D] at `config.strides`, which head "features"
      normalises, "stage_0/block_00", ..., and "features" [B, D], the classifier's input.
    """
    c = self.config
    x_BYXD, aux = Encoder(c, name="encoder")(image_BYXC)
    if c.head == "features":
      return shard_batch(x_BYXD.astype(jnp.float32)), aux
    x_BD = LayerNorm(epsilon=c.head_norm_eps, dtype=jnp.dtype(c.dtype), name="norm")(x_BYXD.mean((1, 2)))
    x_BD = shard_batch(x_BD.astype(jnp.float32))
    aux |= {"features": x_BD}
    if not c.num_classes:
      return x_BD, aux
    return shard_batch(nn.Dense(c.num_classes, kernel_init=initializers.normal, name="head")(x_BD)), aux


# Logical axes of the parameters, those without weight decay, and their layers (`zoo.partitioning`).
_BLOCK = rf"encoder/stage_\d+/{BLOCK}"
LOGICAL_AXES = {
  r"encoder/stage_\d+/patch/kernel": ("pixels", "embed"),
  r"encoder/stage_\d+/patch/bias": ("embed",),
  r"encoder/stage_\d+/input_norm/(scale|bias)": ("input_embed",),
  f"{_BLOCK}/conv/kernel": ("kernel_rows", "kernel_columns", "one", "embed"),
  f"{_BLOCK}/conv/bias": ("embed",),
  f"{_BLOCK}/layer_scale": ("embed",),
  **under(f"{_BLOCK}/norm", NORM_AXES),
  **under(f"{_BLOCK}/mlp", MLP_AXES),
  **under(r"encoder/stage_\d+/norm", NORM_AXES),
  **under(r"encoder/stage_\d+/feature_norm", NORM_AXES),
  **under("norm", NORM_AXES),
  "head/kernel": ("features", "classes"),
  "head/bias": ("classes",),
}
NO_DECAY = BIASES_AND_SCALES
