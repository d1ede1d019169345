"""What a model or a run costs, before it is run: multiply-adds, memory a chip and collectives, from the TPU compiler.

Needs no TPU: libtpu (extra [plan]) compiles for a described one.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
from jax.extend import core

import zoo
from zoo.errors import nearest

# ---- chips


@dataclass(frozen=True)
class Chip:
  """What a chip can do.

  Attributes:
    kind: jax's `device_kind`, without "TPU ". peak_flops: bf16, a second. hbm: bytes.
    bandwidth: of HBM, bytes a second. clock: Hz; None where it is not published.
    config: what `get_topology_desc` needs so that one device is one chip.
  """

  kind: tuple[str, ...]
  peak_flops: float
  hbm: int
  bandwidth: float
  clock: float | None = None
  config: str = ""


GB = 2**30  # as HBM is sold: v5e's 16 GB are 16 * 2**30 bytes
CHIPS = {
  "v4": Chip(("v4",), 275e12, 32 * GB, 1228e9, 1.05e9, "megacore"),
  "v5e": Chip(("v5 lite", "v5e", "v5litepod"), 197e12, 16 * GB, 819e9, 1.5e9),
  "v5p": Chip(("v5", "v5p"), 459e12, 95 * GB, 2765e9, 1.75e9),
  "v6e": Chip(("v6 lite", "v6e"), 918e12, 32 * GB, 1640e9),
}


def chip(device: jax.Device) -> Chip | None:
  """The chip of a device, None if the table does not have it (every CPU and GPU)."""
  kind = device.device_kind.removeprefix("TPU ")
  return next((c for c in CHIPS.values() if kind in c.kind), None)


def peak_flops(device: jax.Device) -> float | None:
  """The bf16 peak of a device in FLOP/s, None if the table does not have it."""
  found = chip(device)
  return found and found.peak_flops


# ---- multiply-adds


def count_macs(function: Callable, *args) -> int:
  """Multiply-adds of all matmuls and convolutions of a function, over all devices; nothing is run or allocated.

  A scan counts its body as often as it runs, a `cond` its dearest branch, rematerialisation what it computes again.
  A `while` loop, whose length nobody knows, counts its body once. The zeros that a strided convolution's gradient
  is filled up with are not counted.

  Args:
    function: traceable by JAX.
    *args: its arguments, arrays or `jax.ShapeDtypeStruct`.

  Returns:
    the exact number; FLOPs are twice as many.
  """
  return _macs(jax.make_jaxpr(function)(*args).jaxpr)


def _macs(jaxpr: core.Jaxpr) -> int:
  return sum(map(_equation_macs, jaxpr.eqns))


def _equation_macs(eqn: core.JaxprEqn) -> int:
  name, params = eqn.primitive.name, eqn.params
  if name == "dot_general":
    (contracted, _), _ = params["dimension_numbers"]
    return math.prod(eqn.outvars[0].aval.shape) * math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
  if name == "conv_general_dilated":
    kernel = eqn.invars[1].aval.shape
    out_features = kernel[params["dimension_numbers"].rhs_spec[0]]
    zeros = math.prod(params["lhs_dilation"])
    return math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) // out_features // zeros
  inner = [_macs(j) for value in params.values() for j in _jaxprs(value)]
  if name == "cond":
    return max(inner)
  if name == "scan":
    return sum(inner) * params["length"]
  if name == "shard_map":  # its body is what one device does
    return sum(inner) * math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
  if name == "pallas_call":
    return sum(inner) * math.prod(params["grid_mapping"].grid)
  return sum(inner)


def _jaxprs(value) -> list[core.Jaxpr]:
  """The programs in a primitive's parameter."""
  if isinstance(value, core.ClosedJaxpr):
    return [value.jaxpr]
  if isinstance(value, core.Jaxpr):
    return [value]
  if isinstance(value, (tuple, list)):
    return [j for v in value for j in _jaxprs(v)]
  return []


def count_parameters(params) -> int:
  """Numbers in a tree of arrays or shapes."""
  return sum(math.prod(p.shape) for p in jax.tree.leaves(params))


@dataclass(frozen=True)
class ModelFacts:
  """A line of `zoo models`: `macs` are those of one forward pass of one example."""

  name: str
  parameters: int
  macs: int
  inputs: tuple[tuple[int, ...], ...]


def describe_models(pattern: str = "*") -> list[ModelFacts]:
  """Parameters, multiply-adds and inputs of every model whose name matches; traces only, allocates nothing.

  Raises:
    ValueError: no name matches; the nearest is named.
  """
  names = zoo.names(pattern)
  if not names:
    raise ValueError(f"no model matches {pattern!r}{nearest(pattern, zoo.names())}")
  return [_describe(name) for name in names]


def _describe(name: str) -> ModelFacts:
  family = zoo.family(name)
  # Scanned, a model is traced in the time of one block.
  scanned = {"scan": True} if "scan" in {f.name for f in dataclasses.fields(family.Config)} else {}
  model = zoo.create(name, **scanned)
  inputs = family.inputs(model.config, 1)
  key = jax.eval_shape(lambda: jax.random.key(0))
  rngs = {"params": key, "mask": key}
  variables = jax.eval_shape(model.init, rngs, *inputs)
  macs = count_macs(lambda v, key, *x: model.apply(v, *x, rngs={"mask": key})[0], variables, key, *inputs)
  return ModelFacts(name, count_parameters(variables["params"]), macs, tuple(x.shape for x in inputs))
