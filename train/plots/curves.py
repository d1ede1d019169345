"""Plots of a run's metrics."""

import os
import re

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from train import metrics
from train.plots.style import COLORS, FAINT, SOFT, draw_lines, drawing, heading


def smooth(values: np.ndarray, width: float) -> np.ndarray:
  """A centred Gaussian average with standard deviation `width`; values that are not finite are skipped."""
  values = np.asarray(values, np.float64)
  finite = np.isfinite(values)
  index = np.arange(len(values))
  result = np.full(len(values), np.nan)
  for i in np.flatnonzero(finite):
    weight = np.exp(-0.5 * ((index[finite] - i) / max(width, 1e-3)) ** 2)
    result[i] = weight @ values[finite] / weight.sum()
  return result


def _series(log: list[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
  points = [(entry["step"], entry[key]) for entry in log if isinstance(entry.get(key), (int, float))]
  steps, values = np.array(points, np.float64).reshape(-1, 2).T
  return steps, values


def _draw_rates(axis, steps: np.ndarray, rates: np.ndarray) -> None:
  axis.plot(steps, rates, color=SOFT, linewidth=1.2)
  axis.set_ylabel("learning\nrate")
  axis.set_ylim(bottom=0)
  axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2), useMathText=True)
  axis.yaxis.get_offset_text().set(size=7, color=SOFT)


@drawing
def loss_curve(log: str | os.PathLike) -> Figure:
  """The losses of training and evaluations over the steps, the accuracies if there are any, and the learning rate.

  Args:
    log: a `metrics.jsonl`, or the directory it is in.

  Raises:
    ValueError: it has no training loss.
  """
  entries = metrics.read(log)
  steps, losses = _series(entries, "train/loss")
  if not len(steps):
    raise ValueError(f"{log} has no training loss to draw")
  names = sorted({key for entry in entries for key in entry if not key.startswith("train/")} - {"step", "note"})
  accuracies = [name for name in names if name.endswith(("accuracy", "top5"))]
  evaluated = [name for name in names if name.endswith("/loss")]
  rate_steps, rates = _series(entries, "train/learning_rate")

  heights = [2.2] + [1.4] * bool(accuracies) + [0.8] * bool(len(rates))
  total = 0.75 + sum(heights) + 0.55 + 0.2 * (len(heights) - 1)
  figure = Figure(figsize=(6.4, total))
  axes = figure.subplots(
    len(heights), 1, sharex=True, squeeze=False, height_ratios=heights,
    gridspec_kw=dict(left=0.11, right=0.8, top=1 - 0.75 / total, bottom=0.5 / total, hspace=0.25),
  )[:, 0]  # fmt: skip
  smoothed = smooth(losses, len(losses) / 50)
  axes[0].plot(steps, losses, color=COLORS[0], alpha=0.3, linewidth=0.8)
  lines = [("training", steps, smoothed, COLORS[0], {})]
  points = dict(marker="o", markersize=3.5)
  for name, colour in zip(evaluated, COLORS[1:] * len(evaluated), strict=False):
    lines.append((name.removesuffix("/loss"), *_series(entries, name), colour, points))
  draw_lines(axes[0], lines)
  axes[0].set_ylabel("loss")
  if accuracies:
    lines = []
    for name, colour in zip(accuracies, COLORS[1:] * len(accuracies), strict=False):
      x, y = _series(entries, name)
      lines.append((re.sub(r"[/_]accuracy$", "", name).replace("/", " "), x, 100 * y, colour, points))
    draw_lines(axes[1], lines)
    axes[1].set_ylabel("accuracy, %")
  if len(rates):
    _draw_rates(axes[-1], rate_steps, rates)
  for axis in axes:
    axis.grid(axis="y", color=FAINT, linewidth=0.6)
    axis.tick_params(length=0)
    axis.set_axisbelow(True)
  figure.align_ylabels(axes)
  axes[-1].set_xlabel("step")
  axes[-1].xaxis.set_major_locator(MaxNLocator(8, integer=True))
  axes[-1].xaxis.set_major_formatter("{x:,.0f}")
  not_finite = int((~np.isfinite(losses)).sum())
  last = smoothed[np.isfinite(smoothed)]
  heading(
    figure,
    f"Loss over {int(steps.max()):,} steps",
    "training: every logged step, and smoothed" + (f"; {not_finite} not finite" if not_finite else "")
    + (f" (final value {last[-1]:.4g})" if len(last) else ""),
  )  # fmt: skip
  return figure
