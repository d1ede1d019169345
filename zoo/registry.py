"""Models by name: "family/variant", from the modules of `zoo/models/`."""

import dataclasses
import fnmatch
import functools
import importlib
import pkgutil
import typing
from typing import Any

from flax import linen as nn

from zoo import models
from zoo.errors import nearest, type_fault


@functools.cache
def _families() -> tuple[str, ...]:
  """Every module in `zoo/models/` that has variants is a family."""
  found = sorted(m.name for m in pkgutil.iter_modules(models.__path__))
  return tuple(f for f in found if hasattr(family(f), "VARIANTS"))


def family(name: str) -> Any:
  """The module `zoo.models.NAME`, with its `VARIANTS`, `Config`, `inputs` and `Model`."""
  return importlib.import_module(f"zoo.models.{name.partition('/')[0]}")


def list_models(pattern: str = "*") -> list[str]:
  """Every model, as "family/variant", that matches a shell pattern such as "vit/*16"."""
  every = [f"{f}/{v}" for f in _families() for v in family(f).VARIANTS]
  return [n for n in every if fnmatch.fnmatchcase(n, pattern)]


def create(name: str, **overrides) -> nn.Module:
  """Makes a model by its name.

  Args:
    name: one of `list_models()`.
    **overrides: fields of the family's `Config` to set otherwise than the variant does.

  Returns:
    an unbound Linen module: `init(rngs, *inputs)`, `apply(variables, *inputs) -> (output, aux)`; its
    hyperparameters are `.config`.

  Raises:
    ValueError: unknown name or field (the nearest is named), or a field of the wrong type.
  """
  if name not in list_models():
    alike = list_models(name.partition("/")[0] + "/*") or list_models()
    raise ValueError(f"unknown model {name!r}{nearest(name, alike)}")
  module = family(name)
  fields = {f.name: f.type for f in dataclasses.fields(module.Config)}
  for key, value in overrides.items():
    if key not in fields:
      raise ValueError(f"{name} has no field {key!r}{nearest(key, fields)}")
    overrides[key] = _checked(f"{name}: {key}", value, fields[key])
  return module.Model(module.Config(**module.VARIANTS[name.partition("/")[2]] | overrides))


def _checked(what: str, value, kind):
  """`value` as `kind`; a number or a list becomes rows and columns, a list a tuple, nothing else is bent."""
  if kind == tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else value
    if isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(v, int) and v > 0 for v in pair):
      return tuple(pair)
    raise ValueError(f"{what} is {value!r}; wanted rows and columns, such as (224, 224)")
  if fault := type_fault(value, kind):
    raise ValueError(f"{what} is {fault}")
  if typing.get_origin(kind) is tuple:  # of any length, such as one number a stage
    faults = [fault for v in value if (fault := type_fault(v, typing.get_args(kind)[0]))]
    if faults:
      raise ValueError(f"{what} is {value!r}, with {faults[0]}")
    return tuple(value)
  return value
