"""What a config's training step costs on a TPU slice, before it is run: multiply-adds, memory a chip, collectives."""

import dataclasses
import time
from dataclasses import dataclass

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from rich.table import Table

from train import sharding
from train.experiment import Experiment
from train.plan.chips import GB
from train.plan.collectives import Collective, collectives
from train.plan.compiler import compile_for, tpu_devices
from train.plan.macs import count_macs, count_parameters
from train.plan.memory import Memory, OutOfHbm, hbm
from train.step import State
from zoo import registry


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
  """What a config's training step needs on a TPU slice.

  Attributes:
    topology: such as "v5e:2x4". chips: how many. mesh: axis -> size.
    model: its name. parameters: in all. batch_size: of all chips together.
    macs: multiply-adds of one step of the global batch in the traced program, over all chips.
    memory: of one chip.
    collectives: in one step; empty if the program did not fit.
    min_seconds: of a step, with all multiply-adds at the chips' peak.
    compile_seconds: the time of the compilation on this machine.
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
  min_seconds: float
  compile_seconds: float

  def traffic(self) -> dict[str, tuple[int, int]]:
    """Kind of collective -> how many in a step, and the bytes of their arrays in total."""
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
    memory, free = self.memory, self.memory.usable - self.memory.peak
    rows = {
      "chips": f"{self.chips}: " + " x ".join(f"{axis} {size}" for axis, size in self.mesh.items()),
      "parameters": f"{self.parameters:,}",
      "batch": f"{self.batch_size:,}",
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
    for op, (count, size) in sorted(self.traffic().items()):
      rows[op] = f"{count} a step, {size / 2**20:,.1f} MiB in total"
    if not memory.fits:
      rows["what may help"] = "more chips, parallel.fsdp, grad_accum_steps, model.remat, a smaller batch_size"
    rows["compiled in"] = f"{self.compile_seconds:.1f} s"
    for row in rows.items():
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
  macs = count_macs(step, *arguments)
  start = time.perf_counter()
  try:
    compiled = compile_for(step, *arguments)
    memory, traffic = hbm(compiled, chip), tuple(collectives(compiled.as_text() or ""))
  except OutOfHbm as error:
    memory, traffic = Memory(error.needed, error.usable), ()
  return Plan(
    topology=topology,
    chips=len(devices),
    mesh=dict(parallel.mesh.shape),
    model=options["model"]["name"],
    parameters=count_parameters(arguments[0].params),
    batch_size=experiment.batch_size,
    macs=macs,
    memory=memory,
    collectives=traffic,
    min_seconds=2 * macs / len(devices) / chip.peak_flops,
    compile_seconds=time.perf_counter() - start,
  )
