"""Plots of regression by attention pooling."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from train.plots.style import COLORS, FAINT, SOFT, draw_lines, drawing, heading


@drawing
def regression_curve(
  curve: tuple[np.ndarray, np.ndarray],
  splits: Mapping[str, tuple[np.ndarray, np.ndarray]],
  *,
  names: tuple[str, str] = ("x", "y"),
  about: str = "",
) -> Figure:
  """A fitted curve over training and test points, and their average.

  Args:
    curve: x and y of the fit, x rising.
    splits: x and y of the points by name; the first was fitted, and its average is drawn.
    names: of x and y, with their units.
    about: a line below the title.
  """
  figure = Figure(figsize=(6.4, 4.4))
  axis = figure.add_axes((0.11, 0.12, 0.86, 0.7))
  markers: tuple[dict[str, Any], ...] = (
    dict(s=13, color=SOFT, alpha=0.55, linewidths=0),
    dict(s=22, color="none", edgecolors=COLORS[1]),
  )
  for (name, points), marker in zip(splits.items(), markers, strict=False):
    axis.scatter(points[0], points[1], **marker, label=f"{name} points", zorder=2)
  average = next(iter(splits.values()))[1].mean()
  axis.axhline(average, color=COLORS[2], linewidth=1.4, linestyle=(0, (5, 3)), label="average pooling", zorder=1)
  axis.plot(*curve, color=COLORS[0], linewidth=2, label="attention pooling", zorder=3)
  axis.set(xlabel=names[0], ylabel=names[1])
  axis.grid(axis="y", color=FAINT, linewidth=0.6)
  axis.tick_params(length=0)
  axis.set_axisbelow(True)
  figure.legend(
    *axis.get_legend_handles_labels(), loc="upper left", bbox_to_anchor=(0.1, 0.885), ncols=4, columnspacing=1.4
  )
  heading(figure, "Regression by attention pooling", about)
  return figure


@drawing
def attention_heat_map(weights: np.ndarray, queries: np.ndarray, keys: np.ndarray, *, name: str = "x") -> Figure:
  """Attention weights of a regression: rows are queries, columns keys, both sorted.

  Args:
    weights: attention [queries, keys]; each row sums to 1.
    queries, keys: their coordinates, in any order.
    name: of the coordinate, with its unit.
  """
  rows, columns = np.argsort(queries, kind="stable"), np.argsort(keys, kind="stable")
  figure = Figure(figsize=(6.4, 4.4))
  axis = figure.add_axes((0.11, 0.12, 0.75, 0.71))
  most = max(float(weights.max()), 1e-9)
  # Weights of dense keys are small, and visible beside those of isolated keys only on a logarithmic scale.
  scale = LogNorm(most / 1000, most, clip=True)
  drawn = axis.imshow(weights[rows][:, columns], cmap="Blues", norm=scale, interpolation="nearest", aspect="auto")
  for ticks, values, order in ((axis.set_xticks, keys, columns), (axis.set_yticks, queries, rows)):
    shown = np.unique(np.linspace(0, len(order) - 1, 8).round().astype(int))
    ticks(shown, [f"{values[order[i]]:,.4g}" for i in shown])
  axis.set(xlabel=f"key: {name}", ylabel=f"query: {name}")
  axis.tick_params(length=0)
  axis.spines[:].set_visible(False)
  bar = figure.colorbar(drawn, cax=figure.add_axes((0.885, 0.12, 0.02, 0.71)), extend="min")
  bar.set_label("attention weight")
  bar.outline.set_visible(False)
  bar.ax.tick_params(length=0, which="both")
  heading(
    figure, "Attention weights", f"a row for each of {len(rows)} queries, a column for each of"
    f" {len(columns)} keys, in the order of their {name.partition(' (')[0]}; a row sums to 1",
  )  # fmt: skip
  return figure


@drawing
def kernel_widths(
  widths: np.ndarray, errors: Mapping[str, np.ndarray], *, width: float, average: float, names: tuple[str, str]
) -> Figure:
  """The error of kernel regression by the width of the kernel, with the model's width and the error of the average.

  Args:
    widths: increasing.
    errors: root mean squared errors at these widths, by the name of their curve.
    width: the model's; infinite for none.
    average: the error of the mean of the points in place of the first curve's.
    names: of x and y, with their units.
  """
  figure = Figure(figsize=(6.4, 3.6))
  axis = figure.add_axes((0.11, 0.15, 0.76, 0.65))
  axis.set_xscale("log")
  draw_lines(axis, [(name, widths, e, colour, {}) for (name, e), colour in zip(errors.items(), COLORS, strict=False)])
  axis.plot(widths[[0, -1]], [average, average], color=COLORS[2], linewidth=1.2, linestyle=(0, (5, 3)))
  axis.annotate("average", (widths[0], average), xytext=(2, -10), textcoords="offset points", color=COLORS[2], size=8)
  axis.set_ylim(0, 1.05 * max(average, *(e.max() for e in errors.values())))
  if np.isfinite(width):
    axis.axvline(width, color=SOFT, linewidth=1, zorder=0)
    axis.annotate(f"{width:.3g}", (width, 0), xytext=(3, 4), textcoords="offset points", color=SOFT, size=8)
  axis.set(xlabel=f"width of the kernel, in {names[0]}", ylabel=f"error of {names[1]}")
  axis.grid(axis="y", color=FAINT, linewidth=0.6)
  axis.tick_params(length=0, which="both")
  axis.set_axisbelow(True)
  heading(figure, "Error by kernel width", "root mean squared error; vertical line: the model's width")
  return figure
