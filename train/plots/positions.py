"""Plots of position embeddings."""

import math

import numpy as np
from flax import linen as nn
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from train.plots.style import MAP, SOFT, drawing, heading
from zoo.layers.position_embeddings import Positions


def position_table(model: nn.Module, variables: dict) -> np.ndarray:
  """The position embeddings [rows, columns, width] that an encoder adds to its patches.

  Raises:
    ValueError: the model adds no position embeddings.
  """
  c = model.config
  if not hasattr(c, "position_embedding") or not hasattr(c, "grid"):
    raise ValueError("the model has no grid of position embeddings")
  if c.position_embedding in ("none", "relative"):
    raise ValueError(f"position_embedding={c.position_embedding!r} adds nothing to the patches")
  module = Positions(c.position_embedding, c.grid, c.width, c.class_token, c.resampling)
  params = variables["params"]["encoder"].get("pos", {})
  return np.asarray(module.apply({"params": params}, c.grid)[0])


def similarity(table: np.ndarray) -> np.ndarray:
  """Cosine similarities of all pairs of position embeddings: [rows, columns, width] to [rows, columns] * 2."""
  table = np.asarray(table, np.float64)
  unit = table / np.maximum(np.linalg.norm(table, axis=-1, keepdims=True), 1e-12)
  return np.einsum("abd,ijd->abij", unit, unit)


@drawing
def position_similarity(table: np.ndarray, *, max_maps: int = 14) -> Figure:
  """The cosine similarity of position embeddings (ViT, Dosovitskiy et al. 2021, fig. 7, centre).

  Args:
    table: from `position_table`.
    max_maps: rows and columns of maps at most; of a larger grid every second, third, ... is shown.
  """
  values = similarity(table)
  grid_rows, grid_columns = values.shape[:2]
  step, aspect = math.ceil(max(grid_rows, grid_columns) / max_maps), grid_rows / grid_columns
  rows, columns = range(0, grid_rows, step), range(0, grid_columns, step)
  least = math.floor(10 * values.min()) / 10
  size, gap, left, top, right, bottom = 0.5, 0.05, 0.55, 0.72, 0.85, 0.45
  width = left + len(columns) * (size + gap) + right
  height = top + len(rows) * (size * aspect + gap) + bottom
  figure = Figure(figsize=(width, height))
  for i, y in enumerate(rows):
    for j, x in enumerate(columns):
      box_y = height - top - (i + 1) * (size * aspect) - i * gap
      box = ((left + j * (size + gap)) / width, box_y / height, size / width, size * aspect / height)
      axis = figure.add_axes(box)
      axis.imshow(values[y, x], cmap=MAP, vmin=least, vmax=1, interpolation="nearest")
      axis.set(xticks=[], yticks=[])
      axis.spines[:].set_visible(False)
      if i == len(rows) - 1:
        axis.set_xlabel(str(x + 1), labelpad=2)
      if j == 0:
        axis.set_ylabel(str(y + 1), labelpad=4, rotation=0, va="center", ha="right")
  figure.text(
    (left + len(columns) * (size + gap) / 2) / width, 0.12 / height, "column of the patch", ha="center", color=SOFT
  )
  middle = (bottom + len(rows) * (size * aspect + gap) / 2) / height
  figure.text(0.1 / width, middle, "row of the patch", va="center", rotation=90, color=SOFT)
  span = min(len(rows) * (size * aspect + gap) - gap, 2.0)
  bar = figure.colorbar(
    ScalarMappable(Normalize(least, 1), MAP),
    cax=figure.add_axes(((width - right + 0.12) / width, (height - top - span) / height, 0.1 / width, span / height)),
  )
  bar.outline.set_visible(False)
  bar.set_ticks([least, (least + 1) / 2, 1])
  bar.ax.tick_params(length=0)
  heading(figure, "Similarity of position embeddings", "each map: cosine similarity of one patch with all others")
  return figure
