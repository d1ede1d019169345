"""The plots of a run by name: what `config.plots` lists and `zoo plot` draws."""

import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import zoo
from train import plots
from train.data.base import Dataset
from train.data.image_classification import ImageClassification
from train.data.regression import Regression
from train.data.transforms import decode
from train.evaluation.image_metrics import score_confusion
from train.experiment import Experiment
from train.inference import translate
from train.objectives.regression import Objective
from train.objectives.semantic_segmentation import pixel_logits
from train.plots import token_attention
from zoo.errors import nearest
from zoo.models.kernel_regression import learned_bandwidth

MAX_POINTS = 1000  # to compute an error of, and to draw
MIN_TOKENS, MAX_TOKENS = 12, 24  # of a sequence whose attention is drawn: enough to see, few enough to read

# Kinds of data with pairs of texts, and with rows for an encoder.
PAIRS = ("algorithmic", "translation")
ROWS = (
  "masked_lm", "masked_lm_corpus", "question_answering", "sequence_classification", "token_classification",
)  # fmt: skip


class Plot(NamedTuple):
  """`function(experiment, variables, workdir, images, *, path) -> Figure`, for these kinds of data; () = all."""

  function: Callable[..., Figure]
  data: tuple[str, ...] = ()


def draw(
  name: str,
  experiment: Experiment,
  variables: dict,
  workdir: Path,
  path: Path | None = None,
  images: np.ndarray | None = None,
) -> Figure:
  """Draws one of `PLOTS`, as a matplotlib figure.

  Args:
    name: of the plot.
    experiment: `train.experiment.Experiment`.
    variables: of the model, whole arrays.
    workdir: of the run, for its metrics.
    path: the PNG to write; None for none.
    images: uint8 [batch, height, width, channels]; images of different classes of the evaluation split if None.

  Raises:
    ValueError: unknown name, or the plot does not fit the experiment.
  """
  check(name, experiment)
  if images is None and name in OF_IMAGES:
    images = examples(experiment.data)
  return PLOTS[name].function(experiment, variables, workdir, images, path=path)


def check(name: str, experiment: Experiment) -> None:
  """Raises ValueError where there is no such plot, or it does not fit the experiment."""
  if name not in PLOTS:
    raise ValueError(f"unknown plot {name!r}{nearest(name, PLOTS)}")
  kinds, given = PLOTS[name].data, experiment.config.data.name
  if kinds and given not in kinds:
    raise ValueError(f"the plot {name!r} is for data {', '.join(kinds)}; the data is {given!r}")
  if name == "reconstructions" and not hasattr(experiment.objective, "mask_ratio"):
    raise ValueError(f"{experiment.config.model.name} does not reconstruct; the plot is for MAE and SimMIM")


def examples(data: ImageClassification, count: int = 8) -> np.ndarray:
  """The first images of the evaluation split that are of different classes, at most `count`."""
  found: dict[int, np.ndarray] = {}
  source = data.examples(data.eval_split)
  for batch in data.eval_batches(64, limit=min(len(source), 4096)):
    for image, label, valid in zip(batch["image"], batch["label"], batch["valid"], strict=True):
      if valid and len(found) < count:
        found.setdefault(int(label), image)
    if len(found) == min(count, data.num_classes):
      break
  return np.stack([found[label] for label in sorted(found)])


def read_image(path: str | Path, data: ImageClassification) -> np.ndarray:
  """An image file as a batch of one, scaled and cropped as in evaluation.

  Raises:
    ValueError: no such file, or not an image.
  """
  height, width, channels = data.image_shape
  try:
    image = decode(Path(path).read_bytes(), channels)
  except OSError as error:
    raise ValueError(f"cannot read the image {path}: {error.strerror}") from error
  except ValueError as error:
    raise ValueError(f"{path} is no image: {error}") from error
  scale = max(height / image.shape[0], width / image.shape[1])
  new_width, new_height = max(round(image.shape[1] * scale), width), max(round(image.shape[0] * scale), height)
  image = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
  image = image.reshape(new_height, new_width, channels)
  top, left = (new_height - height) // 2, (new_width - width) // 2
  return image[None, top : top + height, left : left + width]


def _loss_curve(experiment: Experiment, variables, workdir, images, *, path):
  return plots.loss_curve(workdir, path=path)


def _position_similarity(experiment: Experiment, variables, workdir, images, *, path):
  return plots.position_similarity(plots.position_table(experiment.model, variables), path=path)


# ---- images


def _reconstructions(experiment: Experiment, variables, workdir, images, *, path):
  options = dict(norm_pix_loss=False) | dataclasses.asdict(experiment.objective)
  return plots.reconstructions(experiment.model, variables, images, **options, path=path)


def _attention(function, experiment, variables, workdir, images, *, path):
  objective = experiment.objective
  return function(experiment.model, variables, images[:6], mean=objective.mean, std=objective.std, path=path)


def _segmentations(experiment: Experiment, variables, workdir, images, *, path):
  batch = next(experiment.data.eval_batches(6))
  images, masks = (batch[name][batch["valid"]] for name in ("image", "mask"))
  objective, names = experiment.objective, experiment.data.class_names

  @jax.jit
  def predict(variables, images):
    logits, _ = pixel_logits(experiment.model, variables, images, objective.mean, objective.std)
    return logits[..., : len(names)].argmax(-1)

  predicted, labelled = np.asarray(predict(variables, images)), masks < len(names)
  confusion = np.zeros((len(names), len(names)), int)
  np.add.at(confusion, (masks[labelled], predicted[labelled]), 1)
  return plots.segmentations(images, masks, predicted, names, score_confusion(confusion, names)["miou"], path=path)


# ---- regressions


def predict(experiment: Experiment, variables: dict, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Predictions of a regression at these x, in the units of its file; and attention weights [queries, keys]."""
  data = experiment.data
  example = next(data.eval_batches(1, "train", limit=1))
  inputs = (x - data.origin).astype(np.float32)[None]
  y, aux = jax.jit(experiment.model.apply)(variables, inputs, example["keys"], example["values"])
  return np.asarray(y[0]), np.asarray(aux["weights"][0])


def width_errors(data: Regression, split: str, widths: np.ndarray) -> np.ndarray:
  """The root mean squared error of kernel regression with each of these widths on a split."""
  batch = next(data.eval_batches(min(len(data.examples(split)), MAX_POINTS), split))
  model = zoo.create("kernel_regression/learned", bandwidth=1.0)  # one program for all widths

  def error(width):
    loss = Objective()(model, {"params": {"pool": {"inverse_width": 1 / width}}}, batch)
    return jnp.sqrt(loss.total / loss.weight)

  return np.asarray(jax.jit(lambda widths: jax.lax.map(error, widths))(widths.astype(np.float32)))


def _regression_curve(experiment: Experiment, variables, workdir, images, *, path):
  data = experiment.data
  splits = {split: data.split(split) for split in ("train", "test")}
  x = np.linspace(data.table.x.min(), data.table.x.max(), 1000)
  width = learned_bandwidth(experiment.model.config, variables)
  about = experiment.config.model.name + (f", kernel width {width:.3g}" if np.isfinite(width) else "")
  curve = x, predict(experiment, variables, x)[0]
  return plots.regression_curve(curve, splits, names=data.table.names, about=about, path=path)


def _attention_heat_map(experiment: Experiment, variables, workdir, images, *, path):
  data = experiment.data
  queries, keys = data.split("test")[0][:MAX_POINTS], data.split("train")[0]
  weights = predict(experiment, variables, queries)[1]
  return plots.attention_heat_map(weights, queries, keys, name=data.table.names[0], path=path)


def _kernel_widths(experiment: Experiment, variables, workdir, images, *, path):
  data = experiment.data
  x, y = data.split("train")
  widths = np.geomspace(np.ptp(x) / 1000, np.ptp(x), 60)
  errors = {"leaving one out": width_errors(data, "train", widths), "test": width_errors(data, "test", widths)}
  width = learned_bandwidth(experiment.model.config, variables)
  # A point is n / (n - 1) times as far from the mean of all others as from the mean of all.
  average = float(y.std() * len(y) / (len(y) - 1))
  return plots.kernel_widths(widths, errors, width=width, average=average, names=data.table.names, path=path)


# ---- texts


def _pair(experiment: Experiment, min_words: int = 6, max_words: int = 10) -> tuple[str, str]:
  """A text short enough to draw and its translation: the first of a suitable length, else the first of all."""
  pairs = experiment.data.references()
  return next((pair for pair in pairs if min_words <= len(pair[0].split()) <= max_words), pairs[0])


def _alignment(experiment: Experiment, variables, workdir, images, *, path):
  return plots.alignment(*translate.align(experiment, variables, *_pair(experiment)), path=path)


def _sequence(data: Dataset) -> tuple[np.ndarray, np.ndarray]:
  """Tokens and types of a sequence to draw: the shortest that is long enough, else the longest; truncated.

  Of the first sequences of some rows of the evaluation split.
  """
  found = []
  for batch in data.eval_batches(64, limit=256):
    # A row for each choice, where there are choices.
    arrays = (batch[name] for name in ("input_ids", "token_type_ids", "segment_ids"))
    rows = zip(*(array.reshape(-1, array.shape[-1]) for array in arrays), strict=True)
    found += [(tokens[segments == 1], types[segments == 1]) for tokens, types, segments in rows]
  enough = [sequence for sequence in found if len(sequence[0]) >= MIN_TOKENS]
  tokens, types = min(enough, key=lambda s: len(s[0])) if enough else max(found, key=lambda s: len(s[0]))
  return tokens[:MAX_TOKENS], types[:MAX_TOKENS]


def _attention_heads(experiment: Experiment, variables, workdir, images, *, path):
  data = experiment.data
  if experiment.config.data.name in ROWS:
    vocabulary = data.vocabulary
    tokens, types = _sequence(data)
    names = token_attention.token_names(vocabulary, tokens)
    weights = token_attention.attention_of_tokens(experiment.model, variables, tokens, types)
    return plots.attention_heads(weights, names, names, path=path)
  aux, target, source = translate.intermediates(experiment, variables, *_pair(experiment))
  keys = sorted(key for key in aux if re.fullmatch(r"decoder/block_\d+/cross_weights", key))
  if not keys:
    raise ValueError(f"{experiment.config.model.name} has no attention heads to draw")
  weights = np.stack([np.asarray(aux[key][0])[:, : len(target)] for key in keys])
  return plots.attention_heads(weights, target, source, path=path)


PLOTS = {
  "loss_curve": Plot(_loss_curve),
  "position_similarity": Plot(_position_similarity),
  "reconstructions": Plot(_reconstructions, ("image_classification",)),
  "attention_maps": Plot(functools.partial(_attention, plots.attention_maps), ("image_classification",)),
  "attention_rollout": Plot(functools.partial(_attention, plots.attention_rollout), ("image_classification",)),
  "segmentations": Plot(_segmentations, ("semantic_segmentation",)),
  "regression_curve": Plot(_regression_curve, ("regression",)),
  "attention_heat_map": Plot(_attention_heat_map, ("regression",)),
  "kernel_widths": Plot(_kernel_widths, ("regression",)),
  "alignment": Plot(_alignment, PAIRS),
  "attention_heads": Plot(_attention_heads, (*PAIRS, *ROWS)),
}
# The plots that can be drawn of other images than the data's.
OF_IMAGES = tuple(name for name, plot in PLOTS.items() if plot.data == ("image_classification",))
