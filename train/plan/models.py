"""Parameters, multiply-adds and inputs of every model of the zoo."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import jax

import zoo
from train.plan.macs import count_macs, count_parameters
from zoo.errors import nearest


@dataclass(frozen=True)
class ModelFacts:
  """A line of `zoo models`: `macs` are those of one forward pass of one example."""

  name: str
  parameters: int
  macs: int
  inputs: tuple[tuple[int, ...], ...]


def describe_models(pattern: str = "*", progress: Callable[[list[str]], Iterable[str]] = iter) -> list[ModelFacts]:
  """Parameters, multiply-adds and inputs of every model whose name matches; traces only, allocates nothing.

  Args:
    pattern: of names, with * and ?.
    progress: wraps the iteration over the names, as a progress bar does.

  Raises:
    ValueError: no name matches; the nearest is named.
  """
  names = zoo.list_models(pattern)
  if not names:
    part = pattern.strip("*")
    raise ValueError(
      f"no model matches {pattern!r}{nearest(pattern, zoo.list_models(f'*{part}*') or zoo.list_models())}"
    )
  return [_describe(name) for name in progress(names)]


def _describe(name: str) -> ModelFacts:
  family = zoo.family(name)
  # A scanned model traces one block in place of all.
  scanned = {"scan": True} if "scan" in {f.name for f in dataclasses.fields(family.Config)} else {}
  model = zoo.create(name, **scanned)
  inputs = family.inputs(model.config, 1)
  key = jax.eval_shape(lambda: jax.random.key(0))
  rngs = {"params": key, "mask": key}
  variables = jax.eval_shape(model.init, rngs, *inputs)
  macs = count_macs(lambda v, key, *x: model.apply(v, *x, rngs={"mask": key})[0], variables, key, *inputs)
  return ModelFacts(name, count_parameters(variables.get("params", {})), macs, tuple(x.shape for x in inputs))
