"""Pictures of images: what an autoencoder rebuilds, and the classes of pixels."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from train.images import normalise
from train.plots.style import MASKED, drawing, heading, panels, picture, rgb, row_label
from zoo.layers.patch_embed import patchify, unpatchify
from zoo.shapes import expect


def _pixels(image_BYXC: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
  """Normalised floats back to bytes, the inverse of `train.images.normalise`."""
  values = (np.asarray(image_BYXC, np.float64) * np.asarray(std) + np.asarray(mean)) * 255
  return np.clip(np.round(values), 0, 255).astype(np.uint8)


def reconstruct(
  model,
  variables: dict,
  image_BYXC,
  noise_BP,
  *,
  mask_ratio=0.75,
  normalise_patches=True,
  mean=(0.5,),
  std=(0.5,),
  mask_patch_size=None,
) -> tuple[np.ndarray, np.ndarray]:
  """What a model makes of images of which it sees a part.

  Args:
    model: of the family `mae` or `simmim`. variables: its parameters.
    image_BYXC: uint8.
    noise_BP: decides what is hidden (`zoo.models.mae.random_mask`).
    mask_ratio, normalise_patches, mean, std: as in `train.objectives.mae`. A model trained to predict standardised
      patches says nothing of their brightness and contrast: these are taken from the image.

  Returns:
    the predicted images [B, Y, X, C] uint8, and which pixels were hidden [B, Y, X, 1] bool.
  """
  patch, options = (
    model.config.patch_size,
    dict(mask_ratio=mask_ratio) | (dict(mask_patch_size=mask_patch_size) if mask_patch_size else {}),
  )

  @jax.jit  # as one program: nothing here is worth compiling by itself
  def predict(variables, image_BYXC, noise_BP):
    normal_BYXC = normalise(image_BYXC, mean, std)
    pixels, aux = model.apply(variables, normal_BYXC, noise_BP, **options)
    target = patchify(normal_BYXC, patch)
    predicted = patchify(pixels, patch) if pixels.ndim == 4 else pixels.reshape(target.shape)
    if normalise_patches:
      deviation = jnp.sqrt(target.var(-1, keepdims=True, ddof=1) + 1e-6)
      predicted = predicted * deviation + target.mean(-1, keepdims=True)
    hidden = jnp.broadcast_to(aux["masked"].reshape(*target.shape[:3], 1), (*target.shape[:3], patch**2))
    return unpatchify(predicted, patch), unpatchify(hidden, patch)

  predicted, hidden = jax.device_get(predict(variables, image_BYXC, noise_BP))
  return _pixels(predicted, mean, std), hidden


@drawing
def reconstructions(
  model,
  variables: dict,
  image_BYXC: np.ndarray,
  *,
  mask_ratio: float = 0.75,
  normalise_patches: bool = True,
  mean: Sequence[float] = (0.5,),
  std: Sequence[float] = (0.5,),
  mask_patch_size: int | None = None,
  seed: int = 0,
) -> Figure:
  """Images, what the model saw of them, and what it made of that (as He et al. 2022, fig. 2).

  Args:
    image_BYXC: uint8, grey or RGB; one column each.
    seed: of the masks. The others: see `reconstruct`.
  """
  image_BYXC = np.asarray(image_BYXC)
  sizes = expect(image_BYXC=image_BYXC)
  side = mask_patch_size or model.config.patch_size
  parts = (sizes["Y"] // side) * (sizes["X"] // side)
  noise_BP = jax.random.uniform(jax.random.key(seed), (sizes["B"], parts))
  predicted, hidden = reconstruct(
    model,
    variables,
    image_BYXC,
    noise_BP,
    mask_ratio=mask_ratio,
    normalise_patches=normalise_patches,
    mean=mean,
    std=std,
    mask_patch_size=mask_patch_size,
  )
  rows = {
    "original": image_BYXC,
    "what it sees": np.where(hidden, np.array(MASKED, np.uint8), rgb(image_BYXC)),
    "prediction": predicted,
    "prediction,\nvisible pasted": np.where(hidden, predicted, image_BYXC),
  }
  figure, axes = panels(len(rows), sizes["B"], sizes["Y"] / sizes["X"], left=1.15, top=0.66)
  for row, (label, images) in zip(axes, rows.items(), strict=True):
    row_label(row[0], label)
    for axis, image in zip(row, images, strict=True):
      picture(axis, image)
  seen = parts - int(hidden[0].sum()) // side**2
  note = "each patch's brightness and contrast are the original's, the rest is predicted"
  if not normalise_patches:
    note = "all pixels are predicted, but only the hidden ones were trained"
  heading(figure, f"Rebuilt from {seen} of {parts} {'squares' if mask_patch_size else 'patches'}", note)
  return figure


def mask_colors(mask: np.ndarray, names: Sequence[str]) -> np.ndarray:
  """A colour for each class of a mask [...]: uint8 [..., 3]. A class that is none, as where nobody tells, is pale."""
  table = matplotlib.colormaps["tab20"](np.arange(len(names)) % 20)[:, :3] * 255
  known = mask < len(names)
  return np.where(known[..., None], table[np.where(known, mask, 0)], MASKED).astype(np.uint8)


@drawing
def segmentations(
  image_BYXC: np.ndarray, mask_BYX: np.ndarray, found_BYX: np.ndarray, names: Sequence[str], score: float
) -> Figure:
  """Images, the classes of their pixels, and those that a model told; a column each.

  Args:
    image_BYXC: uint8. mask_BYX: classes; others are not told. found_BYX: classes.
    names: of the classes.
    score: mean intersection over union of these images, 0 to 1.
  """
  B, Y, X, _ = image_BYXC.shape
  occur = sorted({*np.unique(mask_BYX), *np.unique(found_BYX)} & {*range(len(names))})
  lines = -(-len(occur) // 4)
  figure, axes = panels(3, B, Y / X, left=0.9, top=0.7 + 0.18 * lines)
  rows = {"image": image_BYXC, "mask": mask_colors(mask_BYX, names), "prediction": mask_colors(found_BYX, names)}
  for row, (label, images) in zip(axes, rows.items(), strict=True):
    row_label(row[0], label)
    for axis, image in zip(row, images, strict=True):
      picture(axis, image)
  patches = [
    Rectangle((0, 0), 1, 1, color=colour / 255, label=names[v])
    for v, colour in zip(occur, mask_colors(np.array(occur, int), names), strict=True)
  ]
  inches = figure.get_size_inches()
  place = dict(loc="upper left", bbox_to_anchor=(0.1 / inches[0], 1 - 0.55 / inches[1]), borderaxespad=0, borderpad=0)
  figure.legend(handles=patches, ncols=4, handlelength=1, labelspacing=0.2, columnspacing=1, **place)
  heading(figure, "The classes of pixels", f"mean intersection over union of these images: {100 * score:.1f} %")
  return figure
