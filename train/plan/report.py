"""What a config's training step costs on a TPU slice, before it is run: time, multiply-adds, memory, collectives."""

import dataclasses
import time
from dataclasses import dataclass

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from rich.table import Table

from train import data, sharding
from train.experiment import Experiment
from train.plan.chips import GB, Chip
from train.plan.collectives import Collective, collectives
from train.plan.compiler import compile_and_count, tpu_devices
from train.plan.cycles import Cycles
from train.plan.largest import largest_arrays
from train.plan.macs import count_macs, count_parameters, macs_of, needed_jaxpr
from train.plan.memory import Memory, OutOfHbm, hbm
from train.step import State
from zoo import registry

# Examples of a training split, for runs whose data are not here; `zoo prepare` counts any other.
EXAMPLES = {"imagenet2012": 1_281_167, "imagenet22k": 14_197_122}


def abstract_arguments(experiment: Experiment, mesh: Mesh) -> tuple[State, dict, jax.ShapeDtypeStruct]:
  """Shapes and shardings of a step's arguments: state, batch and root key; nothing is allocated."""

  def with_sharding(tree, spec: PartitionSpec):
    named = NamedSharding(mesh, spec)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=named), tree)

  axes = registry.family_of(experiment.model).LOGICAL_AXES
  state = sharding.Jit(mesh, axes).abstract(experiment.abstract_state())
  return (
    state,
    with_sharding(experiment.abstract_batch(), sharding.BATCH),
    with_sharding(experiment.abstract_key(), PartitionSpec()),
  )


@dataclass(frozen=True)
class Plan:
  """What a config's training step needs on a TPU slice. The times are the compiler's predictions (`train.plan.cycles`).

  Attributes:
    topology: such as "v5e:2x4". chip: of which it is made. chips: how many. mesh: axis -> size.
    model: its name. parameters: in all. batch_size: of all chips together. unit: what a batch counts, as "images".
    tokens: of a batch; 0 if it has none.
    macs: multiply-adds of one step of the global batch in the traced program, over all chips.
    model_macs: those without recomputation, which is what the MFU counts.
    memory: of one chip. cycles: of one step; None if the program did not fit.
    collectives: in one step; empty if the program did not fit.
    largest: arrays with their bytes on one chip, the largest first: arguments, and what is kept for the backward pass.
    steps: of the whole run; None if it is not known how many examples an epoch has.
    compile_seconds: the time of the compilation on this machine.
  """

  topology: str
  chip: Chip
  chips: int
  mesh: dict[str, int]
  model: str
  parameters: int
  batch_size: int
  unit: str
  tokens: int
  macs: int
  model_macs: int
  memory: Memory
  cycles: Cycles | None
  collectives: tuple[Collective, ...]
  largest: tuple[tuple[str, int], ...]
  steps: int | None
  compile_seconds: float

  @property
  def min_seconds(self) -> float:
    """Of a step, with all multiply-adds at the chips' peak."""
    return 2 * self.macs / self.chips / self.chip.peak_flops

  @property
  def seconds(self) -> float | None:
    """Predicted, of a step."""
    return self.cycles and self.cycles.total / self.chip.clock

  @property
  def mfu(self) -> float | None:
    """Predicted model FLOPs utilisation (Chowdhery et al. 2022, B): of the model's FLOPs, without recomputation."""
    return self.seconds and 2 * self.model_macs / self.chips / self.chip.peak_flops / self.seconds

  @property
  def rate(self) -> float | None:
    """Predicted examples a second."""
    return self.seconds and self.batch_size / self.seconds

  @property
  def hours(self) -> float | None:
    """Predicted, of the whole run: steps alone, without evaluations and checkpoints."""
    return self.seconds and self.steps and self.steps * self.seconds / 3600

  def traffic(self) -> dict[str, tuple[int, int]]:
    """Kind of collective -> how many in a step, and the bytes of their arrays in total."""
    result: dict[str, tuple[int, int]] = {}
    for c in self.collectives:
      count, size = result.get(c.op, (0, 0))
      result[c.op] = count + c.count, size + c.count * c.bytes
    return result

  def as_dict(self) -> dict:
    """Everything, for JSON; of the collectives the sums."""
    left_out = ("chip", "memory", "cycles", "collectives")
    result = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in left_out}
    result |= {name: getattr(self, name) for name in ("min_seconds", "seconds", "mfu", "rate", "hours")}
    result |= dict(flops=2 * self.macs, memory=dataclasses.asdict(self.memory) | {"fits": self.memory.fits})
    result["collectives"] = {op: dict(count=count, bytes=size) for op, (count, size) in self.traffic().items()}
    if self.cycles:
      parts = [dict(layer=key[0], direction=key[1], kind=key[2], cycles=n) for key, n in self.cycles.parts.items()]
      result["cycles"] = dataclasses.asdict(self.cycles) | {"parts": parts}
    return result

  def rows(self, price: float | None = None) -> dict[str, str]:
    """What is to be read, by its title; `price` is that of a chip and hour, in any currency."""
    memory, free = self.memory, self.memory.usable - self.memory.peak
    rows = {
      "chips": f"{self.chips}: " + " x ".join(f"{axis} {size}" for axis, size in self.mesh.items()),
      "parameters": f"{self.parameters:,}",
      "batch": f"{self.batch_size:,} {self.unit}" + (f", {self.tokens:,} tokens" if self.tokens else ""),
      "FLOPs a step": f"{2 * self.macs / 1e12:,.3f} T, {self.min_seconds * 1e3:,.2f} ms at the chips' bf16 peak",
      "HBM a chip": f"{memory.peak / GB:.2f} of {memory.usable / GB:.2f} GiB: "
      + (f"fits, {free / GB:.2f} GiB free" if memory.fits else f"does not fit, {-free / GB:.2f} GiB over"),
    }
    parts = {
      "  state and batch": memory.arguments,
      "  temporaries": memory.temporaries,
      "  new state": memory.outputs,
      "  aliased": memory.aliased,
      "  program": memory.program,
    }
    rows |= {name: f"{size / GB:.3f} GiB" for name, size in parts.items() if size is not None}
    rows |= self._time_rows(price)
    for op, (count, size) in sorted(self.traffic().items()):
      busy, waited = self.cycles.links.get(op, (0.0, 0.0)) if self.cycles else (0.0, 0.0)
      hidden = f", {max(1 - waited / busy, 0):.0%} of it beside computation" if busy else ""
      rows[op] = f"{count} a step, {size / 2**20:,.1f} MiB in total{hidden}"
    if not memory.fits:
      rows["largest arrays"] = "\n".join(f"{size / GB:.3f} GiB {name}" for name, size in self.largest)
      rows["what may help"] = "more chips, or what `--search` finds by compiling it"
    return rows | {"compiled in": f"{self.compile_seconds:.1f} s"}

  def _time_rows(self, price: float | None) -> dict[str, str]:
    """The predictions of time."""
    if not (self.cycles and self.seconds and self.rate and self.mfu):
      return {}
    speed = f"{self.rate:,.0f} {self.unit}/s"
    if self.tokens:
      speed += f", {self.tokens / self.seconds:,.0f} tokens/s"
    rows = {
      "predicted step": f"{self.seconds * 1e3:,.1f} ms ({self.cycles.total / 1e6:,.1f} Mcycles), {speed}, "
      f"MFU {self.mfu:.2f}"
    }
    for title, index in (("  by direction", 1), ("  by operation", 2)):
      rows[title] = ", ".join(f"{name} {n / self.cycles.total:.0%}" for name, n in self.cycles.by(index).items())
    rows["  waiting"] = ", ".join(
      f"{name} {n / self.cycles.total:.1%}"
      for name, n in (("copies", self.cycles.copies), ("collectives", self.cycles.collectives))
    )
    if kernels := {layer.split("/")[-1]: None for layer, _, kind in self.cycles.parts if kind == "kernel"}:
      rows["  kernels"] = ", ".join(kernels)
    if self.cycles.unknown:
      rows["  not counted"] = f"{len(self.cycles.unknown)} kernels: {', '.join(self.cycles.unknown)}"
    if self.hours is not None:
      cost = f", {price * self.hours * self.chips:,.0f} at {price:g} a chip-hour" if price else ""
      rows["predicted run"] = (
        f"{self.steps:,} steps in {self.hours:,.1f} h, {self.hours * self.chips:,.0f} chip-hours{cost}"
      )
    return rows

  def table(self, price: float | None = None) -> Table:
    """For the console."""
    table = Table(title=f"{self.model} on {self.topology}", box=None, show_header=False, title_justify="left")
    for row in self.rows(price).items():
      table.add_row(*row)
    return table


def plan(config: ConfigDict, topology: str) -> Plan:
  """Compiles a config's training step for a TPU slice; the data need not be there.

  Args:
    config: from `train.config.load`. `parallel` gives the mesh over the slice; a pmap is planned as a data-parallel
      program.
    topology: see `tpu_devices`.

  Raises:
    ValueError: no such slice, no TPU compiler, or a config that does not fit the slice.
  """
  chip, devices = tpu_devices(topology)
  options = config.to_dict()
  sizes = {axis: options["parallel"][axis] for axis in ("data", "fsdp", "tensor")}
  axes = registry.family(options["model"]["name"]).LOGICAL_AXES
  parallel = sharding.Jit(sharding.make_mesh(**sizes, devices=devices), axes)
  experiment = Experiment(config, parallel=parallel, load_data=False)
  step, arguments = experiment.parallel_step(), abstract_arguments(experiment, parallel.mesh)
  traced = needed_jaxpr(step, *arguments)
  start = time.perf_counter()
  cycles, traffic = None, ()
  try:
    compiled, text, cycles = compile_and_count(step, chip, traced, *arguments)
    memory, traffic = hbm(compiled, chip), tuple(collectives(text))
  except OutOfHbm as error:
    memory = Memory(error.needed, error.usable)
  compile_seconds = time.perf_counter() - start
  batch, at_once = arguments[1], experiment.batch_size // options["grad_accum_steps"]
  return Plan(
    topology=topology,
    chip=chip,
    chips=len(devices),
    mesh=dict(parallel.mesh.shape),
    model=options["model"]["name"],
    parameters=count_parameters(arguments[0].params),
    batch_size=experiment.batch_size,
    unit=unit(config),
    tokens=sum(leaf.size for name, leaf in batch.items() if name.endswith("_ids") and leaf.ndim > 1),
    macs=macs_of(traced),
    model_macs=_model_macs(config, parallel, macs_of(traced)),
    memory=memory,
    cycles=cycles,
    collectives=traffic,
    largest=tuple(largest_arrays(traced, dict(state=arguments[0], batch=batch), at_once, parallel.data_devices)),
    steps=_steps(options),
    compile_seconds=compile_seconds,
  )


def unit(config: ConfigDict) -> str:
  """What a batch of the config's data counts, such as "images"."""
  found = data.kind(config.data.name).unit
  return found if isinstance(found, str) else "examples"


def _model_macs(config: ConfigDict, parallel: sharding.Jit, macs: int) -> int:
  """The multiply-adds of a step that recomputes nothing."""
  if config.model.get("remat", "none") == "none":
    return macs
  plain = config.copy_and_resolve_references()
  plain.model.remat = "none"
  experiment = Experiment(plain, parallel=parallel, load_data=False)
  return count_macs(experiment.parallel_step(), *abstract_arguments(experiment, parallel.mesh))


def _steps(options: dict) -> int | None:
  """How many steps a run has, by the config or by the size of a data set that is known without having it."""
  examples = EXAMPLES.get(options["data"].get("dataset", ""))
  if options["steps"] or not examples:
    return options["steps"] or None
  return round(options["epochs"] * examples / options["batch_size"])
