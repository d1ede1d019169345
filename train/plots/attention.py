"""Plots of the attention of models of images."""

import inspect
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from flax import linen as nn
from matplotlib.figure import Figure

from train.images import normalise
from train.plots.style import MAP, drawing, heading, panels, row_label, show_image
from zoo.layers.position_embeddings import resample


def _intermediates(
  model: nn.Module,
  variables: dict,
  images: np.ndarray,
  choose: Callable[[dict], dict],
  *,
  mean: Sequence[float],
  std: Sequence[float],
) -> dict:
  """`choose(aux)` of a model applied to uint8 images without masking."""
  options: dict[str, Any] = {}
  parameters = inspect.signature(type(model).__call__).parameters
  if "noise_BP" in parameters:
    patches = math.prod(_grid(model, images))
    # Equal noise keeps the patches in order, and a ratio of 0 masks none.
    options = {"noise_BP": np.zeros((len(images), patches), np.float32)}
    options["mask_ratio" if "mask_ratio" in parameters else "share"] = 0.0
  if "mask_patch_size" in parameters:
    options["mask_patch_size"] = model.config.patch_size

  @jax.jit
  def apply(variables, images):
    output: Any = model.apply(variables, normalise(images, mean, std), **options)
    return choose(output[1])

  return jax.device_get(apply(variables, images))


def attention_weights(
  model: nn.Module,
  variables: dict,
  images: np.ndarray,
  *,
  mean: Sequence[float] = (0.5,),
  std: Sequence[float] = (0.5,),
) -> np.ndarray:
  """The encoder's attention weights [layers, batch, heads, tokens, tokens] for uint8 images, none masked.

  Raises:
    ValueError: the model has no global attention.
  """

  def choose(aux):
    return {name: value for name, value in aux.items() if re.fullmatch(r"block_\d+/weights", name)}

  aux = _intermediates(model, variables, images, choose, mean=mean, std=std)
  if not aux:
    raise ValueError(f"{type(model).__module__} has no attention among all patches: its aux has no 'block_00/weights'")
  return np.stack([aux[name] for name in sorted(aux)])


def attention_received(
  model: nn.Module,
  variables: dict,
  images: np.ndarray,
  *,
  mean: Sequence[float] = (0.5,),
  std: Sequence[float] = (0.5,),
) -> list[np.ndarray]:
  """The attention that each token of a Swin receives from its window, in the last block of each stage.

  Args:
    model: of the family `swin` or `simmim`.

  Returns:
    for each stage a map [batch, rows, columns]: the sum over the queries of the window, the mean over the heads. Each
    query's weights sum to 1, so the mean is 1, less what padding receives where it is attended to.
  """
  c = model.config

  def choose(aux):
    maps = {}
    for stage, depth in enumerate(c.depths):
      batch, rows, columns, _ = aux[f"stage_{stage}"].shape
      windows = c.window_layout((rows, columns), shifted=True)
      weights = aux[f"stage_{stage}/block_{depth // 2 - 1:02d}/shifted/weights"]
      not_padding = windows.window_partition(jnp.ones((batch, rows, columns, 1)))  # padded tokens are queries too
      maps[stage] = windows.window_reverse((weights.mean(1) * not_padding).sum(1)[..., None])[..., 0]
    return maps

  return [*_intermediates(model, variables, images, choose, mean=mean, std=std).values()]


def rollout(weights: np.ndarray) -> np.ndarray:
  """Attention rollout: the contribution of each input token to each output token (Abnar & Zuidema 2020, eq. 1).

  A residual block is half the identity and half its attention, averaged over the heads: A = W / 2 + I / 2; the rollout
  is the product of all A, the last block's on the left.

  Args:
    weights: attention [layers, batch, heads, tokens, tokens], first block first; rows sum to 1.

  Returns:
    [batch, tokens, tokens] float64; rows sum to 1.
  """
  identity = np.eye(weights.shape[-1])
  result = np.broadcast_to(identity, (weights.shape[1], *identity.shape))
  for of_block in np.asarray(weights, np.float64):
    mixed = of_block.mean(1) / 2 + identity / 2
    result = mixed / mixed.sum(-1, keepdims=True) @ result
  return result


def query_map(weights: np.ndarray, grid: tuple[int, int], pool: str) -> np.ndarray:
  """Attention of the pooled output to the patches: weights [..., tokens, tokens] to maps [..., *grid] that sum to 1.

  With `pool="cls"` the class token's weights, else the mean over all patches.
  """
  tokens = weights.shape[-1] - grid[0] * grid[1]  # before the patches: the class token, if there is one
  row = weights[..., 0, tokens:] if pool == "cls" else weights[..., tokens:, tokens:].mean(-2)
  return (row / row.sum(-1, keepdims=True)).reshape(*row.shape[:-1], *grid)


def _grid(model: nn.Module, images: np.ndarray) -> tuple[int, int]:
  return images.shape[1] // model.config.patch_size, images.shape[2] // model.config.patch_size


@drawing
def attention_maps(
  model: nn.Module,
  variables: dict,
  images: np.ndarray,
  *,
  mean: Sequence[float] = (0.5,),
  std: Sequence[float] = (0.5,),
  max_heads: int = 8,
) -> Figure:
  """The attention of each head of the last block, one image a row, and the rollout over all blocks.

  Of a Swin: the attention that tokens receive from their window, in the last block of each stage.

  Args:
    model, variables: a ViT, a Swin, or a masked autoencoder with one of them as encoder.
    images: uint8 [batch, height, width, channels].
    mean, std: of the pixels, as in training.
    max_heads: number of heads to show.
  """
  images = np.asarray(images)
  if hasattr(model.config, "window_layout"):
    received = attention_received(model, variables, images, mean=mean, std=std)
    maps = {f"stage {stage}": of_stage for stage, of_stage in enumerate(received)}
    title, note = "Attention received within windows", "last block of each stage, all heads"
  else:
    weights = attention_weights(model, variables, images, mean=mean, std=std)
    grid, pool = _grid(model, images), model.config.pool
    heads = weights.shape[2]
    shown = min(heads, max_heads)
    last = query_map(weights[-1], grid, pool)
    maps = {f"head {n + 1}": last[:, n] for n in range(shown)}
    maps["rollout"] = query_map(rollout(weights), grid, pool)
    some = f", {shown} of {heads} heads" if shown < heads else ""
    title = "Attention of the class token" if pool == "cls" else "Attention, averaged over all patches"
    note = f"last of {len(weights)} blocks{some}; rollout: all blocks"
  count, height, width, _ = images.shape
  figure, axes = panels(count, 1 + len(maps), height / width, left=0.12, top=0.84)
  for row, image, *values in zip(axes, images, *maps.values(), strict=True):
    show_image(row[0], image)
    for axis, value in zip(row[1:], values, strict=True):
      axis.imshow(_rescale(value), cmap=MAP, vmin=0, vmax=1, interpolation="nearest")
  for axis, label in zip(axes[0], ["image", *maps], strict=True):
    axis.set_title(label, pad=4)
  heading(figure, title, f"{note}; dark is least, bright is most")
  return figure


@drawing
def attention_rollout(
  model: nn.Module,
  variables: dict,
  images: np.ndarray,
  *,
  mean: Sequence[float] = (0.5,),
  std: Sequence[float] = (0.5,),
) -> Figure:
  """Attention rollout over images (as ViT, Dosovitskiy et al. 2021, fig. 6)."""
  images = np.asarray(images)
  weights = attention_weights(model, variables, images, mean=mean, std=std)
  maps = query_map(rollout(weights), _grid(model, images), model.config.pool)
  count, height, width, _ = images.shape
  figure, axes = panels(2, count, height / width, left=0.8, top=0.66)
  for (above, below), image, values in zip(axes.T, images, maps, strict=True):
    show_image(above, image)
    fine = resample(_rescale(values)[..., None], (height, width), "bilinear")[..., 0]
    colour = np.asarray(matplotlib.colormaps[MAP](fine))[..., :3] * 255
    # Little of the image, so that low values are dark where it is white.
    show_image(below, (0.75 * colour + 0.25 * image.mean(-1, keepdims=True)).astype(np.uint8))
  row_label(axes[0, 0], "image")
  row_label(axes[1, 0], "rollout")
  heading(figure, "Attention rollout", f"through all {len(weights)} blocks; dark is least, bright is most")
  return figure


def _rescale(values: np.ndarray) -> np.ndarray:
  """Linearly to the range 0 to 1."""
  return (values - values.min()) / max(np.ptp(values), 1e-12)
