"""The common style of all plots: colours, fonts, headings and panels."""

import functools
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, SOFT, FAINT = "#26303a", "#66727f", "#d5dadf"
# At least 20 apart in CIELAB, also with protanopia, deuteranopia and tritanopia; at least 4:1 against white.
COLORS = ("#1f4e79", "#c8553d", "#3b8574", "#9468b8", "#66192d")
MASKED = (190, 205, 218)  # of masked pixels: a tint that no grey image has
MAP = "viridis"  # perceptually uniform, also with colour blindness
STYLE: dict = {
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
  """Makes a function draw in the common style, and write the figure to its argument `path`."""

  @functools.wraps(draw)
  def wrapped(*args, path: str | os.PathLike | None = None, **kwargs) -> Figure:
    with matplotlib.rc_context(STYLE):
      figure = draw(*args, **kwargs)
      if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
          warnings.filterwarnings("ignore", message="Glyph .* missing")  # glyphs that no installed font has are boxes
          figure.savefig(path)
    return figure

  return wrapped


def heading(figure: Figure, title: str, below: str = "") -> None:
  """A title on the left, and below it in a smaller font how to read the figure."""
  inches = figure.get_size_inches()
  figure.text(0.1 / inches[0], 1 - 0.12 / inches[1], title, size=11, weight="bold", va="top")
  figure.text(0.1 / inches[0], 1 - 0.36 / inches[1], below, size=8, color=SOFT, va="top")


def panels(rows: int, columns: int, aspect: float, left: float, top: float) -> tuple[Figure, np.ndarray]:
  """A grid of panels of one inch width; `left` and `top` are inches for row labels and the heading."""
  size, gap, edge = 1.0, 0.06, 0.12
  width = left + columns * (size + gap) + edge
  height = top + rows * (size * aspect + gap) + edge
  figure = Figure(figsize=(max(width, 4.8), height))
  axes = np.empty((rows, columns), object)
  for row in range(rows):
    for column in range(columns):
      x, y = left + column * (size + gap), height - top - (row + 1) * size * aspect - row * gap
      box = (x / figure.get_figwidth(), y / height, size / figure.get_figwidth(), size * aspect / height)
      axes[row, column] = axis = figure.add_axes(box)
      axis.set(xticks=[], yticks=[])
      axis.spines[:].set_visible(False)
  return figure, axes


def show_image(axis: Axes, image: np.ndarray, **kwargs: Any) -> None:
  """Shows a uint8 image unscaled; one channel is grey."""
  grey = image.ndim == 2 or image.shape[-1] == 1
  values = image.reshape(image.shape[:2]) if grey else image
  axis.imshow(values, cmap="gray" if grey else None, vmin=0, vmax=255, interpolation="nearest", **kwargs)


def rgb(images: np.ndarray) -> np.ndarray:
  """Images with three channels; grey is repeated."""
  return np.repeat(images, 3, -1) if images.shape[-1] == 1 else images


def row_label(axis: Axes, text: str) -> None:
  """Labels a row on the left of its first panel."""
  axis.text(-0.06, 0.5, text, transform=axis.transAxes, ha="right", va="center", size=9)


def draw_lines(axis: Axes, lines: list[tuple]) -> None:
  """Draws lines (label, x, y, colour, style), each labelled at its end in place of a legend."""
  ends = []
  for label, x, y, colour, style in lines:
    axis.plot(x, y, color=colour, linewidth=1.6, **style)
    finite = np.flatnonzero(np.isfinite(y))
    if len(finite):
      ends.append([x[finite[-1]], y[finite[-1]], label, colour])
  low, high = axis.get_ylim()
  axis.set_ylim(low, high)
  figure_height = cast(Figure, axis.get_figure(root=True)).get_figheight()
  apart = 0.13 * (high - low) / (axis.get_position().height * figure_height)  # a line of text
  floor = -math.inf
  right = max(x for x, *_ in ends) if ends else 0
  for _, y, label, colour in sorted(ends, key=lambda end: end[1]):
    floor = max(y, floor + apart)
    axis.annotate(
      label, (right, floor), xytext=(7, 0), textcoords="offset points", color=colour, va="center", size=8,
      annotation_clip=False,
    )  # fmt: skip
