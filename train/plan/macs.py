"""Counts the multiply-adds of a traced function and the parameters of a model."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval

from zoo import compat


def count_macs(function: Callable, *args: Any) -> int:
  """Multiply-adds of all matmuls and convolutions of a function, over all devices; nothing is run or allocated.

  Operations that no output depends on are not counted, as XLA removes them. A scan counts its body once for each
  iteration, a `cond` its most expensive branch, rematerialisation every recomputation. Of a platform-dependent branch
  the default is counted, not the CPU's. A `while` loop, whose length is unknown, counts its body once. The zeros that
  the gradient of a strided convolution inserts are not counted.

  Args:
    function: traceable by JAX.
    *args: its arguments, arrays or `jax.ShapeDtypeStruct`.

  Returns:
    the exact number; FLOPs are twice as many.
  """
  return macs_of(needed_jaxpr(function, *args))


def needed_jaxpr(function: Callable, *args: Any) -> core.Jaxpr:
  """The traced function without the operations that no output depends on."""
  jaxpr = jax.make_jaxpr(function)(*args).jaxpr
  return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def macs_of(jaxpr: core.Jaxpr) -> int:
  """Multiply-adds of a traced function, as `count_macs` counts them."""
  return sum(map(_equation_macs, jaxpr.eqns))


def _equation_macs(eqn: core.JaxprEqn) -> int:
  name, params = eqn.primitive.name, eqn.params
  inputs, outputs = ([_shape(v) for v in variables] for variables in (eqn.invars, eqn.outvars))
  if name == "dot_general":
    (contracted, _), _ = params["dimension_numbers"]
    return math.prod(outputs[0]) * math.prod(inputs[0][i] for i in contracted)
  if name == "conv_general_dilated":
    kernel = inputs[1]
    out_features = kernel[params["dimension_numbers"].rhs_spec[0]]
    zeros = math.prod(params["lhs_dilation"])
    return math.prod(outputs[0]) * math.prod(kernel) // out_features // zeros
  inner = [macs_of(j) for value in params.values() for j in inner_jaxprs(value)]
  if name == "cond":
    platforms = params.get("branches_platforms") or ()
    return inner[platforms.index(None)] if None in platforms else max(inner)
  if name == "scan":
    return sum(inner) * params["length"]
  if name == "shard_map":  # its body is the program of one device
    return sum(inner) * math.prod(params["mesh"].shape[axis] for axis in compat.manual_axes(params))
  if name == "pallas_call":
    return sum(inner) * math.prod(params["grid_mapping"].grid)
  return sum(inner)


def _shape(variable: Any) -> tuple[int, ...]:
  return getattr(variable.aval, "shape", ())


def inner_jaxprs(value) -> list[core.Jaxpr]:
  """The jaxprs in a primitive's parameter."""
  if isinstance(value, core.ClosedJaxpr):  # pyright: ignore[reportPrivateImportUsage]
    return [value.jaxpr]
  if isinstance(value, core.Jaxpr):
    return [value]
  if isinstance(value, (tuple, list)):
    return [j for v in value for j in inner_jaxprs(v)]
  return []


def count_parameters(params: Mapping) -> int:
  """The number of elements of a tree of arrays or shapes."""
  return sum(math.prod(p.shape) for p in jax.tree.leaves(params))
