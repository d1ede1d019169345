"""The mean loss over a split."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from train import config as configuration
from train import objectives
from train.evaluation.base import Evaluation, device_batches
from train.experiment import Experiment
from train.step import make_eval_step


def loss(
  experiment: Experiment,
  *,
  every_steps: int = 0,
  split: str = "",
  batch_size: int = 0,
  objective: Mapping | None = None,
) -> Evaluation:
  """The mean of an objective over every example of a split, each exactly once, on any number of devices.

  Args:
    experiment: `train.experiment.Experiment`.
    every_steps: steps between two evaluations; 0 for only the last.
    split: of the data; the evaluation split if empty.
    batch_size: the training's if 0.
    objective: another than the training's, as in the config.

  Returns:
    an evaluation of the objective's "loss" and metrics, and "examples": the weight that these are means over, which for
    texts is the number of tokens.
  """
  loss_function = experiment.objective
  if objective:
    loss_function = objectives.make(objective["name"], **configuration.kwargs(ConfigDict(objective)))
  parallel = experiment.parallel
  step = parallel.compile_eval(make_eval_step(loss_function, experiment.model, axis=parallel.axis))

  def evaluate(variables) -> dict[str, float]:
    sums: dict[str, float] = {}
    for batch in device_batches(experiment, split, batch_size or experiment.batch_size):
      for name, value in parallel.host(step(variables, batch)).items():
        sums[name] = sums.get(name, 0.0) + float(value)
    weight = sums.pop("weight")
    return {name: value / weight for name, value in sums.items()} | {"examples": weight}

  return Evaluation(every_steps, evaluate)
