"""One loss a file, whole. An objective is a frozen dataclass `Objective`, its fields the hyperparameters."""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
from flax import linen as nn

from zoo.errors import check_call, field_faults, nearest


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


def apply(
  model: nn.Module, variables: dict, *inputs: Any, rngs: dict | None = None, **options: Any
) -> tuple[tuple, dict]:
  """What a model returns, and its collections other than parameters as they are after that.

  Args:
    model: to apply.
    variables: its variables.
    *inputs: what it is called with.
    rngs: by name; None evaluates, so that no collection changes.
    **options: of `model.apply`, such as another method.
  """
  if rngs is None:
    outputs: Any = model.apply(variables, *inputs, **options)
    return outputs, {}
  collections = [name for name in variables if name != "params"]
  changed: Any = model.apply(variables, *inputs, rngs=rngs, mutable=collections, **options)
  return changed


def check_fields(objective: object, at_least: Mapping[float, Iterable[str]], shares: Iterable[str]) -> None:
  """Raises ValueError for fields below what they must be at least, and for shares outside of 0 <= share < 1."""
  if faults := field_faults(objective, {}, at_least, shares):
    raise ValueError("\n".join(f"config.objective: {fault}" for fault in faults))


def make(name: str, **kwargs: Any) -> Callable[..., Loss]:
  """`train.objectives.NAME.Objective(**kwargs)`; every module of this package is an objective.

  Raises:
    ValueError: unknown name or argument (the nearest is named).
  """
  known = [module.name for module in pkgutil.iter_modules(__path__)]
  if name not in known:
    raise ValueError(f"unknown objective {name!r}{nearest(str(name), known)}")
  objective = importlib.import_module(f"train.objectives.{name}").Objective
  check_call(objective, kwargs, f"config.objective ({name})")
  return objective(**kwargs)
