"""Plots of images: reconstructions of masked images, and classes of pixels."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from flax import linen as nn
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from train.images import normalise
from train.plots.style import MASKED, drawing, heading, panels, rgb, row_label, show_image
from zoo.layers.patch_embed import patchify, unpatchify


def _pixels(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
  """Normalised floats back to bytes, the inverse of `train.images.normalise`."""
  values = (np.asarray(images, np.float64) * np.asarray(std) + np.asarray(mean)) * 255
  return np.clip(np.round(values), 0, 255).astype(np.uint8)


def reconstruct(
  model: nn.Module,
  variables: dict,
  images: np.ndarray,
  noise: jax.Array | np.ndarray,
  *,
  mask_ratio: float = 0.75,
  norm_pix_loss: bool = True,
  mean: Sequence[float] = (0.5,),
  std: Sequence[float] = (0.5,),
  mask_patch_size: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Reconstructs masked images.

  Args:
    model: of the family `mae` or `simmim`. variables: its parameters.
    images: uint8 [batch, height, width, channels].
    noise: [batch, patches] selects what is masked (`zoo.models.mae.random_mask`).
    mask_ratio, norm_pix_loss, mean, std: as in `train.objectives.mae`. A model trained on standardised
      patches does not predict their mean and variance: these are taken from the image.
    mask_patch_size: side of the squares that are masked; a patch if None.

  Returns:
    the predicted images, uint8, and which pixels were masked [batch, height, width, 1], bool.
  """
  patch: int = model.config.patch_size
  options: dict[str, Any] = dict(mask_ratio=mask_ratio)
  if mask_patch_size:
    options["mask_patch_size"] = mask_patch_size

  @jax.jit
  def predict(variables, images, noise):
    normalised = normalise(images, mean, std)
    output: Any = model.apply(variables, normalised, noise, **options)
    pixels, aux = output
    target = patchify(normalised, patch)
    predicted = patchify(pixels, patch) if pixels.ndim == 4 else pixels.reshape(target.shape)
    if norm_pix_loss:
      std_of_patch = jnp.sqrt(target.var(-1, keepdims=True, ddof=1) + 1e-6)
      predicted = predicted * std_of_patch + target.mean(-1, keepdims=True)
    masked = jnp.broadcast_to(aux["masked"].reshape(*target.shape[:3], 1), (*target.shape[:3], patch**2))
    return unpatchify(predicted, patch), unpatchify(masked, patch)

  predicted, masked = jax.device_get(predict(variables, images, noise))
  return _pixels(predicted, mean, std), masked


@drawing
def reconstructions(
  model: nn.Module,
  variables: dict,
  images: np.ndarray,
  *,
  mask_ratio: float = 0.75,
  norm_pix_loss: bool = True,
  mean: Sequence[float] = (0.5,),
  std: Sequence[float] = (0.5,),
  mask_patch_size: int | None = None,
  seed: int = 0,
) -> Figure:
  """Images, their visible parts, and the reconstructions (as He et al. 2022, fig. 2).

  Args:
    images: uint8, grey or RGB; one column each.
    seed: of the masks. Others: see `reconstruct`.
  """
  images = np.asarray(images)
  count, height, width, _ = images.shape
  side = mask_patch_size or model.config.patch_size
  parts = (height // side) * (width // side)
  noise = jax.random.uniform(jax.random.key(seed), (count, parts))
  predicted, masked = reconstruct(
    model,
    variables,
    images,
    noise,
    mask_ratio=mask_ratio,
    norm_pix_loss=norm_pix_loss,
    mean=mean,
    std=std,
    mask_patch_size=mask_patch_size,
  )
  rows = {
    "original": images,
    "visible": np.where(masked, np.array(MASKED, np.uint8), rgb(images)),
    "prediction": predicted,
    "prediction\nand visible": np.where(masked, predicted, images),
  }
  figure, axes = panels(len(rows), count, height / width, left=1.15, top=0.66)
  for row, (label, row_images) in zip(axes, rows.items(), strict=True):
    row_label(row[0], label)
    for axis, image in zip(row, row_images, strict=True):
      show_image(axis, image)
  visible = parts - int(masked[0].sum()) // side**2
  note = "mean and variance of each patch are the original's"
  if not norm_pix_loss:
    note = "all pixels are predicted; the loss is of the masked ones"
  heading(figure, f"Reconstructed from {visible} of {parts} {'squares' if mask_patch_size else 'patches'}", note)
  return figure


def mask_colors(mask: np.ndarray, names: Sequence[str]) -> np.ndarray:
  """Classes [...] to colours, uint8 [..., 3]; pixels without a class are pale."""
  table = matplotlib.colormaps["tab20"](np.arange(len(names)) % 20)[:, :3] * 255
  known = mask < len(names)
  return np.where(known[..., None], table[np.where(known, mask, 0)], MASKED).astype(np.uint8)


@drawing
def segmentations(
  images: np.ndarray, masks: np.ndarray, predicted: np.ndarray, names: Sequence[str], score: float
) -> Figure:
  """Images, the classes of their pixels, and the predicted classes; one column each.

  Args:
    images: uint8 [batch, height, width, channels].
    masks: classes [batch, height, width]; pixels with another value have none.
    predicted: classes.
    names: of the classes.
    score: mean intersection over union of these images, 0 to 1.
  """
  count, height, width, _ = images.shape
  occur = sorted({*np.unique(masks), *np.unique(predicted)} & {*range(len(names))})
  lines = -(-len(occur) // 4)
  figure, axes = panels(3, count, height / width, left=0.9, top=0.7 + 0.18 * lines)
  rows = {"image": images, "mask": mask_colors(masks, names), "prediction": mask_colors(predicted, names)}
  for row, (label, row_images) in zip(axes, rows.items(), strict=True):
    row_label(row[0], label)
    for axis, image in zip(row, row_images, strict=True):
      show_image(axis, image)
  patches = [
    Rectangle((0, 0), 1, 1, color=colour / 255, label=names[v])
    for v, colour in zip(occur, mask_colors(np.array(occur, int), names), strict=True)
  ]
  inches = figure.get_size_inches()
  place: dict = dict(
    loc="upper left", bbox_to_anchor=(0.1 / inches[0], 1 - 0.55 / inches[1]), borderaxespad=0, borderpad=0
  )
  figure.legend(handles=patches, ncols=4, handlelength=1, labelspacing=0.2, columnspacing=1, **place)
  heading(figure, "Classes of pixels", f"mean intersection over union of these images: {100 * score:.1f} %")
  return figure
