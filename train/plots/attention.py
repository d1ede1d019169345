"""Pictures of where a model of images looks."""

import inspect
import math
import re
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from train.images import normalise
from train.plots.style import MAP, drawing, heading, panels, picture, row_label
from zoo.layers.position_embeddings import resample
from zoo.shapes import expect


def _told(model, variables: dict, image_BYXC, choose: Callable[[dict], dict], *, mean, std) -> dict:
  """What is chosen of the aux that a model tells of uint8 images, nothing hidden."""
  options = {}
  parameters = inspect.signature(type(model).__call__).parameters
  if "noise_BP" in parameters:
    patches = math.prod(_grid(model, image_BYXC))
    # Equal noise leaves the patches in their order; and a share of 0 leaves them as they are.
    options = {"noise_BP": np.zeros((len(image_BYXC), patches), np.float32)}
    options["mask_ratio" if "mask_ratio" in parameters else "share"] = 0.0
  if "mask_patch_size" in parameters:
    options["mask_patch_size"] = model.config.patch_size

  @jax.jit
  def look(variables, image_BYXC):
    return choose(model.apply(variables, normalise(image_BYXC, mean, std), **options)[1])

  return jax.device_get(look(variables, image_BYXC))


def attention_weights(model, variables: dict, image_BYXC, *, mean=(0.5,), std=(0.5,)) -> np.ndarray:
  """The encoder's attention weights [L, B, N, T, T] for uint8 images, nothing hidden.

  Raises:
    ValueError: the model tells no attention weights among all patches.
  """

  def choose(aux):
    return {name: value for name, value in aux.items() if re.fullmatch(r"block_\d+/weights", name)}

  aux = _told(model, variables, image_BYXC, choose, mean=mean, std=std)
  if not aux:
    raise ValueError(
      f"{type(model).__module__} tells no attention weights among all patches: its aux has no 'block_00/weights'"
    )
  return np.stack([aux[name] for name in sorted(aux)])


def attention_received(model, variables: dict, image_BYXC, *, mean=(0.5,), std=(0.5,)) -> list[np.ndarray]:
  """How much attention each place of a Swin's maps gets from its window, in the last block of each stage.

  Args:
    model: of the family `swin` or `simmim`.

  Returns:
    of each stage a map [B, Y, X]: the weights of all places of the window for this one, the mean over the heads. Each
    place gives 1 away, so that the mean is 1, but for what goes to padding where that is attended to.
  """
  c = model.config

  def choose(aux):
    maps = {}
    for stage, depth in enumerate(c.depths):
      B, Y, X, _ = aux[f"stage_{stage}"].shape
      windows = c.windows((Y, X), shifted=True)
      weights_BNTS = aux[f"stage_{stage}/block_{depth // 2 - 1:02d}/shifted/weights"]
      real_BT1 = windows.cut(jnp.ones((B, Y, X, 1)))  # what fills the map up looks, too
      maps[stage] = windows.join((weights_BNTS.mean(1) * real_BT1).sum(1)[..., None])[..., 0]
    return maps

  return [*_told(model, variables, image_BYXC, choose, mean=mean, std=std).values()]


def rollout(weights_LBNTT: np.ndarray) -> np.ndarray:
  """Attention rollout: how much of each input token reaches each output token (Abnar & Zuidema 2020, eq. 1).

  A residual block passes half of a token on as it is and half by attention, averaged over the heads:
  A = W / 2 + I / 2; the rollout is the product of all A, the last block's on the left.

  Args:
    weights_LBNTT: attention weights, first block first; rows sum to 1.

  Returns:
    [B, T, T] float64; rows sum to 1.
  """
  sizes = expect(weights_LBNTT=weights_LBNTT)
  identity = np.eye(sizes["T"])
  result = np.broadcast_to(identity, (sizes["B"], *identity.shape))
  for weights_BNTT in np.asarray(weights_LBNTT, np.float64):
    mixed_BTT = weights_BNTT.mean(1) / 2 + identity / 2
    result = mixed_BTT / mixed_BTT.sum(-1, keepdims=True) @ result
  return result


def query_map(weights: np.ndarray, grid: tuple[int, int], pool: str) -> np.ndarray:
  """Where the output looks: weights [..., T, T] to maps [..., *grid] that sum to 1 each.

  The row of the class token if it is what is pooled ("cls"), else the mean over all patches; only patches as keys.
  """
  tokens = weights.shape[-1] - grid[0] * grid[1]  # before the patches: the class token or nothing
  row = weights[..., 0, tokens:] if pool == "cls" else weights[..., tokens:, tokens:].mean(-2)
  return (row / row.sum(-1, keepdims=True)).reshape(*row.shape[:-1], *grid)


def _grid(model, image_BYXC) -> tuple[int, int]:
  return image_BYXC.shape[1] // model.config.patch_size, image_BYXC.shape[2] // model.config.patch_size


@drawing
def attention_maps(
  model,
  variables: dict,
  image_BYXC: np.ndarray,
  *,
  mean: Sequence[float] = (0.5,),
  std: Sequence[float] = (0.5,),
  max_heads: int = 8,
) -> Figure:
  """Where each head of the last block looks, one image a row, and the rollout over all blocks.

  Of a Swin: what gets attention from its window, in the last block of each stage.

  Args:
    model, variables: a ViT, a Swin, or what learns of hidden patches with one.
    image_BYXC: uint8.
    mean, std: of the pixels, as in training.
    max_heads: how many heads to show.
  """
  image_BYXC = np.asarray(image_BYXC)
  if hasattr(model.config, "windows"):
    received = attention_received(model, variables, image_BYXC, mean=mean, std=std)
    maps = {f"stage {stage}": map_BYX for stage, map_BYX in enumerate(received)}
    title, note = "What gets attention from its window", "last block of each stage, all heads"
  else:
    weights_LBNTT = attention_weights(model, variables, image_BYXC, mean=mean, std=std)
    grid, pool = _grid(model, image_BYXC), model.config.pool
    heads = weights_LBNTT.shape[2]
    shown = min(heads, max_heads)
    last = query_map(weights_LBNTT[-1], grid, pool)
    maps = {f"head {n + 1}": last[:, n] for n in range(shown)}
    maps["rollout"] = query_map(rollout(weights_LBNTT), grid, pool)
    cut = f", {shown} of {heads} heads" if shown < heads else ""
    title = "Where the class token looks" if pool == "cls" else "Where all patches, averaged, look"
    note = f"last of {len(weights_LBNTT)} blocks{cut}; rollout: all blocks"
  B, Y, X, _ = image_BYXC.shape
  figure, axes = panels(B, 1 + len(maps), Y / X, left=0.12, top=0.84)
  for row, image, *values in zip(axes, image_BYXC, *maps.values(), strict=True):
    picture(row[0], image)
    for axis, value in zip(row[1:], values, strict=True):
      axis.imshow(_spread(value), cmap=MAP, vmin=0, vmax=1, interpolation="nearest")
  for axis, label in zip(axes[0], ["image", *maps], strict=True):
    axis.set_title(label, pad=4)
  heading(figure, title, f"{note}; dark is least, bright is most")
  return figure


@drawing
def attention_rollout(
  model, variables: dict, image_BYXC: np.ndarray, *, mean: Sequence[float] = (0.5,), std: Sequence[float] = (0.5,)
) -> Figure:
  """Attention rollout laid over images (as ViT, Dosovitskiy et al. 2021, fig. 6): what the output is made of."""
  image_BYXC = np.asarray(image_BYXC)
  weights_LBNTT = attention_weights(model, variables, image_BYXC, mean=mean, std=std)
  maps = query_map(rollout(weights_LBNTT), _grid(model, image_BYXC), model.config.pool)
  B, Y, X, _ = image_BYXC.shape
  figure, axes = panels(2, B, Y / X, left=0.8, top=0.66)
  for (above, below), image, values in zip(axes.T, image_BYXC, maps, strict=True):
    picture(above, image)
    fine = resample(_spread(values)[..., None], (Y, X), "bilinear")[..., 0]
    colour = matplotlib.colormaps[MAP](fine)[..., :3] * 255
    # Little of the image, so that where it is white the least is still dark.
    picture(below, (0.75 * colour + 0.25 * image.mean(-1, keepdims=True)).astype(np.uint8))
  row_label(axes[0, 0], "image")
  row_label(axes[1, 0], "rollout")
  heading(figure, "What reaches the output", f"through all {len(weights_LBNTT)} blocks; dark is least, bright is most")
  return figure


def _spread(values: np.ndarray) -> np.ndarray:
  """To 0 for the least and 1 for the most."""
  return (values - values.min()) / max(np.ptp(values), 1e-12)
