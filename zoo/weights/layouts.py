"""The layouts of a model's weights: "zoo", our own paths, and those of its family's table; shapes and stacking."""

import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from zoo import registry
from zoo.layers.position_embeddings import resample as resample_table
from zoo.layers.stack import STACKED, stack_params, unstack_params
from zoo.weights import tables
from zoo.weights.rules import Rule, Transform, WeightsError, matcher


def family_name(model: nn.Module) -> str:
  """The name of a model's family."""
  return registry.family_of(model).__name__.rpartition(".")[2]


def shapes_of(model: nn.Module) -> dict:
  """Shapes of a model's variables."""
  rngs = {stream: jax.random.key(0) for stream in ("params", "mask")}
  return jax.eval_shape(model.init, rngs, *registry.family_of(model).inputs(model.config, 1))


def unrolled(shapes: Mapping) -> dict:
  """The same shapes with each scanned block by itself."""
  return jax.eval_shape(lambda tree: {collection: unstack_params(v) for collection, v in tree.items()}, shapes)


def stacked_as(like: Mapping, variables: Mapping) -> Mapping:
  """Variables with blocks stacked where they are stacked in `like`."""
  if not any(STACKED in path for path in flatten_dict(like)):
    return variables
  return {collection: stack_params(v) for collection, v in variables.items()}


def layouts_of(model: nn.Module, template: Mapping) -> dict[str, tuple[Rule, ...]]:
  """The tables of the model's family by layout, and "zoo", the identity on our own paths."""
  ours = tuple(
    Rule(re.escape(path), path, _OUR_POSITIONS if _RESAMPLED.search(path) else _OURS)
    for path in flatten_dict(template, sep="/")
  )
  theirs = tables.of(family_name(model))
  return {"zoo": ours} | (theirs.tables(model.config) if theirs else {})


def for_layout(layout: str, table: Sequence[Rule], variables: Mapping) -> dict:
  """A model's variables as the rules of a foreign layout address them: parameters, and other collections by name.

  Raises:
    WeightsError: no rule is for a collection.
  """
  others = {name: tree for name, tree in variables.items() if name != "params"}
  paths = [path for rule in table for path in ([rule.paths] if isinstance(rule.paths, str) else rule.paths)]
  if homeless := [name for name in sorted(others) if not any(path.startswith(f"{name}/") for path in paths)]:
    raise WeightsError(f"layout {layout}", [f"has no place for the model's {', '.join(homeless)}"])
  return dict(variables.get("params", {})) | others


def likely_layout(tensors: Mapping, layouts: Mapping, layout: str | None = None) -> str:
  """For an error: the layout that most keys match, if that is another than the one given."""
  fits = {name: sum(map(bool, map(matcher(table), tensors))) for name, table in layouts.items()}
  best = max(fits, key=lambda name: fits[name])
  return f"; its keys look like {best!r}" if best != layout and fits[best] > fits.get(layout, 0) else ""


def _refit(table: np.ndarray, shape: tuple, method: str) -> np.ndarray:
  """A table [Y, X, D], or one of rows or columns, [Y, D], interpolated to another shape."""
  if table.ndim == 3:
    return np.asarray(resample_table(table, shape[:2], method))
  return np.asarray(resample_table(table[:, None], (shape[0], 1), method))[:, 0]


_RESAMPLED = re.compile(r"/(pos/(table|row|column)|relative_position_bias/table)$")
_OURS = Transform(lambda t, shape: t, lambda a: a)
_OUR_POSITIONS = Transform(lambda t, shape: t, lambda a: a, _refit)
