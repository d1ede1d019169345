"""The pictures of a run by name: what `config.plots` lists and `zoo plot` draws."""

import dataclasses
import functools
import re
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import zoo
from train import plots
from train.data.semantic_segmentation import SemanticSegmentation
from train.data.text.labelled import Labelled
from train.data.text.masked_lm import TokenRows
from train.data.transforms import decode
from train.evaluation.evaluations import score_confusion
from train.inference import translate
from train.objectives.regression import Objective
from train.objectives.semantic_segmentation import pixel_logits
from train.plots import token_attention
from zoo.errors import nearest
from zoo.models.kernel_regression import learned_bandwidth

# So many points are enough to judge a width by, or to draw.
MOST = 1000
# So few tokens are enough to see how heads look, and so many can still be read.
FEWEST_TOKENS, MOST_TOKENS = 12, 24


def draw(
  name: str, run, variables: dict, workdir: Path, path: Path | None = None, images: np.ndarray | None = None
) -> Figure:
  """Draws one of `PLOTS`, as a matplotlib figure.

  Args:
    name: which.
    run: `train.loop.Run`. variables: of the model, whole arrays.
    workdir: of the run, for its metrics.
    path: the PNG to write; None for none.
    images: uint8 [B, Y, X, C]; the first of different classes of the evaluation split if None.

  Raises:
    ValueError: unknown name, or the model has nothing of the kind.
  """
  check(name, run)
  if images is None and name in OF_IMAGES:
    images = examples(run.data)
  return PLOTS[name](run, variables, workdir, images, path=path)


def check(name: str, run) -> None:
  """Raises ValueError where there is no such picture, or none of such a run."""
  if name not in PLOTS:
    raise ValueError(f"unknown plot {name!r}{nearest(name, PLOTS)}")
  needs = (
    (OF_IMAGES, "image_shape", "images"),
    (OF_POINTS, "table", "points"),
    (OF_TEXTS, "references", "texts with translations"),
  )
  for names, attribute, what in needs:
    # The heads of an encoder look at one text.
    if (
      name in names
      and not hasattr(type(run.data), attribute)
      and not (name == "attention_heads" and _reads_rows(run.data))
    ):
      raise ValueError(f"{name} is a plot of {what}; the data is {run.config.data.name!r}")
  if (name in OF_MASKS) != isinstance(run.data, SemanticSegmentation) and name in OF_MASKS | OF_IMAGES:
    what = "images with masks" if name in OF_MASKS else "images with one class each"
    raise ValueError(f"{name} is a plot of {what}; the data is {run.config.data.name!r}")
  if name == "reconstructions" and not hasattr(run.objective, "mask_ratio"):
    raise ValueError(f"{run.config.model.name} does not reconstruct; the plot is for MAE and SimMIM")


def examples(data, count: int = 8) -> np.ndarray:
  """The first images of the evaluation split, of different classes as far as there are any."""
  found: dict[int, np.ndarray] = {}
  source = data.source(data.eval_split)
  for batch in data.eval_batches(64, limit=min(len(source), 4096)):
    for image, label, valid in zip(batch["image"], batch["label"], batch["valid"], strict=True):
      if valid and len(found) < count:
        found.setdefault(int(label), image)
    if len(found) == min(count, data.num_classes):
      break
  return np.stack([found[label] for label in sorted(found)])


def read_image(path: str | Path, data) -> np.ndarray:
  """One's own picture as a batch of one, scaled and cropped as in evaluation.

  Raises:
    ValueError: no such file, or no picture.
  """
  Y, X, C = data.image_shape
  try:
    picture = decode(Path(path).read_bytes(), C)
  except OSError as error:
    raise ValueError(f"cannot read the image {path}: {error.strerror}") from error
  except ValueError as error:
    raise ValueError(f"{path} is no image: {error}") from error
  scale = max(Y / picture.shape[0], X / picture.shape[1])
  size = max(round(picture.shape[1] * scale), X), max(round(picture.shape[0] * scale), Y)
  picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC).reshape(
    size[1], size[0], C
  )
  top, left = (picture.shape[0] - Y) // 2, (picture.shape[1] - X) // 2
  return picture[None, top : top + Y, left : left + X]


def _loss_curve(run, variables, workdir, images, *, path):
  return plots.loss_curve(workdir, path=path)


def _reconstructions(run, variables, workdir, images, *, path):
  options = dict(normalise_patches=False) | dataclasses.asdict(run.objective)
  return plots.reconstructions(run.model, variables, images, **options, path=path)


def _segmentations(run, variables, workdir, images, *, path):
  batch = next(run.data.eval_batches(6))
  images, masks = (batch[name][batch["valid"]] for name in ("image", "mask"))
  objective, names = run.objective, run.data.class_names

  @jax.jit
  def tell(variables, images):
    logits_BYXV, _ = pixel_logits(run.model, variables, images, objective.mean, objective.std)
    return logits_BYXV[..., : len(names)].argmax(-1)

  found = np.asarray(tell(variables, images))
  confusion_VV = np.zeros((len(names), len(names)), int)
  np.add.at(confusion_VV, (masks[masks < len(names)], found[masks < len(names)]), 1)
  score = score_confusion(confusion_VV, names)["miou"]
  return plots.segmentations(images, masks, found, names, score, path=path)


def _attention(function, run, variables, workdir, images, *, path):
  return function(run.model, variables, images[:6], mean=run.objective.mean, std=run.objective.std, path=path)


def _position_similarity(run, variables, workdir, images, *, path):
  return plots.position_similarity(plots.position_table(run.model, variables), path=path)


def predict(run, variables: dict, x_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """What a regression predicts at these x, in the units of its file: [T], and the attention weights [T, S]."""
  points = run.data
  of_one = points.collate("train", np.zeros(1, int))
  x_1T = (x_T - points.origin).astype(np.float32)[None]
  y_1T, aux = jax.jit(run.model.apply)(variables, x_1T, of_one["keys"], of_one["values"])
  return np.asarray(y_1T[0]), np.asarray(aux["weights"][0])


def width_errors(points, split: str, widths: np.ndarray) -> np.ndarray:
  """The root mean squared error that kernel regression with each of these widths has on a split of points."""
  batch = next(points.eval_batches(min(len(points.rows(split)), MOST), split))
  model = zoo.create("kernel_regression/learned", bandwidth=1.0)  # one program for all widths

  def error(width):
    loss = Objective()(model, {"params": {"pool": {"inverse_width": 1 / width}}}, batch)
    return jnp.sqrt(loss.total / loss.weight)

  return np.asarray(jax.jit(lambda widths: jax.lax.map(error, widths))(widths.astype(np.float32)))


def _regression_curve(run, variables, workdir, images, *, path):
  points = run.data
  splits = {split: points.split(split) for split in ("train", "test")}
  x = np.linspace(points.table.x.min(), points.table.x.max(), 1000)
  width = learned_bandwidth(run.model.config, variables)
  about = run.config.model.name + (f", kernel width {width:.3g}" if np.isfinite(width) else "")
  return plots.regression_curve(
    (x, predict(run, variables, x)[0]), splits, names=points.table.names, about=about, path=path
  )


def _attention_heat_map(run, variables, workdir, images, *, path):
  points = run.data
  x_T, key_S = points.split("test")[0][:MOST], points.split("train")[0]
  return plots.attention_heat_map(predict(run, variables, x_T)[1], x_T, key_S, name=points.table.names[0], path=path)


def _kernel_widths(run, variables, workdir, images, *, path):
  points = run.data
  x, y = points.split("train")
  widths = np.geomspace(np.ptp(x) / 1000, np.ptp(x), 60)
  errors = {"leaving one out": width_errors(points, "train", widths), "test": width_errors(points, "test", widths)}
  width = learned_bandwidth(run.model.config, variables)
  # The mean of all others is n / (n - 1) times as far from a point as the mean of all.
  average = float(y.std() * len(y) / (len(y) - 1))
  return plots.kernel_widths(widths, errors, width=width, average=average, names=points.table.names, path=path)


def _pair(run, shortest: int = 6, longest: int = 10) -> tuple[str, str]:
  """A text and its translation that one can look through: the first of so many words, or the first of all."""
  pairs = run.data.references()
  return next((pair for pair in pairs if shortest <= len(pair[0].split()) <= longest), pairs[0])


def _alignment(run, variables, workdir, images, *, path):
  return plots.alignment(*translate.align(run, variables, *_pair(run)), path=path)


def _reads_rows(data) -> bool:
  """Whether these are rows that BERT reads."""
  return isinstance(data, (TokenRows, Labelled))


def _sequence(data) -> tuple[np.ndarray, np.ndarray]:
  """Tokens and types of a sequence that one can look through: the shortest that is long enough, else the longest.

  The first of each of some rows of the evaluation split; of a long one its beginning.
  """
  found = []
  for batch in data.eval_batches(64, limit=256):
    # A row of each choice, where there are choices.
    rows = zip(
      *(batch[name].reshape(-1, batch[name].shape[-1]) for name in ("input_ids", "token_type_ids", "segment_ids")),
      strict=True,
    )
    found += [(token_T[part_T == 1], type_T[part_T == 1]) for token_T, type_T, part_T in rows]
  enough = [sequence for sequence in found if len(sequence[0]) >= FEWEST_TOKENS]
  token_T, type_T = min(enough, key=lambda s: len(s[0])) if enough else max(found, key=lambda s: len(s[0]))
  return token_T[:MOST_TOKENS], type_T[:MOST_TOKENS]


def _heads(run, variables, workdir, images, *, path):
  if _reads_rows(run.data):
    vocabulary = run.data.words if isinstance(run.data, Labelled) else run.data.vocabulary
    token_T, type_T = _sequence(run.data)
    tokens = token_attention.names(vocabulary, token_T)
    return plots.attention_heads(
      token_attention.attention_of_tokens(run.model, variables, token_T, type_T), tokens, tokens, path=path
    )
  aux, target, source = translate.look(run, variables, *_pair(run))
  names = sorted(name for name in aux if re.fullmatch(r"decoder/block_\d+/cross_weights", name))
  if not names:
    raise ValueError(f"{run.config.model.name} has no heads to draw")
  weights_LNTS = np.stack([np.asarray(aux[name][0])[:, : len(target)] for name in names])
  return plots.attention_heads(weights_LNTS, target, source, path=path)


OF_IMAGES = {
  "reconstructions": _reconstructions,
  "attention_maps": functools.partial(_attention, plots.attention_maps),
  "attention_rollout": functools.partial(_attention, plots.attention_rollout),
}
OF_MASKS = {"segmentations": _segmentations}
OF_POINTS = {
  "regression_curve": _regression_curve,
  "attention_heat_map": _attention_heat_map,
  "kernel_widths": _kernel_widths,
}
OF_TEXTS = {"alignment": _alignment, "attention_heads": _heads}
PLOTS = {
  "loss_curve": _loss_curve,
  "position_similarity": _position_similarity,
  **OF_IMAGES,
  **OF_MASKS,
  **OF_POINTS,
  **OF_TEXTS,
}
