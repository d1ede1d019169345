"""Pictures of regression by attention."""

from collections.abc import Mapping

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from train.plots.style import COLORS, FAINT, SOFT, draw_lines, drawing, heading
from zoo.shapes import expect


@drawing
def regression_curve(
  curve: tuple[np.ndarray, np.ndarray],
  splits: Mapping[str, tuple[np.ndarray, np.ndarray]],
  *,
  names: tuple[str, str] = ("x", "y"),
  about: str = "",
) -> Figure:
  """A fitted curve over the points it was fitted to and those it was not, and the average beside it.

  Args:
    curve: x and y of the fit, x rising.
    splits: x and y of the points by name: first those that were fitted, whose average is drawn.
    names: of x and y, with their units.
    about: what one needs to know of the fit.
  """
  figure = Figure(figsize=(6.4, 4.4))
  axis = figure.add_axes([0.11, 0.12, 0.86, 0.7])
  markers = (dict(s=13, color=SOFT, alpha=0.55, linewidths=0), dict(s=22, color="none", edgecolors=COLORS[1]))
  for (name, points), marker in zip(splits.items(), markers, strict=False):
    axis.scatter(*points, **marker, label=f"points to {name} on", zorder=2)
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
  heading(figure, "Regression by attention", about)
  return figure


@drawing
def attention_heat_map(weights_TS: np.ndarray, x_T: np.ndarray, key_S: np.ndarray, *, name: str = "x") -> Figure:
  """How much each known point counts at each point in question: rows are queries, columns keys, both rising.

  Args:
    weights_TS: attention; each row sums to 1.
    x_T, key_S: the coordinates of queries and keys, in any order.
    name: of the coordinate, with its unit.
  """
  expect(weights_TS=weights_TS, x_T=x_T, key_S=key_S)
  rows, columns = np.argsort(x_T, kind="stable"), np.argsort(key_S, kind="stable")
  figure = Figure(figsize=(6.4, 4.4))
  axis = figure.add_axes([0.11, 0.12, 0.75, 0.71])
  most = max(float(weights_TS.max()), 1e-9)
  # Where keys are dense each weighs little: only on a logarithmic scale are they seen beside those that stand alone.
  scale = LogNorm(most / 1000, most, clip=True)
  drawn = axis.imshow(weights_TS[rows][:, columns], cmap="Blues", norm=scale, interpolation="nearest", aspect="auto")
  for ticks, values, order in ((axis.set_xticks, key_S, columns), (axis.set_yticks, x_T, rows)):
    shown = np.unique(np.linspace(0, len(order) - 1, 8).round().astype(int))
    ticks(shown, [f"{values[order[i]]:,.4g}" for i in shown])
  axis.set(xlabel=f"key: {name}", ylabel=f"query: {name}")
  axis.tick_params(length=0)
  axis.spines[:].set_visible(False)
  bar = figure.colorbar(drawn, cax=figure.add_axes([0.885, 0.12, 0.02, 0.71]), extend="min")
  bar.set_label("attention weight")
  bar.outline.set_visible(False)
  bar.ax.tick_params(length=0, which="both")
  heading(
    figure, "Which points a prediction is made of", f"a row for each of {len(rows)} queries, a column for each of"
    f" {len(columns)} keys, in the order of their {name.partition(' (')[0]}; a row sums to 1",
  )  # fmt: skip
  return figure


@drawing
def kernel_widths(
  widths: np.ndarray, errors: Mapping[str, np.ndarray], *, width: float, average: float, names: tuple[str, str]
) -> Figure:
  """How the error depends on the width of the kernel, which width the model has, and what the average would have.

  Args:
    widths: rising.
    errors: root mean squared errors at these widths, by what they are of.
    width: the model's; infinite for none. average: the first error without a kernel.
    names: of x and y, with their units.
  """
  figure = Figure(figsize=(6.4, 3.6))
  axis = figure.add_axes([0.11, 0.15, 0.76, 0.65])
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
  heading(figure, "How wide the kernel should be", "root mean squared error; upright: the width that this model has")
  return figure
