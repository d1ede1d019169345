"""The pictures of a run by name: what `config.pictures` lists and `zoo show` draws."""

import functools
from pathlib import Path

import cv2
import numpy as np

from train import show
from train.augment import decode
from zoo.errors import nearest


def draw(name: str, run, variables: dict, workdir: Path, path: Path, images: np.ndarray | None = None) -> None:
  """Draws one of `PICTURES`.

  Args:
    name: which.
    run: `train.loop.Run`. variables: of the model, whole arrays.
    workdir: of the run, for its metrics.
    path: the PNG to write.
    images: uint8 [B, Y, X, C]; the first of different classes of the evaluation split if None.

  Raises:
    ValueError: unknown name, or the model has nothing of the kind.
  """
  if name not in PICTURES:
    raise ValueError(f"unknown picture {name!r}{nearest(name, PICTURES)}")
  if images is None and name not in ("loss_curve", "position_similarity"):
    images = examples(run.data)
  PICTURES[name](run, variables, workdir, images, path=path)


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
  show.loss_curve(workdir, path=path)


def _reconstructions(run, variables, workdir, images, *, path):
  objective = run.objective
  if not hasattr(objective, "mask_ratio"):
    raise ValueError(f"{run.config.model.name} does not reconstruct; the picture is for masked autoencoders")
  show.reconstructions(
    run.model,
    variables,
    images,
    mask_ratio=objective.mask_ratio,
    normalise_patches=objective.normalise_patches,
    mean=objective.mean,
    std=objective.std,
    path=path,
  )


def _attention(function, run, variables, workdir, images, *, path):
  function(run.model, variables, images[:6], mean=run.objective.mean, std=run.objective.std, path=path)


def _position_similarity(run, variables, workdir, images, *, path):
  show.position_similarity(show.position_table(run.model, variables), path=path)


PICTURES = {
  "loss_curve": _loss_curve,
  "reconstructions": _reconstructions,
  "attention_maps": functools.partial(_attention, show.attention_maps),
  "attention_rollout": functools.partial(_attention, show.attention_rollout),
  "position_similarity": _position_similarity,
}
