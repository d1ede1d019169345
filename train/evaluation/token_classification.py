"""Precision, recall and F1 of entities, as CoNLL defines them."""

from train.evaluation import text_metrics
from train.evaluation.base import Evaluation, check_data, map_examples
from train.experiment import Experiment
from train.objectives.sequence_classification import read


def token_classification(
  experiment: Experiment, *, every_steps: int = 0, split: str = "", batch_size: int = 0
) -> Evaluation:
  """Precision, recall and F1 of whole entities (CoNLL), 0 to 1, of tags in IOB1 or IOB2; and the accuracy of tags.

  Args:
    experiment: `train.experiment.Experiment`, of data "token_classification".
    every_steps: steps between two evaluations; 0 for only the last.
    split: of the data; the evaluation split if empty.
    batch_size: the training's if 0.
  """
  check_data(experiment, "token_classification")
  data = experiment.data

  def predict(variables, batch):
    (logits, _), _ = read(experiment.model, variables, batch)
    return logits[..., : data.num_classes].argmax(-1), batch["label"]

  predict_split = map_examples(experiment, predict)

  def evaluate(variables) -> dict[str, float]:
    true = [sentence.tags for sentence in data.sentences(split or data.eval_split)]
    rows = (row for batch in predict_split(variables, split, batch_size) for row in zip(*batch, strict=True))
    predicted = [[data.class_names[tag] for tag in tags[labels >= 0]] for tags, labels in rows]
    # Words of a sentence that was truncated are predicted to be in no entity.
    predicted = [tags + ["O"] * (len(wanted) - len(tags)) for tags, wanted in zip(predicted, true, strict=True)]
    return text_metrics.score_entities(predicted, true)

  return Evaluation(every_steps, evaluate)
