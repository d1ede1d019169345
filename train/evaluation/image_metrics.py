"""Metrics of dense predictions."""

from collections.abc import Sequence

import numpy as np


def score_confusion(confusion: np.ndarray, names: Sequence[str]) -> dict[str, float]:
  """Scores of a confusion matrix: the number of pixels of each class (rows) predicted as each class (columns).

  The intersection over union of a class (Jaccard index) is the number of pixels that are of the class and predicted as
  it, over the number that are either.

  Returns:
    "iou/NAME" of each class that occurs on either side, "miou", their mean, and "accuracy"; 0 to 1. NaN for no pixels.
  """
  intersection = np.diag(confusion)
  union = confusion.sum(0) + confusion.sum(1) - intersection
  scores = {f"iou/{names[i]}": float(intersection[i] / union[i]) for i in np.flatnonzero(union).tolist()}
  if not scores:
    return {"miou": float("nan"), "accuracy": float("nan")}
  accuracy = float(intersection.sum() / confusion.sum())
  return {"miou": float(np.mean(list(scores.values()))), "accuracy": accuracy} | scores
