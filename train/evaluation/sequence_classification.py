"""Metrics of classes, numbers and choices of texts, as GLUE defines them."""

import numpy as np

from train.data.text.sequence_classification import has_label
from train.evaluation import text_metrics
from train.evaluation.base import Evaluation, check_data, map_examples
from train.experiment import Experiment
from train.objectives.sequence_classification import scores_of_labels


def sequence_classification(
  experiment: Experiment, *, every_steps: int = 0, split: str = "", batch_size: int = 0, metrics: tuple = ()
) -> Evaluation:
  """Metrics of the predicted labels of texts (`train.evaluation.text_metrics`).

  Args:
    experiment: `train.experiment.Experiment`, of data "sequence_classification".
    every_steps: steps between two evaluations; 0 for only the last.
    split: of the data; the evaluation split if empty.
    batch_size: the training's if 0.
    metrics: "accuracy", "f1" and "matthews_correlation" of classes and choices, "pearson" and "spearmanr" of numbers;
      the metrics of the GLUE task if empty, or "accuracy".

  Returns:
    an evaluation of these, and of their mean "combined_score" if there are several; 0 to 1, or -1 to 1 for
    correlations.
  """
  check_data(experiment, "sequence_classification")
  names = tuple(metrics) or experiment.data.scores
  text_metrics.check_scores(names, experiment.data.regression)

  def predict(variables, batch):
    output, _ = scores_of_labels(experiment.model, variables, batch)
    return (output if output.ndim == 1 else output.argmax(1)), batch["label"]

  predict_split = map_examples(experiment, predict)

  def evaluate(variables) -> dict[str, float]:
    batches = predict_split(variables, split, batch_size)
    predictions, labels = map(np.concatenate, zip(*batches, strict=True))
    known = has_label(labels)
    return text_metrics.score_labels(predictions[known], labels[known], names)

  return Evaluation(every_steps, evaluate)
