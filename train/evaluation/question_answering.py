"""Exact match and F1 of extracted answers, as SQuAD defines them."""

import itertools

from train.data.text.question_answering import choose
from train.evaluation import text_metrics
from train.evaluation.base import Evaluation, check_data, map_examples
from train.experiment import Experiment
from train.objectives.question_answering import span_logits


def question_answering(
  experiment: Experiment,
  *,
  every_steps: int = 0,
  split: str = "",
  batch_size: int = 0,
  n_best_size: int = 20,
  max_answer_length: int = 30,
  null_score_diff_threshold: float = 0.0,
) -> Evaluation:
  """Exact match and F1 of answers, 0 to 100, as in SQuAD's scripts (`train.evaluation.text_metrics.score_answers`).

  If the split has unanswerable questions, their scores and the best threshold are reported too.

  Args:
    experiment: `train.experiment.Experiment`, of data "question_answering".
    every_steps: steps between two evaluations; 0 for only the last.
    split: of the data; the evaluation split if empty.
    batch_size: the training's if 0.
    n_best_size, max_answer_length: see `train.data.text.question_answering.choose`.
    null_score_diff_threshold: a question is predicted unanswerable if the score of no answer exceeds that of the best
      answer by more.
  """
  check_data(experiment, "question_answering")
  data = experiment.data
  logits_of = map_examples(experiment, lambda variables, batch: (span_logits(experiment.model, variables, batch)[0],))

  def evaluate(variables) -> dict[str, float]:
    questions, (windows, offsets) = data.questions(split), data.windows(split)
    logits = (row for (batch,) in logits_of(variables, split, batch_size) for row in batch)
    answers = []
    # The windows of a question follow each other.
    for number, group in itertools.groupby(zip(windows, logits, strict=True), lambda pair: pair[0].question):
      own, rows = zip(*group, strict=True)
      context = questions[number].context
      answers.append(choose(rows, own, offsets[number], context, n_best_size, max_answer_length))
    wanted = [[text for text, _ in question.answers] for question in questions]
    null = None if all(wanted) else [answer.null for answer in answers]
    return text_metrics.score_answers([answer.text for answer in answers], wanted, null, null_score_diff_threshold)

  return Evaluation(every_steps, evaluate)
