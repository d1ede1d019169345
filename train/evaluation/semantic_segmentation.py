"""Mean intersection over union and accuracy of the predicted classes of pixels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from train.evaluation.base import Evaluation, check_data, device_batches
from train.evaluation.image_metrics import score_confusion
from train.experiment import Experiment
from train.objectives.semantic_segmentation import labelled_pixels, pixel_logits


def semantic_segmentation(
  experiment: Experiment, *, every_steps: int = 0, split: str = "", batch_size: int = 0
) -> Evaluation:
  """The mean intersection over union of the classes, and the accuracy of pixels.

  Both are of one confusion matrix, summed over the split's pixels (`score_confusion`).

  Args:
    experiment: `train.experiment.Experiment`, of data "semantic_segmentation".
    every_steps: steps between two evaluations; 0 for only the last.
    split: of the data; the evaluation split if empty.
    batch_size: the training's if 0.

  Returns:
    an evaluation of "miou" and "accuracy", 0 to 1, and of "iou/CLASS" for every class that occurs.
  """
  check_data(experiment, "semantic_segmentation")
  classes, objective, parallel = experiment.data.num_classes, experiment.objective, experiment.parallel

  def count(variables, batch):
    logits, _ = pixel_logits(experiment.model, variables, batch["image"], objective.mean, objective.std)
    predicted = logits[..., :classes].argmax(-1)
    # Pixels without a class are counted in a cell of their own, behind the matrix.
    cell = jnp.where(labelled_pixels(batch), batch["mask"].astype(jnp.int32) * classes + predicted, classes**2)
    # For each example by itself, so that only the counts cross devices.
    counts = jax.vmap(functools.partial(jnp.bincount, length=classes**2 + 1))(cell.reshape(len(cell), -1))
    confusion = counts.sum(0)[:-1].reshape(classes, classes)
    return jax.lax.psum(confusion, parallel.axis) if parallel.axis else confusion

  count = parallel.compile_eval(count)

  def evaluate(variables) -> dict[str, float]:
    confusion = np.zeros((classes, classes), np.int64)
    for batch in device_batches(experiment, split, batch_size or experiment.batch_size):
      confusion += parallel.host(count(variables, batch))
    return score_confusion(confusion, experiment.data.class_names)

  return Evaluation(every_steps, evaluate)
