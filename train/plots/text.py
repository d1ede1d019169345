"""Plots of texts: alignments, attention heads, inputs, masked tokens and beams."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colors
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from train.plots.style import COLORS, FAINT, INK, SOFT, drawing, heading


@drawing
def alignment(weights: np.ndarray, target: Sequence[str], source: Sequence[str]) -> Figure:
  """The attention of each token of a translation to its source (as in Bahdanau et al. 2015, figure 3).

  Args:
    weights: attention [target, source]; each row sums to 1.
    target, source: the tokens.
  """
  cell, left, top, edge = 0.22, 1.3, 1.6, 0.2
  width, height = max(left + cell * len(source) + edge, 4.8), top + cell * len(target) + edge
  figure = Figure(figsize=(width, height))
  box = left / width, edge / height, cell * len(source) / width, cell * len(target) / height
  axis = figure.add_axes(box)
  # The largest weight is darkest, but 0.5 at least, so that uniform attention is pale.
  axis.imshow(weights, cmap="Blues", vmin=0, vmax=max(0.5, weights.max()), interpolation="nearest", aspect="auto")
  axis.set_xticks(range(len(source)), source, rotation=60, ha="left", rotation_mode="anchor")
  axis.set_yticks(range(len(target)), target)
  axis.xaxis.tick_top()
  axis.tick_params(length=0)
  axis.spines[:].set_visible(False)
  heading(figure, "Attention to the source", "a row for each token of the translation; dark is most")
  return figure


@drawing
def attention_heads(weights: np.ndarray, target: Sequence[str], source: Sequence[str]) -> Figure:
  """The attention of every head of every block over one pair of texts: a row for each block, a panel for each head.

  Args:
    weights: attention [layers, heads, target, source], first block first; rows sum to 1.
    target: the tokens of the queries.
    source: the tokens of the keys.
  """
  rows, columns = weights.shape[:2]
  gap, left, top, edge = 0.14, 1.2, 1.3, 0.15
  cell = max(0.15, 1.2 / max(len(source), len(target)))
  across, down = cell * len(source), cell * len(target)
  width, height = max(left + columns * (across + gap) + edge, 4.8), top + rows * (down + gap) + edge
  figure = Figure(figsize=(width, height))
  most = max(0.5, weights.max())  # the same for all, see `alignment`
  for row, column in np.ndindex(rows, columns):
    x, y = left + column * (across + gap), height - top - (row + 1) * down - row * gap
    axis = figure.add_axes((x / width, y / height, across / width, down / height))
    axis.imshow(weights[row, column], cmap="Blues", vmin=0, vmax=most, interpolation="nearest", aspect="auto")
    axis.spines[:].set(visible=True, color=FAINT)
    axis.xaxis.tick_top()
    axis.tick_params(length=0, pad=2, labelsize=7)
    axis.set_xticks(range(len(source)), source if row == 0 else [""] * len(source))
    axis.set_yticks(range(len(target)), target if column == 0 else [""] * len(target))
    for label in axis.get_xticklabels():
      label.set(rotation=60, ha="left", rotation_mode="anchor")
  count = " and ".join(f"{n} {what}{'s' if n > 1 else ''}" for n, what in ((rows, "block"), (columns, "head")))
  heading(figure, f"Attention of {count}", "a row of panels for each block; a row in a panel is a token, dark is most")
  return figure


@drawing
def token_inputs(tokens: Sequence[str], numbers: Mapping[str, Sequence[int]]) -> Figure:
  """The inputs of BERT: tokens, and below them a strip for each array of numbers (Devlin et al. 2019, figure 2).

  Args:
    tokens: of one row.
    numbers: by name, such as "segment", one for each token. A strip of few different numbers has a colour for each, one
      of many a colour scale.
  """
  cell, left, top, edge = 0.27, 0.8, 1.55, 0.12
  width, height = max(left + cell * len(tokens) + edge, 4.8), top + 1.25 * cell * len(numbers) + edge
  figure = Figure(figsize=(width, height))
  for line, (name, values) in enumerate(numbers.items()):
    y = height - top - (1.25 * line + 1) * cell
    axis = figure.add_axes((left / width, y / height, cell * len(tokens) / width, cell / height))
    kinds = {value: kind for kind, value in enumerate(sorted({*values}))}
    most = max(max(values), 1)
    for i, value in enumerate(values):
      few = len(kinds) <= len(COLORS)
      colour = _pale(COLORS[kinds[value]], 0.62) if few else _pale(COLORS[0], 0.9 - 0.65 * value / most)
      axis.add_patch(Rectangle((i + 0.04, 0), 0.92, 1, color=colour, linewidth=0))
      light = not few and value / most > 0.6
      axis.text(i + 0.5, 0.47, str(value), ha="center", va="center", size=7, color="white" if light else INK)
    axis.set(xlim=(0, len(tokens)), ylim=(0, 1), xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.annotate(
      name, (0, 0.5), xytext=(-6, 0), textcoords="offset points", ha="right", va="center", annotation_clip=False
    )
    if line == 0:
      axis.xaxis.tick_top()
      axis.set_xticks(np.arange(len(tokens)) + 0.5, tokens)
      axis.tick_params(length=0, pad=2)
      for label in axis.get_xticklabels():
        label.set(rotation=60, ha="left", rotation_mode="anchor", color=INK)
  heading(figure, "Inputs of the model", "a column for each token; equal numbers have equal colours")
  return figure


def _pale(colour: str, share: float) -> tuple[float, float, float]:
  """A colour mixed with a share of white."""
  red, green, blue = (share + (1 - share) * c for c in colors.to_rgb(colour))
  return red, green, blue


@drawing
def masked_tokens(
  tokens: Sequence[str], inputs: Sequence[Sequence[str]], selected: np.ndarray, mask: str = "[MASK]"
) -> Figure:
  """The masking of one row in several epochs: a line for each token, a column for each epoch.

  Args:
    tokens: of the row.
    inputs: the model's input tokens [epochs, tokens].
    selected: bool [epochs, tokens], whether the token is predicted.
    mask: the token that replaces masked tokens.
  """
  selected = np.asarray(selected, bool)
  across, down, left, top, bottom = 0.82, 0.185, 1.0, 0.85, 0.42
  width, height = max(left + across * len(inputs) + 0.12, 4.8), top + down * len(tokens) + bottom
  figure = Figure(figsize=(width, height))
  box = left / width, bottom / height, across * len(inputs) / width, down * len(tokens) / height
  axis = figure.add_axes(box)
  colours = {"masked": COLORS[0], "random token": COLORS[1], "unchanged": COLORS[2]}
  for epoch, i in np.ndindex(selected.shape):
    token, predicted = str(inputs[epoch][i]), selected[epoch, i]
    kind = "masked" if token == mask else "unchanged" if token == tokens[i] else "random token"
    colour = _pale(colours[kind], 0.1) if predicted else _pale(FAINT, 0.75)
    axis.add_patch(Rectangle((epoch + 0.02, i + 0.05), 0.96, 0.9, color=colour, linewidth=0))
    style: dict = dict(color="white", weight="bold") if predicted else dict(color=SOFT)
    axis.text(epoch + 0.5, i + 0.55, token, ha="center", va="center", size=6.5, clip_on=True, **style)
  axis.set(xlim=(0, len(inputs)), ylim=(len(tokens), 0))
  axis.set_xticks(np.arange(len(inputs)) + 0.5, [f"epoch {epoch}" for epoch in range(1, len(inputs) + 1)])
  axis.set_yticks(np.arange(len(tokens)) + 0.55, tokens)
  axis.xaxis.tick_top()
  axis.tick_params(length=0, pad=3)
  for label in axis.get_yticklabels():
    label.set(color=INK)
  axis.spines[:].set_visible(False)
  patches = [Rectangle((0, 0), 1, 1, color=_pale(colour, 0.1)) for colour in colours.values()]
  figure.legend(
    patches, colours, loc="lower left", bbox_to_anchor=(left / width - 0.01, 0), ncols=3, handlelength=1.1,
  )  # fmt: skip
  heading(
    figure,
    "Masking of one row",
    "the row on the left, and the model's inputs; coloured tokens are predicted",
  )
  return figure


@drawing
def beam_tree(followed: Sequence[Sequence[tuple[str, ...]]], best: tuple[str, ...]) -> Figure:
  """The hypotheses of a beam search, as a tree from left to right, and the sequence that was chosen.

  Args:
    followed: for each step the hypotheses in the beam, as tuples of tokens; each extends one of the step before. Those
      that have ended may be left out.
    best: the tokens of the chosen sequence.

  Raises:
    ValueError: a hypothesis that extends none.
  """
  children: dict[tuple, list[tuple]] = {(): []}
  for hypotheses in followed:
    for h in hypotheses:
      if h[:-1] not in children:
        raise ValueError(f"{h} extends none of the hypotheses before it: {[c for c in children if len(c) < len(h)]}")
      if h not in children:
        children[h] = []
        children[h[:-1]].append(h)

  # Each leaf has a line of its own, and a parent is in the middle of its children, so no lines cross.
  height: dict[tuple, float] = {}
  lines = 0

  def set_height(node: tuple) -> float:
    nonlocal lines
    if children[node]:
      found = [set_height(child) for child in children[node]]
      height[node] = (found[0] + found[-1]) / 2
    else:
      height[node], lines = float(lines), lines + 1
    return height[node]

  set_height(())
  depth = max(map(len, children))
  figure = Figure(figsize=(max(1.1 * (depth + 0.6), 4.8), 0.24 * lines + 0.85))
  bottom, top = 0.1 / figure.get_figheight(), 0.62 / figure.get_figheight()
  axis = figure.add_axes((0, bottom, 1, 1 - bottom - top))
  axis.set(xlim=(-0.3, depth + 0.7), ylim=(lines - 0.4, -0.6))
  axis.axis("off")
  for node in children:
    chosen = best[: len(node)] == node
    if node:
      ends = [len(node) - 0.38, len(node) - 0.05], [height[node[:-1]], height[node]]
      axis.plot(*ends, color=COLORS[0] if chosen else FAINT, linewidth=1.8 if chosen else 0.9, zorder=2 + chosen)
    style: dict = dict(color=INK, weight="bold") if chosen else dict(color=SOFT)
    axis.text(len(node), height[node], node[-1] if node else "<s>", size=8, va="center", zorder=4, **style)
  heading(figure, "Beam search", "a column for each step; the chosen sequence is bold")
  return figure
