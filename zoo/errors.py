"""Helpful errors: the nearest valid name, and arguments checked against a signature before the call."""

import difflib
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any


class Unwritable(ValueError):
  """A file cannot be written: the disk is full or unavailable."""


def nearest(wrong: str, known: Iterable[str]) -> str:
  """End of an error about an unknown name: the nearest known name, if one is close, and all of them."""
  known = list(known)
  close = difflib.get_close_matches(str(wrong), known, n=1, cutoff=0.5)
  return (f"; did you mean {close[0]!r}?" if close else ".") + f" There are: {', '.join(known)}"


def check_call(
  function: Callable, kwargs: Mapping, what: str, given: Iterable[str] = (), also: Iterable[str] = ()
) -> None:
  """Checks keyword arguments against a signature.

  Args:
    function: the function.
    kwargs: its keyword arguments.
    what: its name in errors, such as "config.optimizer (adamw)".
    given: parameters that the caller provides, which `kwargs` may not have.
    also: other valid names, handled elsewhere; listed in errors.

  Raises:
    ValueError: unknown arguments (the nearest is named), missing ones, and numbers, strings and flags of another type
      than in the signature, all in one message.
  """
  parameters = {n: p for n, p in inspect.signature(function).parameters.items() if n not in given}
  faults = []
  if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
    faults += [f"{what} has no {key!r}{nearest(key, [*parameters, *also])}" for key in kwargs if key not in parameters]
  for name, parameter in parameters.items():
    variadic = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    if parameter.default is parameter.empty and not variadic and name not in kwargs:
      faults.append(f"{what} needs {name!r}")
    elif name in kwargs and (fault := type_fault(kwargs[name], parameter.annotation)):
      faults.append(f"{what}: {name} is {fault}")
  if faults:
    raise ValueError("\n".join(faults))


def field_faults(config: Any, choices: Mapping, least: Mapping, shares: Iterable[str]) -> list[str]:
  """Faults of the fields of a config, a line each.

  Args:
    config: an object with the fields.
    choices: field -> its allowed values.
    least: number -> the fields of which it is the minimum.
    shares: fields in [0, 1).
  """
  faults = [
    f"{field} is {getattr(config, field)!r}{nearest(getattr(config, field), allowed)}"
    for field, allowed in choices.items()
    if getattr(config, field) not in allowed
  ]
  for number, fields in least.items():
    faults += [
      f"{f} is {getattr(config, f)}; wanted at least {number}" for f in fields if not getattr(config, f) >= number
    ]
  faults += [f"{f} is {getattr(config, f)}; wanted 0 <= {f} < 1" for f in shares if not 0 <= getattr(config, f) < 1]
  return faults


def type_fault(value: Any, kind: Any) -> str:
  """The fault of a value for a parameter annotated `kind`; "" if there is none, and for types that are not simple."""
  fits = {
    bool: lambda v: isinstance(v, bool),
    int: lambda v: isinstance(v, int) and not isinstance(v, bool),
    float: lambda v: isinstance(v, (int, float)) and not isinstance(v, bool),
    str: lambda v: isinstance(v, str),
    tuple: lambda v: isinstance(v, (tuple, list)),
  }.get(typing.get_origin(kind) or kind)
  if fits is None or fits(value):
    return ""
  return f"{value!r} ({type(value).__name__}); wanted {getattr(kind, '__name__', kind)}"
