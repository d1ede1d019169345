"""Models by name: "family/variant", from the modules of `zoo/models/`."""

import fnmatch
import functools
import importlib
import pkgutil
import sys
from typing import Any

from flax import linen as nn

from zoo import config, models
from zoo.errors import nearest


@functools.cache
def _families() -> tuple[str, ...]:
  """Every module in `zoo/models/` that has variants is a family."""
  found = sorted(m.name for m in pkgutil.iter_modules(models.__path__))
  return tuple(f for f in found if hasattr(family(f), "VARIANTS"))


def family(name: str) -> Any:
  """The module of a family, by its name or that of one of its models: `VARIANTS`, `Config`, `inputs`, `Model`, ...

  Raises:
    ValueError: there is no such family; the nearest is named.
  """
  modules = [m.name for m in pkgutil.iter_modules(models.__path__)]
  if (module := name.partition("/")[0]) not in modules:
    raise ValueError(f"unknown model {name!r}{nearest(name, list_models())}")
  return importlib.import_module(f"zoo.models.{module}")


def family_of(model: nn.Module) -> Any:
  """The module that a model's class is defined in."""
  return sys.modules[type(model).__module__]


def list_models(pattern: str = "*") -> list[str]:
  """Every model, as "family/variant", that matches a shell pattern such as "vit/*16"."""
  every = [f"{f}/{v}" for f in _families() for v in family(f).VARIANTS]
  return [n for n in every if fnmatch.fnmatchcase(n, pattern)]


def create(name: str, **overrides) -> nn.Module:
  """Makes a model by its name.

  Args:
    name: one of `list_models()`.
    **overrides: fields of the family's `Config` that differ from the variant.

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
  return module.Model(config.make(module, name, overrides))
