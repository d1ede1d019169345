"""What all pictures share: colours, type, headings and panels."""

import functools
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

INK, SOFT, FAINT = "#26303a", "#66727f", "#d5dadf"
# At least 20 apart in CIELAB, also with protanopia, deuteranopia and tritanopia; at least 4:1 against white.
COLORS = ("#1f4e79", "#c8553d", "#3b8574", "#9468b8", "#66192d")
MASKED = (190, 205, 218)  # a tint that no grey image has
MAP = "viridis"  # evenly brighter with the value, with every kind of colour vision
STYLE = {
  "font.size": 9,
  "axes.titlesize": 9,
  "axes.labelsize": 9,
  "axes.edgecolor": FAINT,
  "axes.labelcolor": SOFT,
  "axes.titlecolor": INK,
  "axes.grid": False,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "text.color": INK,
  "xtick.color": SOFT,
  "ytick.color": SOFT,
  "xtick.labelsize": 8,
  "ytick.labelsize": 8,
  "legend.frameon": False,
  "legend.fontsize": 8,
  "lines.solid_capstyle": "round",
  "figure.facecolor": "white",
  "axes.formatter.use_mathtext": True,
  "savefig.dpi": 160,
}


def drawing(draw: Callable[..., Figure]) -> Callable[..., Figure]:
  """Draws in the common style; `path` writes the figure as well."""

  @functools.wraps(draw)
  def wrapped(*args, path: str | os.PathLike | None = None, **kwargs) -> Figure:
    with matplotlib.rc_context(STYLE):
      figure = draw(*args, **kwargs)
      if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
          warnings.filterwarnings("ignore", message="Glyph .* missing")  # letters that no font here has are boxes
          figure.savefig(path)
    return figure

  return wrapped


def heading(figure: Figure, title: str, below: str = "") -> None:
  """A heading on the left and, smaller below it, what one needs to know to read the picture."""
  inches = figure.get_size_inches()
  figure.text(0.1 / inches[0], 1 - 0.12 / inches[1], title, size=11, weight="bold", va="top")
  figure.text(0.1 / inches[0], 1 - 0.36 / inches[1], below, size=8, color=SOFT, va="top")


def panels(rows: int, columns: int, aspect: float, left: float, top: float) -> tuple[Figure, np.ndarray]:
  """A tight grid of panels an inch wide; `left` and `top` inches are kept for row labels and the heading."""
  size, gap, edge = 1.0, 0.06, 0.12
  width = left + columns * (size + gap) + edge
  height = top + rows * (size * aspect + gap) + edge
  figure = Figure(figsize=(max(width, 4.8), height))
  axes = np.empty((rows, columns), object)
  for row in range(rows):
    for column in range(columns):
      x, y = left + column * (size + gap), height - top - (row + 1) * size * aspect - row * gap
      box = [x / figure.get_figwidth(), y / height, size / figure.get_figwidth(), size * aspect / height]
      axes[row, column] = axis = figure.add_axes(box)
      axis.set(xticks=[], yticks=[])
      axis.spines[:].set_visible(False)
  return figure, axes


def picture(axis, image_YXC: np.ndarray, **kwargs) -> None:
  """Draws bytes as they are, one channel as grey."""
  grey = image_YXC.ndim == 2 or image_YXC.shape[-1] == 1
  values = image_YXC.reshape(image_YXC.shape[:2]) if grey else image_YXC
  axis.imshow(values, cmap="gray" if grey else None, vmin=0, vmax=255, interpolation="nearest", **kwargs)


def rgb(image_BYXC: np.ndarray) -> np.ndarray:
  """Images of three channels, also of grey ones."""
  return np.repeat(image_BYXC, 3, -1) if image_BYXC.shape[-1] == 1 else image_BYXC


def row_label(axis, text: str) -> None:
  """Tells on the left of a row's first panel what the row is."""
  axis.text(-0.06, 0.5, text, transform=axis.transAxes, ha="right", va="center", size=9)


def draw_lines(axis, lines: list[tuple]) -> None:
  """Draws (label, x, y, colour, style) with each name at its line's end: no legend to match with colours."""
  ends = []
  for label, x, y, colour, style in lines:
    axis.plot(x, y, color=colour, linewidth=1.6, **style)
    finite = np.flatnonzero(np.isfinite(y))
    if len(finite):
      ends.append([x[finite[-1]], y[finite[-1]], label, colour])
  low, high = axis.get_ylim()
  axis.set_ylim(low, high)
  apart = 0.13 * (high - low) / (axis.get_position().height * axis.figure.get_figheight())  # a line of text
  floor = -math.inf
  right = max(x for x, *_ in ends) if ends else 0
  for _, y, label, colour in sorted(ends, key=lambda end: end[1]):
    floor = max(y, floor + apart)
    axis.annotate(
      label, (right, floor), xytext=(7, 0), textcoords="offset points", color=colour, va="center", size=8,
      annotation_clip=False,
    )  # fmt: skip
