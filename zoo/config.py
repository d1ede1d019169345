"""A model's config from its family, variant and overrides."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from zoo.errors import nearest, type_fault


def fields(family: Any) -> dict[str, Any]:
  """The fields of a family's `Config`, with their types."""
  return {f.name: f.type for f in dataclasses.fields(family.Config)}


def make(family: Any, name: str, overrides: Mapping):
  """The `Config` of a variant of a family.

  Args:
    family: a module of `zoo.models`.
    name: "family/variant".
    overrides: fields that differ from the variant.

  Raises:
    ValueError: unknown variant or field (the nearest is named), or a field of the wrong type.
  """
  known = fields(family)
  variant = name.partition("/")[2]
  if variant not in family.VARIANTS:
    raise ValueError(
      f"unknown model {name!r}{nearest(name, [name.partition('/')[0] + '/' + v for v in family.VARIANTS])}"
    )
  values = {}
  for key, value in overrides.items():
    if key not in known:
      raise ValueError(f"{name} has no field {key!r}{nearest(key, known)}")
    values[key] = _checked(f"{name}: {key}", value, known[key])
  return family.Config(**family.VARIANTS[variant] | values)


def _checked(what: str, value, kind):
  """`value` as `kind`: an int becomes (rows, columns), a list a tuple; nothing else is converted."""
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
