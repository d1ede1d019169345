"""What a model or a run costs, before it is run: multiply-adds, memory a chip and collectives, from the TPU compiler.

Needs no TPU: libtpu (extra [plan]) compiles for a described one.
"""

import dataclasses
import importlib.util
import math
import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import jax
from jax.experimental import topologies
from jax.extend import core
from jax.interpreters import partial_eval
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from rich.table import Table

import zoo
from train import sharding
from train.experiment import Program
from train.plan.collectives import Collective, collectives
from train.step import State
from zoo import compat, registry
from zoo.errors import nearest

# ---- chips


@dataclass(frozen=True)
class Chip:
  """What a chip can do.

  Attributes:
    kind: jax's `device_kind`, without "TPU ". peak_flops: bf16, a second. hbm: bytes.
    usable: bytes of HBM that the compiler gives to a program (asked of libtpu 0.0.52), the rest being the system's.
    bandwidth: of HBM, bytes a second. clock: Hz; None where it is not published.
    config: what `get_topology_desc` needs so that one device is one chip.
  """

  kind: tuple[str, ...]
  peak_flops: float
  hbm: int
  usable: int
  bandwidth: float
  clock: float | None = None
  config: str = ""


GB = 2**30  # as memory is sold, and as XLA writes "G"
CHIPS = {
  "v4": Chip(("v4",), 275e12, 32 * GB, int(30.75 * GB), 1228e9, 1.05e9, "megacore"),
  "v5e": Chip(("v5 lite", "v5e", "v5litepod"), 197e12, 16 * GB, int(15.75 * GB), 819e9, 1.5e9),
  "v5p": Chip(("v5", "v5p"), 459e12, 95 * GB, int(95.73 * GB), 2765e9, 1.75e9),
  "v6e": Chip(("v6 lite", "v6e"), 918e12, 32 * GB, int(31.24 * GB), 1640e9),
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

  What no output needs is not counted, as XLA leaves it out. A scan counts its body as often as it runs, a `cond` its
  dearest branch, rematerialisation what it computes again. Where a CPU goes a way of its own, such as a sum by a matrix
  product, the other is counted. A `while` loop, whose length nobody knows, counts its body once. The zeros that a
  strided convolution's gradient is filled up with are not counted.

  Args:
    function: traceable by JAX.
    *args: its arguments, arrays or `jax.ShapeDtypeStruct`.

  Returns:
    the exact number; FLOPs are twice as many.
  """
  jaxpr = jax.make_jaxpr(function)(*args).jaxpr
  needed, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
  return _macs(needed)


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
    platforms = params.get("branches_platforms") or ()
    return inner[platforms.index(None)] if None in platforms else max(inner)
  if name == "scan":
    return sum(inner) * params["length"]
  if name == "shard_map":  # its body is what one device does
    return sum(inner) * math.prod(params["mesh"].shape[axis] for axis in compat.manual_axes(params))
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


def describe_models(pattern: str = "*", progress: Callable[[list[str]], Iterable[str]] = iter) -> list[ModelFacts]:
  """Parameters, multiply-adds and inputs of every model whose name matches; traces only, allocates nothing.

  Args:
    pattern: of names, with * and ?.
    progress: is given all names and gives them back one by one, so that it can tell how far it is.

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
  # Scanned, a model is traced in the time of one block.
  scanned = {"scan": True} if "scan" in {f.name for f in dataclasses.fields(family.Config)} else {}
  model = zoo.create(name, **scanned)
  inputs = family.inputs(model.config, 1)
  key = jax.eval_shape(lambda: jax.random.key(0))
  rngs = {"params": key, "mask": key}
  variables = jax.eval_shape(model.init, rngs, *inputs)
  macs = count_macs(lambda v, key, *x: model.apply(v, *x, rngs={"mask": key})[0], variables, key, *inputs)
  return ModelFacts(name, count_parameters(variables.get("params", {})), macs, tuple(x.shape for x in inputs))


# ---- compiling for a TPU that is not here


class OutOfHbm(ValueError):
  """The program does not fit a chip; `needed` and `usable` are bytes."""

  def __init__(self, needed: int, usable: int):
    super().__init__(f"needs {needed / GB:.2f} GiB of HBM a chip and there are {usable / GB:.2f}")
    self.needed, self.usable = needed, usable


@dataclass(frozen=True)
class Memory:
  """Bytes of HBM on one chip; parts that are not known because the program did not fit are None.

  Attributes:
    peak: the most in use at once. usable: what a program may use.
    arguments: state and batch. outputs: the new state and the metrics, of which `aliased` overwrite arguments.
    temporaries: activations, gradients and everything between. program: the code.
  """

  peak: int
  usable: int
  arguments: int | None = None
  outputs: int | None = None
  aliased: int | None = None
  temporaries: int | None = None
  program: int | None = None

  @property
  def fits(self) -> bool:
    return self.peak <= self.usable


def tpu_devices(topology: str) -> tuple[Chip, list[jax.Device]]:
  """The devices of a TPU slice that need not exist, to compile for.

  On a machine with a TPU call it in a process of its own, started with JAX_PLATFORMS=cpu: it tells libtpu not to look
  for the rest of a slice.

  Args:
    topology: chip and shape, such as "v5e:2x4" or "v5p:2x2x2".

  Returns:
    the chip, and one device a chip.

  Raises:
    ValueError: libtpu is not installed, or there is no such chip or shape.
  """
  name, _, shape = topology.partition(":")
  if name not in CHIPS:
    raise ValueError(f"unknown TPU {name!r} in {topology!r}{nearest(name, CHIPS)}")
  if not re.fullmatch(r"\d+(x\d+){1,2}", shape):
    raise ValueError(f"{topology!r} has no shape such as {name}:2x4 (v4 and v5p: {name}:2x2x1)")
  if importlib.util.find_spec("libtpu") is None:
    raise ValueError("the TPU compiler is not installed: pip install 'transformer-zoo[plan]'")
  # Read when libtpu is loaded: no cloud to ask, no other hosts, any known type, and no chip to hold alone.
  # Overwritten, because importing jax may have left its own guesses there.
  os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost", TPU_ACCELERATOR_TYPE="v5litepod-8")
  os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
  options = {"chip_config_name": CHIPS[name].config} if CHIPS[name].config else {}
  try:
    described = topologies.get_topology_desc(topology, "tpu", **options)
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(f"libtpu knows no {topology!r}: {str(error).splitlines()[0]}") from error
  return CHIPS[name], list(described.devices)


def compile_for(function: Callable, *args, **jit_options) -> jax.stages.Compiled:
  """Compiles a function for the devices that its arguments' shardings name.

  Args:
    function: traceable by JAX, or the result of `jax.jit`.
    *args: trees of `jax.ShapeDtypeStruct` with shardings on a mesh of `tpu_devices`.
    **jit_options: of `jax.jit`: `donate_argnums`, `out_shardings`, ...

  Raises:
    OutOfHbm: it needs more memory than a chip has.
  """
  jitted = function if hasattr(function, "lower") and not jit_options else jax.jit(function, **jit_options)
  try:
    return jitted.lower(*args).compile()
  except jax.errors.JaxRuntimeError as error:
    if too_much := out_of_hbm(str(error)):
      raise too_much from error
    raise


def out_of_hbm(message: str) -> OutOfHbm | None:
  """What a compiler's error says of memory, in the wordings of libtpu 0.0.23 to 0.0.52; None if it is another error."""
  number = r"([\d.]+)([KMGT]?)"
  wordings = (
    rf"\({number}\) exceeds available HBM \({number}\)",
    rf"Used {number} of {number} hbm",
    rf"Allocation \(size={number}\) would exceed memory \(size={number}\)",
  )
  for found in filter(None, (re.search(wording, message) for wording in wordings)):
    parts = found.groups()
    needed, usable = (float(n) * 1024 ** " KMGT".index(unit or " ") for n, unit in (parts[:2], parts[2:]))
    return OutOfHbm(int(needed), int(usable))
  return None


def hbm(compiled: jax.stages.Compiled, chip: Chip) -> Memory:
  """The memory that a compiled program needs on one chip."""
  m = compiled.memory_analysis()
  return Memory(
    peak=m.peak_memory_in_bytes,
    usable=chip.usable,
    arguments=m.argument_size_in_bytes,
    outputs=m.output_size_in_bytes,
    aliased=m.alias_size_in_bytes,
    temporaries=m.temp_size_in_bytes,
    program=m.generated_code_size_in_bytes,
  )


def abstract_arguments(program: Program, mesh: Mesh) -> tuple[State, dict, jax.ShapeDtypeStruct]:
  """Shapes and shardings of what a program's step gets: state, batch and root key; nothing is allocated."""

  def place(tree, spec: PartitionSpec):
    there = NamedSharding(mesh, spec)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=there), tree)

  state = sharding.Jit(mesh, registry.family_of(program.model).LOGICAL_AXES).abstract(program.abstract_state())
  return state, place(program.abstract_batch(), sharding.BATCH), place(program.abstract_key(), PartitionSpec())


# ---- a config's run


@dataclass(frozen=True)
class Plan:
  """What a config's training step needs on a TPU slice.

  Attributes:
    topology: such as "v5e:2x4". chips: how many. mesh: axis -> size.
    model: its name. parameters: in all. batch_size: of all chips together.
    macs: multiply-adds of one step of the global batch, as the algorithm has them, over all chips.
    memory: of one chip.
    collectives: in one step; empty where the program did not fit.
    least_seconds: of a step, were all multiply-adds done at the chips' peak.
    compile_seconds: what compiling took here.
  """

  topology: str
  chips: int
  mesh: dict[str, int]
  model: str
  parameters: int
  batch_size: int
  macs: int
  memory: Memory
  collectives: tuple[Collective, ...]
  least_seconds: float
  compile_seconds: float

  def traffic(self) -> dict[str, tuple[int, int]]:
    """Kind of collective -> how many in a step, and the bytes of their arrays together."""
    result: dict[str, tuple[int, int]] = {}
    for c in self.collectives:
      count, size = result.get(c.op, (0, 0))
      result[c.op] = count + c.count, size + c.count * c.bytes
    return result

  def as_dict(self) -> dict:
    """Everything, for JSON; of the collectives the sums."""
    traffic = {op: dict(count=count, bytes=size) for op, (count, size) in self.traffic().items()}
    result = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    memory = dataclasses.asdict(self.memory) | {"fits": self.memory.fits}
    return result | {"flops": 2 * self.macs, "memory": memory, "collectives": traffic}

  def table(self) -> Table:
    """For the console."""
    table = Table(title=f"{self.model} on {self.topology}", box=None, show_header=False, title_justify="left")
    memory, spare = self.memory, self.memory.usable - self.memory.peak
    rows = {
      "chips": f"{self.chips}: " + " x ".join(f"{axis} {size}" for axis, size in self.mesh.items()),
      "parameters": f"{self.parameters:,}",
      "batch": f"{self.batch_size:,}",
      "FLOPs a step": f"{2 * self.macs / 1e12:,.3f} T, {self.least_seconds * 1e3:,.2f} ms at the chips' bf16 peak",
      "HBM a chip": f"{memory.peak / GB:.2f} of {memory.usable / GB:.2f} GiB: "
      + (f"fits, {spare / GB:.2f} to spare" if memory.fits else f"does not fit, {-spare / GB:.2f} too much"),
    }
    parts = {
      "  state and batch": memory.arguments,
      "  temporaries": memory.temporaries,
      "  new state": memory.outputs,
      "  of it in place": memory.aliased,
      "  program": memory.program,
    }
    rows |= {name: f"{size / GB:.3f} GiB" for name, size in parts.items() if size is not None}
    for op, (count, size) in sorted(self.traffic().items()):
      rows[op] = f"{count} a step, {size / 2**20:,.1f} MiB in all"
    if not memory.fits:
      rows["what may help"] = "more chips, parallel.fsdp, grad_accum_steps, model.remat, a smaller batch_size"
    rows["compiled in"] = f"{self.compile_seconds:.1f} s"
    for row in rows.items():
      table.add_row(*row)
    return table


def plan(config: ConfigDict, topology: str) -> Plan:
  """Compiles a config's real training step for a TPU slice; the data need not be there.

  Args:
    config: from `train.config.load`. `parallel` lays its mesh over the slice; a pmap is planned as the data-parallel
      program it is.
    topology: see `tpu_devices`.

  Raises:
    ValueError: no such slice, no TPU compiler, or a config that does not fit the slice.
  """
  chip, devices = tpu_devices(topology)
  sizes = {axis: config.parallel[axis] for axis in ("data", "fsdp", "tensor")}
  axes = registry.family(config.model.name).LOGICAL_AXES
  way = sharding.Jit(sharding.make_mesh(**sizes, devices=devices), axes)
  sharding.check_batch(config.batch_size, way.data_devices, config.grad_accum_steps)
  # How many steps an epoch has is the data's to know, and no matter here.
  made = Program(config, config.steps or 10**6)
  step, arguments = way.compile(made.step()), abstract_arguments(made, way.mesh)
  macs = count_macs(step, *arguments)
  start = time.perf_counter()
  try:
    program = compile_for(step, *arguments)
    memory, traffic = hbm(program, chip), tuple(collectives(program.as_text()))
  except OutOfHbm as error:
    memory, traffic = Memory(error.needed, error.usable), ()
  return Plan(
    topology=topology,
    chips=len(devices),
    mesh=dict(way.mesh.shape),
    model=config.model.name,
    parameters=count_parameters(arguments[0].params),
    batch_size=config.batch_size,
    macs=macs,
    memory=memory,
    collectives=traffic,
    least_seconds=2 * macs / len(devices) / chip.peak_flops,
    compile_seconds=time.perf_counter() - start,
  )
