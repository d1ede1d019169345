"""Pictures of a run and of what a model has learned, as matplotlib figures: give a path to write a PNG."""

import functools
import inspect
import math
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from train import metrics
from train.images import normalise
from zoo.layers import patchify, unpatchify
from zoo.positions import Positions, resample
from zoo.shapes import expect

INK, SOFT, FAINT = "#26303a", "#66727f", "#d5dadf"
# At least 20 apart in CIELAB, also with protanopia, deuteranopia and tritanopia; at least 4:1 against white.
COLOURS = ("#1f4e79", "#c8553d", "#3b8574", "#9468b8", "#66192d")
HIDDEN = (190, 205, 218)  # a tint that no grey image has
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


def _drawing(draw: Callable[..., Figure]) -> Callable[..., Figure]:
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


def _title(figure: Figure, title: str, below: str = "") -> None:
  """A heading on the left and, smaller below it, what one needs to know to read the picture."""
  inches = figure.get_size_inches()
  figure.text(0.1 / inches[0], 1 - 0.12 / inches[1], title, size=11, weight="bold", va="top")
  figure.text(0.1 / inches[0], 1 - 0.36 / inches[1], below, size=8, color=SOFT, va="top")


def _panels(rows: int, columns: int, aspect: float, left: float, top: float) -> tuple[Figure, np.ndarray]:
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


def _picture(axis, image_YXC: np.ndarray, **kwargs) -> None:
  grey = image_YXC.ndim == 2 or image_YXC.shape[-1] == 1
  values = image_YXC.reshape(image_YXC.shape[:2]) if grey else image_YXC
  axis.imshow(values, cmap="gray" if grey else None, vmin=0, vmax=255, interpolation="nearest", **kwargs)


def _rgb(image_BYXC: np.ndarray) -> np.ndarray:
  return np.repeat(image_BYXC, 3, -1) if image_BYXC.shape[-1] == 1 else image_BYXC


def _spread(values: np.ndarray) -> np.ndarray:
  """To 0 for the least and 1 for the most."""
  return (values - values.min()) / max(np.ptp(values), 1e-12)


def _row_label(axis, text: str) -> None:
  axis.text(-0.06, 0.5, text, transform=axis.transAxes, ha="right", va="center", size=9)


# ---- masked autoencoding


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
  unit=None,
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
  patch, options = model.config.patch, dict(mask_ratio=mask_ratio) | (dict(unit=unit) if unit else {})

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


@_drawing
def reconstructions(
  model,
  variables: dict,
  image_BYXC: np.ndarray,
  *,
  mask_ratio: float = 0.75,
  normalise_patches: bool = True,
  mean: Sequence[float] = (0.5,),
  std: Sequence[float] = (0.5,),
  unit: int | None = None,
  seed: int = 0,
) -> Figure:
  """Images, what the model saw of them, and what it made of that (as He et al. 2022, fig. 2).

  Args:
    image_BYXC: uint8, grey or RGB; one column each.
    seed: of the masks. The others: see `reconstruct`.
  """
  image_BYXC = np.asarray(image_BYXC)
  sizes = expect(image_BYXC=image_BYXC)
  side = unit or model.config.patch
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
    unit=unit,
  )
  rows = {
    "original": image_BYXC,
    "what it sees": np.where(hidden, np.array(HIDDEN, np.uint8), _rgb(image_BYXC)),
    "prediction": predicted,
    "prediction,\nvisible pasted": np.where(hidden, predicted, image_BYXC),
  }
  figure, axes = _panels(len(rows), sizes["B"], sizes["Y"] / sizes["X"], left=1.15, top=0.66)
  for row, (label, images) in zip(axes, rows.items(), strict=True):
    _row_label(row[0], label)
    for axis, image in zip(row, images, strict=True):
      _picture(axis, image)
  seen = parts - int(hidden[0].sum()) // side**2
  note = "each patch's brightness and contrast are the original's, the rest is predicted"
  if not normalise_patches:
    note = "all pixels are predicted, but only the hidden ones were trained"
  _title(figure, f"Rebuilt from {seen} of {parts} {'squares' if unit else 'patches'}", note)
  return figure


# ---- segmentation


def mask_colours(mask: np.ndarray, names: Sequence[str]) -> np.ndarray:
  """A colour for each class of a mask [...]: uint8 [..., 3]. A class that is none, as where nobody tells, is pale."""
  table = matplotlib.colormaps["tab20"](np.arange(len(names)) % 20)[:, :3] * 255
  known = mask < len(names)
  return np.where(known[..., None], table[np.where(known, mask, 0)], HIDDEN).astype(np.uint8)


@_drawing
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
  figure, axes = _panels(3, B, Y / X, left=0.9, top=0.7 + 0.18 * lines)
  rows = {"image": image_BYXC, "mask": mask_colours(mask_BYX, names), "prediction": mask_colours(found_BYX, names)}
  for row, (label, images) in zip(axes, rows.items(), strict=True):
    _row_label(row[0], label)
    for axis, image in zip(row, images, strict=True):
      _picture(axis, image)
  patches = [
    Rectangle((0, 0), 1, 1, color=colour / 255, label=names[v])
    for v, colour in zip(occur, mask_colours(np.array(occur, int), names), strict=True)
  ]
  inches = figure.get_size_inches()
  place = dict(loc="upper left", bbox_to_anchor=(0.1 / inches[0], 1 - 0.55 / inches[1]), borderaxespad=0, borderpad=0)
  figure.legend(handles=patches, ncols=4, handlelength=1, labelspacing=0.2, columnspacing=1, **place)
  _title(figure, "The classes of pixels", f"mean intersection over union of these images: {100 * score:.1f} %")
  return figure


# ---- attention


def _told(model, variables: dict, image_BYXC, choose: Callable[[dict], dict], *, mean, std) -> dict:
  """What is chosen of the aux that a model tells of uint8 images, nothing hidden."""
  options = {}
  parameters = inspect.signature(type(model).__call__).parameters
  if "noise_BP" in parameters:
    patches = math.prod(_grid(model, image_BYXC))
    # Equal noise leaves the patches in their order; and a share of 0 leaves them as they are.
    options = {"noise_BP": np.zeros((len(image_BYXC), patches), np.float32)}
    options["mask_ratio" if "mask_ratio" in parameters else "share"] = 0.0
  if "unit" in parameters:
    options["unit"] = model.config.patch

  @jax.jit
  def look(variables, image_BYXC):
    return choose(model.apply(variables, normalise(image_BYXC, mean, std), **options)[1])

  return jax.device_get(look(variables, image_BYXC))


def attention_weights(model, variables: dict, image_BYXC, *, mean=(0.5,), std=(0.5,)) -> np.ndarray:
  """The encoder's attention weights [L, B, N, T, T] for uint8 images, nothing hidden.

  Raises:
    ValueError: the model tells no attention weights among all patches.
  """

  def choose(aux):
    return {name: value for name, value in aux.items() if re.fullmatch(r"block_\d+/weights", name)}

  aux = _told(model, variables, image_BYXC, choose, mean=mean, std=std)
  if not aux:
    raise ValueError(
      f"{type(model).__module__} tells no attention weights among all patches: its aux has no 'block_00/weights'"
    )
  return np.stack([aux[name] for name in sorted(aux)])


def attention_received(model, variables: dict, image_BYXC, *, mean=(0.5,), std=(0.5,)) -> list[np.ndarray]:
  """How much attention each place of a Swin's maps gets from its window, in the last block of each stage.

  Args:
    model: of the family `swin` or `simmim`.

  Returns:
    of each stage a map [B, Y, X]: the weights of all places of the window for this one, the mean over the heads. Each
    place gives 1 away, so that the mean is 1, but for what goes to padding where that is attended to.
  """
  c = model.config

  def choose(aux):
    maps = {}
    for stage, depth in enumerate(c.depths):
      B, Y, X, _ = aux[f"stage_{stage}"].shape
      windows = c.windows((Y, X), shifted=True)
      weights_BNTS = aux[f"stage_{stage}/block_{depth // 2 - 1:02d}/shifted/weights"]
      real_BT1 = windows.cut(jnp.ones((B, Y, X, 1)))  # what fills the map up looks, too
      maps[stage] = windows.join((weights_BNTS.mean(1) * real_BT1).sum(1)[..., None])[..., 0]
    return maps

  return [*_told(model, variables, image_BYXC, choose, mean=mean, std=std).values()]


def rollout(weights_LBNTT: np.ndarray) -> np.ndarray:
  """Attention rollout: how much of each input token reaches each output token (Abnar & Zuidema 2020, eq. 1).

  A residual block passes half of a token on as it is and half by attention, averaged over the heads:
  A = W / 2 + I / 2; the rollout is the product of all A, the last block's on the left.

  Args:
    weights_LBNTT: attention weights, first block first; rows sum to 1.

  Returns:
    [B, T, T] float64; rows sum to 1.
  """
  sizes = expect(weights_LBNTT=weights_LBNTT)
  identity = np.eye(sizes["T"])
  result = np.broadcast_to(identity, (sizes["B"], *identity.shape))
  for weights_BNTT in np.asarray(weights_LBNTT, np.float64):
    mixed_BTT = weights_BNTT.mean(1) / 2 + identity / 2
    result = mixed_BTT / mixed_BTT.sum(-1, keepdims=True) @ result
  return result


def query_map(weights: np.ndarray, grid: tuple[int, int], pool: str) -> np.ndarray:
  """Where the output looks: weights [..., T, T] to maps [..., *grid] that sum to 1 each.

  The row of the class token if it is what is pooled ("cls"), else the mean over all patches; only patches as keys.
  """
  tokens = weights.shape[-1] - grid[0] * grid[1]  # before the patches: the class token or nothing
  row = weights[..., 0, tokens:] if pool == "cls" else weights[..., tokens:, tokens:].mean(-2)
  return (row / row.sum(-1, keepdims=True)).reshape(*row.shape[:-1], *grid)


def _grid(model, image_BYXC) -> tuple[int, int]:
  return image_BYXC.shape[1] // model.config.patch, image_BYXC.shape[2] // model.config.patch


@_drawing
def attention_maps(
  model,
  variables: dict,
  image_BYXC: np.ndarray,
  *,
  mean: Sequence[float] = (0.5,),
  std: Sequence[float] = (0.5,),
  max_heads: int = 8,
) -> Figure:
  """Where each head of the last block looks, one image a row, and the rollout over all blocks.

  Of a Swin: what gets attention from its window, in the last block of each stage.

  Args:
    model, variables: a ViT, a Swin, or what learns of hidden patches with one.
    image_BYXC: uint8.
    mean, std: of the pixels, as in training.
    max_heads: how many heads to show.
  """
  image_BYXC = np.asarray(image_BYXC)
  if hasattr(model.config, "windows"):
    received = attention_received(model, variables, image_BYXC, mean=mean, std=std)
    maps = {f"stage {stage}": map_BYX for stage, map_BYX in enumerate(received)}
    title, note = "What gets attention from its window", "last block of each stage, all heads"
  else:
    weights_LBNTT = attention_weights(model, variables, image_BYXC, mean=mean, std=std)
    grid, pool = _grid(model, image_BYXC), model.config.pool
    heads = weights_LBNTT.shape[2]
    shown = min(heads, max_heads)
    last = query_map(weights_LBNTT[-1], grid, pool)
    maps = {f"head {n + 1}": last[:, n] for n in range(shown)}
    maps["rollout"] = query_map(rollout(weights_LBNTT), grid, pool)
    cut = f", {shown} of {heads} heads" if shown < heads else ""
    title = "Where the class token looks" if pool == "cls" else "Where all patches, averaged, look"
    note = f"last of {len(weights_LBNTT)} blocks{cut}; rollout: all blocks"
  B, Y, X, _ = image_BYXC.shape
  figure, axes = _panels(B, 1 + len(maps), Y / X, left=0.12, top=0.84)
  for row, image, *values in zip(axes, image_BYXC, *maps.values(), strict=True):
    _picture(row[0], image)
    for axis, value in zip(row[1:], values, strict=True):
      axis.imshow(_spread(value), cmap=MAP, vmin=0, vmax=1, interpolation="nearest")
  for axis, label in zip(axes[0], ["image", *maps], strict=True):
    axis.set_title(label, pad=4)
  _title(figure, title, f"{note}; dark is least, bright is most")
  return figure


@_drawing
def attention_rollout(
  model, variables: dict, image_BYXC: np.ndarray, *, mean: Sequence[float] = (0.5,), std: Sequence[float] = (0.5,)
) -> Figure:
  """Attention rollout laid over images (as ViT, Dosovitskiy et al. 2021, fig. 6): what the output is made of."""
  image_BYXC = np.asarray(image_BYXC)
  weights_LBNTT = attention_weights(model, variables, image_BYXC, mean=mean, std=std)
  maps = query_map(rollout(weights_LBNTT), _grid(model, image_BYXC), model.config.pool)
  B, Y, X, _ = image_BYXC.shape
  figure, axes = _panels(2, B, Y / X, left=0.8, top=0.66)
  for (above, below), image, values in zip(axes.T, image_BYXC, maps, strict=True):
    _picture(above, image)
    fine = resample(_spread(values)[..., None], (Y, X), "bilinear")[..., 0]
    colour = matplotlib.colormaps[MAP](fine)[..., :3] * 255
    # Little of the image, so that where it is white the least is still dark.
    _picture(below, (0.75 * colour + 0.25 * image.mean(-1, keepdims=True)).astype(np.uint8))
  _row_label(axes[0, 0], "image")
  _row_label(axes[1, 0], "rollout")
  _title(figure, "What reaches the output", f"through all {len(weights_LBNTT)} blocks; dark is least, bright is most")
  return figure


@_drawing
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
  _title(figure, "What the translation looked at", "a row for each token of it; dark is most")
  return figure


@_drawing
def heads(weights_LNTS: np.ndarray, target: Sequence[str], source: Sequence[str]) -> Figure:
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
  _title(figure, f"Where {count} look", "a row of panels for each block; a row in a panel is a token, dark is most")
  return figure


@_drawing
def row_strips(tokens: Sequence[str], numbers: Mapping[str, Sequence[int]]) -> Figure:
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
      few = len(kinds) <= len(COLOURS)
      colour = _pale(COLOURS[kinds[value]], 0.62) if few else _pale(COLOURS[0], 0.9 - 0.65 * value / most)
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
  _title(figure, "What a row is made of", "a column for each token; colours tell numbers apart")
  return figure


def _pale(colour: str, share: float) -> tuple[float, float, float]:
  """A colour with so much white in it."""
  return tuple(share + (1 - share) * c for c in matplotlib.colors.to_rgb(colour))


@_drawing
def hidden_words(
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
  colours = {"hidden": COLOURS[0], "another word": COLOURS[1], "stays": COLOURS[2]}
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
  _title(
    figure,
    "What is hidden of one row",
    "the row at the left, and what the model sees of it; it tells what was in coloured places",
  )
  return figure


@_drawing
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
      axis.plot(*ends, color=COLOURS[0] if chosen else FAINT, linewidth=1.8 if chosen else 0.9, zorder=2 + chosen)
    style = dict(color=INK, weight="bold") if chosen else dict(color=SOFT)
    axis.text(len(node), height[node], node[-1] if node else "<s>", size=8, va="center", zorder=4, **style)
  _title(figure, "What the beam search followed", "a column for each place; bold is what it chose")
  return figure


# ---- regression


@_drawing
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
  markers = (dict(s=13, color=SOFT, alpha=0.55, linewidths=0), dict(s=22, color="none", edgecolors=COLOURS[1]))
  for (name, points), marker in zip(splits.items(), markers, strict=False):
    axis.scatter(*points, **marker, label=f"points to {name} on", zorder=2)
  average = next(iter(splits.values()))[1].mean()
  axis.axhline(average, color=COLOURS[2], linewidth=1.4, linestyle=(0, (5, 3)), label="average pooling", zorder=1)
  axis.plot(*curve, color=COLOURS[0], linewidth=2, label="attention pooling", zorder=3)
  axis.set(xlabel=names[0], ylabel=names[1])
  axis.grid(axis="y", color=FAINT, linewidth=0.6)
  axis.tick_params(length=0)
  axis.set_axisbelow(True)
  figure.legend(
    *axis.get_legend_handles_labels(), loc="upper left", bbox_to_anchor=(0.1, 0.885), ncols=4, columnspacing=1.4
  )
  _title(figure, "Regression by attention", about)
  return figure


@_drawing
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
  _title(
    figure, "Which points a prediction is made of", f"a row for each of {len(rows)} queries, a column for each of"
    f" {len(columns)} keys, in the order of their {name.partition(' (')[0]}; a row sums to 1",
  )  # fmt: skip
  return figure


@_drawing
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
  _lines(axis, [(name, widths, e, colour, {}) for (name, e), colour in zip(errors.items(), COLOURS, strict=False)])
  axis.plot(widths[[0, -1]], [average, average], color=COLOURS[2], linewidth=1.2, linestyle=(0, (5, 3)))
  axis.annotate("average", (widths[0], average), xytext=(2, -10), textcoords="offset points", color=COLOURS[2], size=8)
  axis.set_ylim(0, 1.05 * max(average, *(e.max() for e in errors.values())))
  if np.isfinite(width):
    axis.axvline(width, color=SOFT, linewidth=1, zorder=0)
    axis.annotate(f"{width:.3g}", (width, 0), xytext=(3, 4), textcoords="offset points", color=SOFT, size=8)
  axis.set(xlabel=f"width of the kernel, in {names[0]}", ylabel=f"error of {names[1]}")
  axis.grid(axis="y", color=FAINT, linewidth=0.6)
  axis.tick_params(length=0, which="both")
  axis.set_axisbelow(True)
  _title(figure, "How wide the kernel should be", "root mean squared error; upright: the width that this model has")
  return figure


# ---- positions


def position_table(model, variables: dict) -> np.ndarray:
  """The position embeddings [Y, X, D] that an encoder adds to its patches.

  Raises:
    ValueError: the model adds none.
  """
  c = model.config
  if not hasattr(c, "positions") or not hasattr(c, "grid"):
    raise ValueError("the model has no grid of positions to compare")
  if c.positions in ("none", "relative"):
    raise ValueError(f"positions={c.positions!r} adds no position embeddings, so there is nothing to compare")
  module = Positions(c.positions, c.grid, c.width, c.class_token, c.resampling)
  params = variables["params"]["encoder"].get("pos", {})
  return np.asarray(module.apply({"params": params}, c.grid)[0])


def similarity(table_YXD: np.ndarray) -> np.ndarray:
  """Cosine similarity of each position's embedding with each other's: [Y, X, D] to [Y, X, Y, X]."""
  expect(table_YXD=table_YXD)
  table_YXD = np.asarray(table_YXD, np.float64)
  unit_YXD = table_YXD / np.maximum(np.linalg.norm(table_YXD, axis=-1, keepdims=True), 1e-12)
  return np.einsum("YXD,yxD->YXyx", unit_YXD, unit_YXD)


@_drawing
def position_similarity(table_YXD: np.ndarray, *, most: int = 14) -> Figure:
  """How alike the position embeddings are (ViT, Dosovitskiy et al. 2021, fig. 7, centre).

  Args:
    table_YXD: from `position_table`.
    most: rows and columns of small maps at most; a larger grid shows every second, third, ...
  """
  alike = similarity(table_YXD)
  Y, X = alike.shape[:2]
  step = math.ceil(max(Y, X) / most)
  rows, columns = range(0, Y, step), range(0, X, step)
  least = math.floor(10 * alike.min()) / 10
  size, gap, left, top, right, bottom = 0.5, 0.05, 0.55, 0.72, 0.85, 0.45
  width = left + len(columns) * (size + gap) + right
  height = top + len(rows) * (size * Y / X + gap) + bottom
  figure = Figure(figsize=(width, height))
  for i, y in enumerate(rows):
    for j, x in enumerate(columns):
      box_y = height - top - (i + 1) * (size * Y / X) - i * gap
      box = [(left + j * (size + gap)) / width, box_y / height, size / width, size * Y / X / height]
      axis = figure.add_axes(box)
      drawn = axis.imshow(alike[y, x], cmap=MAP, vmin=least, vmax=1, interpolation="nearest")
      axis.set(xticks=[], yticks=[])
      axis.spines[:].set_visible(False)
      if i == len(rows) - 1:
        axis.set_xlabel(x + 1, labelpad=2)
      if j == 0:
        axis.set_ylabel(y + 1, labelpad=4, rotation=0, va="center", ha="right")
  figure.text(
    (left + len(columns) * (size + gap) / 2) / width, 0.12 / height, "column of the patch", ha="center", color=SOFT
  )
  middle = (bottom + len(rows) * (size * Y / X + gap) / 2) / height
  figure.text(0.1 / width, middle, "row of the patch", va="center", rotation=90, color=SOFT)
  span = min(len(rows) * (size * Y / X + gap) - gap, 2.0)
  bar = figure.colorbar(
    drawn,
    cax=figure.add_axes([(width - right + 0.12) / width, (height - top - span) / height, 0.1 / width, span / height]),
  )
  bar.outline.set_visible(False)
  bar.set_ticks([least, (least + 1) / 2, 1])
  bar.ax.tick_params(length=0)
  _title(figure, "Which positions are alike", "each map: cosine similarity of one patch with all others")
  return figure


# ---- curves


def smooth(values: np.ndarray, width: float) -> np.ndarray:
  """A Gaussian average over about so many neighbours on both sides, so nothing lags; nan is passed over."""
  values = np.asarray(values, np.float64)
  finite = np.isfinite(values)
  place = np.arange(len(values))
  result = np.full(len(values), np.nan)
  for i in np.flatnonzero(finite):
    weight = np.exp(-0.5 * ((place[finite] - i) / max(width, 1e-3)) ** 2)
    result[i] = weight @ values[finite] / weight.sum()
  return result


def _series(log: list[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
  points = [(entry["step"], entry[key]) for entry in log if isinstance(entry.get(key), (int, float))]
  return tuple(np.array(points, np.float64).reshape(-1, 2).T)


@_drawing
def loss_curve(log: str | os.PathLike) -> Figure:
  """The losses of training and evaluations over the steps, the accuracies if there are any, and the learning rate.

  Args:
    log: a `metrics.jsonl`, or the directory it is in.

  Raises:
    ValueError: there is no training loss in it.
  """
  entries = metrics.read(log)
  steps, losses = _series(entries, "train/loss")
  if not len(steps):
    raise ValueError(f"{log} has no training loss to draw")
  names = sorted({key for entry in entries for key in entry if not key.startswith("train/")} - {"step", "note"})
  shares = [name for name in names if name.endswith(("accuracy", "top5"))]
  evaluated = [name for name in names if name.endswith("/loss")]
  rate_steps, rates = _series(entries, "train/learning_rate")

  heights = [2.2] + [1.4] * bool(shares) + [0.8] * bool(len(rates))
  total = 0.75 + sum(heights) + 0.55 + 0.2 * (len(heights) - 1)
  figure = Figure(figsize=(6.4, total))
  axes = figure.subplots(
    len(heights), 1, sharex=True, squeeze=False, height_ratios=heights,
    gridspec_kw=dict(left=0.11, right=0.8, top=1 - 0.75 / total, bottom=0.5 / total, hspace=0.25),
  )[:, 0]  # fmt: skip
  smoothed = smooth(losses, len(losses) / 50)
  axes[0].plot(steps, losses, color=COLOURS[0], alpha=0.3, linewidth=0.8)
  lines = [("training", steps, smoothed, COLOURS[0], {})]
  points = dict(marker="o", markersize=3.5)
  for name, colour in zip(evaluated, COLOURS[1:] * len(evaluated), strict=False):
    lines.append((name.removesuffix("/loss"), *_series(entries, name), colour, points))
  _lines(axes[0], lines)
  axes[0].set_ylabel("loss")
  if shares:
    lines = []
    for name, colour in zip(shares, COLOURS[1:] * len(shares), strict=False):
      x, y = _series(entries, name)
      lines.append((re.sub(r"[/_]accuracy$", "", name).replace("/", " "), x, 100 * y, colour, points))
    _lines(axes[1], lines)
    axes[1].set_ylabel("accuracy, %")
  if len(rates):
    axes[-1].plot(rate_steps, rates, color=SOFT, linewidth=1.2)
    axes[-1].set_ylabel("learning\nrate")
    axes[-1].set_ylim(bottom=0)
    axes[-1].ticklabel_format(axis="y", style="sci", scilimits=(-2, 2), useMathText=True)
    axes[-1].yaxis.get_offset_text().set(size=7, color=SOFT)
  for axis in axes:
    axis.grid(axis="y", color=FAINT, linewidth=0.6)
    axis.tick_params(length=0)
    axis.set_axisbelow(True)
  figure.align_ylabels(axes)
  axes[-1].set_xlabel("step")
  axes[-1].xaxis.set_major_locator(MaxNLocator(8, integer=True))
  axes[-1].xaxis.set_major_formatter("{x:,.0f}")
  lost = int((~np.isfinite(losses)).sum())
  last = smoothed[np.isfinite(smoothed)]
  _title(
    figure,
    f"Loss over {int(steps.max()):,} steps",
    "training: every logged step, and smoothed" + (f"; {lost} not finite" if lost else "")
    + (f" (which ends at {last[-1]:.4g})" if len(last) else ""),
  )  # fmt: skip
  return figure


def _lines(axis, lines: list[tuple]) -> None:
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
