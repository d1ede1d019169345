"""What evaluations share: the batches of a split, and a function mapped over its examples."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from train.experiment import Experiment
from train.prefetch import prefetch


class Evaluation(NamedTuple):
  """`function(variables) -> metrics`, to be called every `every_steps` steps; 0 = only after the last."""

  every_steps: int
  function: Callable[[dict], dict[str, float]]


def device_batches(experiment: Experiment, split: str, batch_size: int, limit: int | None = None) -> Iterator[dict]:
  """The batches of a split on the devices: every example once, padding marked by `valid`.

  Args:
    experiment: `train.experiment.Experiment`.
    split: of the data; the evaluation split if empty.
    batch_size: rounded up to a multiple of the number of devices.
    limit: number of examples; None for all.
  """
  multiple = experiment.parallel.data_devices * jax.process_count()
  batch_size = -(-batch_size // multiple) * multiple
  batches = experiment.data.eval_batches(
    batch_size, split or None, process_index=jax.process_index(), process_count=jax.process_count(), limit=limit
  )
  # From the index in the batch to the index in the split: an example's masks must not depend on the batch size.
  batches = (batch | {"id": batch["id"] + n * batch_size} for n, batch in enumerate(batches))
  return prefetch(batches, experiment.parallel.put_batch)


def map_examples(
  experiment: Experiment, function: Callable
) -> Callable[[dict, str, int], Iterator[tuple[np.ndarray, ...]]]:
  """Maps a function of variables and a batch over the examples of a split.

  Args:
    experiment: `train.experiment.Experiment`.
    function: `function(variables, batch)` returns a tuple of arrays [batch, ...].

  Returns:
    `mapped(variables, split, batch_size)`, which yields these arrays on the host, without padding, for each batch; the
    evaluation split if `split` is empty, the training's batch size if `batch_size` is 0.
  """
  axis = experiment.parallel.axis

  def gathered(variables, batch):
    out = function(variables, batch), batch["valid"]
    return jax.lax.all_gather(out, axis, tiled=True) if axis else out

  gathered = experiment.parallel.compile_eval(gathered)

  def mapped(variables, split: str, batch_size: int) -> Iterator[tuple[np.ndarray, ...]]:
    for batch in device_batches(experiment, split, batch_size or experiment.batch_size):
      arrays, valid = experiment.parallel.host(gathered(variables, batch))
      yield tuple(array[valid] for array in arrays)

  return mapped


def check_data(experiment: Experiment, task: str) -> None:
  """Raises ValueError where the evaluation of a task is given data of another."""
  if experiment.config.data.name != task:
    raise ValueError(f"the evaluation {task!r} is for data {task!r}; this is {experiment.config.data.name!r}")
