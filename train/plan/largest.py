"""The largest arrays of a training step: what to make smaller where it does not fit."""

import math
import re
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend import core

from train.plan.macs import inner_jaxprs


def largest_arrays(jaxpr: core.Jaxpr, arguments: Any, batch: int, shards: int, most: int = 10) -> list[tuple[str, int]]:
  """Names and bytes on one chip of the arguments and of what is kept for the backward pass; the largest first.

  Those of layers that repeat count together, under one name.

  Args:
    jaxpr: the traced step.
    arguments: its arguments, sharded `jax.ShapeDtypeStruct`s.
    batch: examples that are processed at once. Arrays with an axis of so many, or of the tokens of so many, are split
      over `shards` chips.
    most: arrays to return.
  """
  alike: dict[str, list[tuple[str, int]]] = {}
  for name, size in (*_arguments(arguments), *kept_for_backward(jaxpr, batch, shards)):
    alike.setdefault(re.sub(r"_\d+(?=/)", "_*", name), []).append((name, size))
  named = [
    (f"{len(arrays)} x {name}" if len(arrays) > 1 else arrays[0][0], sum(size for _, size in arrays))
    for name, arrays in alike.items()
  ]
  return sorted(named, key=lambda array: -array[1])[:most]


def _arguments(arguments: Any) -> Iterator[tuple[str, int]]:
  for path, leaf in jax.tree_util.tree_leaves_with_path(arguments):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    yield f"{name} {_text(leaf)}", math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def kept_for_backward(jaxpr: core.Jaxpr, batch: int, shards: int) -> Iterator[tuple[str, int]]:
  """What the forward pass of a traced step computes and the backward pass reads: module path, and bytes on one chip.

  The compiler may compute some of it again instead, or keep it in another form.
  """
  made: dict[core.Var, core.JaxprEqn] = {}
  read: dict[core.Var, None] = {}
  for eqn in jaxpr.eqns:
    if "transpose(" in str(eqn.source_info.name_stack):
      read |= {v: None for v in eqn.invars if not isinstance(v, core.Literal) and v in made}
    else:
      made |= dict.fromkeys(eqn.outvars, eqn)
    for inner in (j for value in eqn.params.values() for j in inner_jaxprs(value)):
      yield from kept_for_backward(inner, batch, shards)
  for v in read:
    aval: Any = v.aval
    if aval.shape:
      split = shards if any(n and n % batch == 0 for n in aval.shape[:-1] or aval.shape) else 1
      name = _path(v, made[v]) or "objective"
      yield f"{name} {_text(aval)}", math.prod(aval.shape) * aval.dtype.itemsize // split


def _text(array: Any) -> str:
  return f"{array.dtype.name}[{','.join(map(str, array.shape))}]"


def _path(variable: core.Var, eqn: core.JaxprEqn) -> str:
  """The path of the module that computes a variable, looked up inside of loops."""
  parts = [re.sub(r"^(\w+\()+|\)+$|\.step\)*$", "", part) for part in str(eqn.source_info.name_stack).split("/")]
  inner = next((j for value in eqn.params.values() for j in inner_jaxprs(value)), None)
  if inner is not None and len(inner.outvars) == len(eqn.outvars):
    made = {v: e for e in inner.eqns for v in e.outvars}
    source = inner.outvars[eqn.outvars.index(variable)]
    if source in made:
      parts += _path(source, made[source]).split("/")
  # A loop and what it repeats often have one name.
  return "/".join(part for i, part in enumerate(parts) if part and part not in parts[i - 1 : i])
