"""Pictures of texts: alignments, heads, rows of tokens, hidden words and beams."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from train.plots.style import COLORS, FAINT, INK, SOFT, drawing, heading
from zoo.shapes import expect


@drawing
def alignment(weights_TS: np.ndarray, target: Sequence[str], source: Sequence[str]) -> Figure:
  """Where in the source a translation looked when it said each token (as in Bahdanau et al. 2015, figure 3).

  Args:
    weights_TS: attention; each row sums to 1.
    target, source: the tokens.
  """
  expect(weights_TS=weights_TS)
  cell, left, top, edge = 0.22, 1.3, 1.6, 0.2
  width, height = max(left + cell * len(source) + edge, 4.8), top + cell * len(target) + edge
  figure = Figure(figsize=(width, height))
  box = left / width, edge / height, cell * len(source) / width, cell * len(target) / height
  axis = figure.add_axes(box)
  # Darkest is the largest share, but none of less than half: attention to all tokens alike stays pale.
  axis.imshow(weights_TS, cmap="Blues", vmin=0, vmax=max(0.5, weights_TS.max()), interpolation="nearest", aspect="auto")
  axis.set_xticks(range(len(source)), source, rotation=60, ha="left", rotation_mode="anchor")
  axis.set_yticks(range(len(target)), target)
  axis.xaxis.tick_top()
  axis.tick_params(length=0)
  axis.spines[:].set_visible(False)
  heading(figure, "What the translation looked at", "a row for each token of it; dark is most")
  return figure


@drawing
def attention_heads(weights_LNTS: np.ndarray, target: Sequence[str], source: Sequence[str]) -> Figure:
  """Every head of every block over one pair of texts: a row for each block, a panel for each head.

  Args:
    weights_LNTS: attention weights, first block first; rows sum to 1.
    target: the tokens that look. source: those that are looked at.
  """
  sizes = expect(weights_LNTS=weights_LNTS)
  rows, columns, gap, left, top, edge = sizes["L"], sizes["N"], 0.14, 1.2, 1.3, 0.15
  cell = max(0.15, 1.2 / max(len(source), len(target)))
  across, down = cell * len(source), cell * len(target)
  width, height = max(left + columns * (across + gap) + edge, 4.8), top + rows * (down + gap) + edge
  figure = Figure(figsize=(width, height))
  most = max(0.5, weights_LNTS.max())  # the same for all, see `alignment`
  for row, column in np.ndindex(rows, columns):
    x, y = left + column * (across + gap), height - top - (row + 1) * down - row * gap
    axis = figure.add_axes([x / width, y / height, across / width, down / height])
    axis.imshow(weights_LNTS[row, column], cmap="Blues", vmin=0, vmax=most, interpolation="nearest", aspect="auto")
    axis.spines[:].set(visible=True, color=FAINT)
    axis.xaxis.tick_top()
    axis.tick_params(length=0, pad=2, labelsize=7)
    axis.set_xticks(range(len(source)), source if row == 0 else [""] * len(source))
    axis.set_yticks(range(len(target)), target if column == 0 else [""] * len(target))
    for label in axis.get_xticklabels():
      label.set(rotation=60, ha="left", rotation_mode="anchor")
  count = " and ".join(f"{n} {what}{'s' if n > 1 else ''}" for n, what in ((rows, "block"), (columns, "head")))
  heading(figure, f"Where {count} look", "a row of panels for each block; a row in a panel is a token, dark is most")
  return figure


@drawing
def token_inputs(tokens: Sequence[str], numbers: Mapping[str, Sequence[int]]) -> Figure:
  """A row that BERT reads: its tokens, and below them a strip for each kind of number that they have (Devlin et al.
  2019, figure 2).

  Args:
    tokens: what to write above.
    numbers: by name, such as "segment", one for each token. A strip of few is coloured by them, others by their size.
  """
  cell, left, top, edge = 0.27, 0.8, 1.55, 0.12
  width, height = max(left + cell * len(tokens) + edge, 4.8), top + 1.25 * cell * len(numbers) + edge
  figure = Figure(figsize=(width, height))
  for line, (name, values_T) in enumerate(numbers.items()):
    y = height - top - (1.25 * line + 1) * cell
    axis = figure.add_axes([left / width, y / height, cell * len(tokens) / width, cell / height])
    kinds = {value: i for i, value in enumerate(sorted({*values_T}))}
    most = max(max(values_T), 1)
    for place, value in enumerate(values_T):
      few = len(kinds) <= len(COLORS)
      colour = _pale(COLORS[kinds[value]], 0.62) if few else _pale(COLORS[0], 0.9 - 0.65 * value / most)
      axis.add_patch(Rectangle((place + 0.04, 0), 0.92, 1, color=colour, linewidth=0))
      light = not few and value / most > 0.6
      axis.text(place + 0.5, 0.47, value, ha="center", va="center", size=7, color="white" if light else INK)
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
  heading(figure, "What a row is made of", "a column for each token; colours tell numbers apart")
  return figure


def _pale(colour: str, share: float) -> tuple[float, float, float]:
  """A colour with so much white in it."""
  return tuple(share + (1 - share) * c for c in matplotlib.colors.to_rgb(colour))


@drawing
def masked_tokens(
  tokens: Sequence[str], seen_ST: Sequence[Sequence[str]], chosen_ST: np.ndarray, mask: str = "[MASK]"
) -> Figure:
  """What is hidden of one row, step by step: a line for each token, and a column for each time that the row comes.

  Args:
    tokens: of the row.
    seen_ST: what the model sees in their places, for each step.
    chosen_ST: bool, whether the model is to tell what was there.
    mask: the token that hides a word.
  """
  chosen_ST = np.asarray(chosen_ST, bool)
  across, down, left, top, bottom = 0.82, 0.185, 1.0, 0.85, 0.42
  width, height = max(left + across * len(seen_ST) + 0.12, 4.8), top + down * len(tokens) + bottom
  figure = Figure(figsize=(width, height))
  box = left / width, bottom / height, across * len(seen_ST) / width, down * len(tokens) / height
  axis = figure.add_axes(box)
  colours = {"hidden": COLORS[0], "another word": COLORS[1], "stays": COLORS[2]}
  for (step, place), chosen in np.ndenumerate(chosen_ST):
    seen = seen_ST[step][place]
    kind = "hidden" if seen == mask else "stays" if seen == tokens[place] else "another word"
    colour = _pale(colours[kind], 0.1) if chosen else _pale(FAINT, 0.75)
    axis.add_patch(Rectangle((step + 0.02, place + 0.05), 0.96, 0.9, color=colour, linewidth=0))
    style = dict(color="white", weight="bold") if chosen else dict(color=SOFT)
    axis.text(step + 0.5, place + 0.55, seen, ha="center", va="center", size=6.5, clip_on=True, **style)
  axis.set(xlim=(0, len(seen_ST)), ylim=(len(tokens), 0))
  axis.set_xticks(np.arange(len(seen_ST)) + 0.5, [f"step {step}" for step in range(1, len(seen_ST) + 1)])
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
    "What is hidden of one row",
    "the row at the left, and what the model sees of it; it tells what was in coloured places",
  )
  return figure


@drawing
def beam_tree(followed: Sequence[Sequence[tuple[str, ...]]], best: tuple[str, ...]) -> Figure:
  """The beginnings that a beam search followed, as a tree from left to right, and the sequence it chose.

  Args:
    followed: for each place the beginnings that were kept there, as tuples of tokens; each extends one from the place
      before. Those that have ended need not come again.
    best: the tokens of what was chosen.

  Raises:
    ValueError: a beginning that extends none.
  """
  children: dict[tuple, list[tuple]] = {(): []}
  for beginnings in followed:
    for b in beginnings:
      if b[:-1] not in children:
        raise ValueError(f"{b} extends none of the beginnings before it: {[c for c in children if len(c) < len(b)]}")
      if b not in children:
        children[b] = []
        children[b[:-1]].append(b)

  # What nobody extends gets a line of its own; a parent stands in the middle of its children, so no lines cross.
  height: dict[tuple, float] = {}
  lines = 0

  def place(node: tuple) -> float:
    nonlocal lines
    if children[node]:
      found = [place(child) for child in children[node]]
      height[node] = (found[0] + found[-1]) / 2
    else:
      height[node], lines = float(lines), lines + 1
    return height[node]

  place(())
  depth = max(map(len, children))
  figure = Figure(figsize=(max(1.1 * (depth + 0.6), 4.8), 0.24 * lines + 0.85))
  bottom, top = 0.1 / figure.get_figheight(), 0.62 / figure.get_figheight()
  axis = figure.add_axes([0, bottom, 1, 1 - bottom - top])
  axis.set(xlim=(-0.3, depth + 0.7), ylim=(lines - 0.4, -0.6))
  axis.axis("off")
  for node in children:
    chosen = best[: len(node)] == node
    if node:
      ends = [len(node) - 0.38, len(node) - 0.05], [height[node[:-1]], height[node]]
      axis.plot(*ends, color=COLORS[0] if chosen else FAINT, linewidth=1.8 if chosen else 0.9, zorder=2 + chosen)
    style = dict(color=INK, weight="bold") if chosen else dict(color=SOFT)
    axis.text(len(node), height[node], node[-1] if node else "<s>", size=8, va="center", zorder=4, **style)
  heading(figure, "What the beam search followed", "a column for each place; bold is what it chose")
  return figure
