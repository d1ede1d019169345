"""The evaluations that `config.evals` can name."""

from ml_collections import ConfigDict

from train import config as configuration
from train.evaluation.base import Evaluation
from train.evaluation.linear_probe import linear_probe
from train.evaluation.loss import loss
from train.evaluation.question_answering import question_answering
from train.evaluation.semantic_segmentation import semantic_segmentation
from train.evaluation.sequence_classification import sequence_classification
from train.evaluation.token_classification import token_classification
from train.evaluation.translation import translation
from train.experiment import Experiment
from zoo.errors import check_call, nearest

# name -> `function(experiment, *, every_steps, split, ...) -> Evaluation`.
EVALUATIONS = {
  "linear_probe": linear_probe,
  "loss": loss,
  "question_answering": question_answering,
  "semantic_segmentation": semantic_segmentation,
  "sequence_classification": sequence_classification,
  "token_classification": token_classification,
  "translation": translation,
}


def make(experiment: Experiment) -> dict[str, Evaluation]:
  """The evaluations of an experiment's config by their names there.

  Args:
    experiment: `train.experiment.Experiment`.

  Raises:
    ValueError: an unknown evaluation or argument, a missing split, or data of another kind.
  """
  made = {}
  for name, component in experiment.config.evals.items():
    key = f"config.evals.{name}"
    if not isinstance(component, ConfigDict) or "name" not in component:
      given = component.to_dict() if isinstance(component, ConfigDict) else component
      raise ValueError(f"{key} is {given!r}; wanted a name and its arguments, such as name='loss'")
    if component.name not in EVALUATIONS:
      raise ValueError(f"{key}: unknown evaluation {component.name!r}{nearest(str(component.name), EVALUATIONS)}")
    function, options = EVALUATIONS[component.name], configuration.kwargs(component)
    check_call(function, options, f"{key} ({component.name})", given=("experiment",))
    try:  # a split that is missing is an error before the first step, not after the last
      experiment.data.num_eval(options.get("split"))
    except ValueError as error:
      remedy = f"set evals.{name}.split or data.eval_split, or evaluate nothing: evals={{}}"
      raise ValueError(f"{key}: {error}; {remedy}") from error
    made[name] = function(experiment, **options)
  return made
