"""One loss a file, whole. An objective is a frozen dataclass `Objective`, its fields the hyperparameters."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax

from zoo.errors import field_faults


class Loss(NamedTuple):
  """What an objective returns: sums, so that parts of a batch just add up.

  Attributes:
    total: the loss summed over examples (or patches, or tokens), each times its weight; float32 scalar.
    weight: the sum of those weights.
    metrics: more sums over the same weight, by name.
    variables: the model's collections other than parameters (running statistics) after this batch.
  """

  total: jax.Array
  weight: jax.Array
  metrics: dict[str, jax.Array]
  variables: dict


def apply(model, variables: dict, *inputs, rngs: dict | None = None, **options) -> tuple[tuple, dict]:
  """What a model returns, and its collections other than parameters as they are after that.

  Args:
    model: to apply.
    variables: its variables.
    *inputs: what it is called with.
    rngs: by name; None evaluates, so that no collection changes.
    **options: of `model.apply`, such as another method.
  """
  if rngs is None:
    return model.apply(variables, *inputs, **options), {}
  collections = [name for name in variables if name != "params"]
  return model.apply(variables, *inputs, rngs=rngs, mutable=collections, **options)


def check_fields(objective, at_least: Mapping[float, Iterable[str]], shares: Iterable[str]) -> None:
  """Raises ValueError for fields below what they must be at least, and for shares outside of 0 <= share < 1."""
  if faults := field_faults(objective, {}, at_least, shares):
    raise ValueError("\n".join(f"config.objective: {fault}" for fault in faults))
