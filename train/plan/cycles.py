"""Predicted cycles of a compiled TPU program: the compiler's estimates, run through in the order of its schedule.

The compiler writes an estimate beside each operation that computes; copies and collectives have none. So a clock walks
through the schedule: an estimate advances it; an asynchronous copy runs beside the computation at the bandwidth of HBM,
one after another, and costs only what is left of it when its result is awaited; a collective takes its bytes at the
bandwidth of the links, asynchronous ones beside the computation too. A loop costs its body as often as it runs. Pallas
kernels have no estimate either: their bundles times their grid (`train.plan.kernels`).

It is a prediction, never a measurement: compare two programs by it.
"""

import collections
import dataclasses
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass

from train.plan.chips import Chip
from train.plan.collectives import OPS
from train.plan.hlo import VMEM, Instruction, Module, Shape, shapes
from train.plan.kernels import Kernel

# What JAX puts into the path of an operation beside the names of modules.
_WRAPPERS = re.compile(
  r"^(\w+\(.*\)|while|body|cond|branch_\d+_fun|closed_call|checkpoint|rematted_computation|eval_jaxpr|remat\d*|"
  r"custom_\w+_call|\w+\.step|shard_map)$"
)


_REGISTER = 4096  # bytes of a vector register, of which a cycle can load one and store another


@dataclass(frozen=True)
class Cycles:
  """Predicted cycles of one run of a program on one chip.

  Attributes:
    total: of the step. compute: of operations with an estimate.
    copies: waiting for asynchronous copies, and `hidden_copies`: of those that ran beside the computation.
    collectives: waiting for collectives, and `hidden_collectives`.
    links: kind of collective -> its cycles on the links, and those of them that the computation waits for.
    parts: (layer, direction, kind) -> cycles of computation; directions are "forward", "backward" and "update", kinds
      "matmul", "reduction", "element-wise", "layout" and "kernel".
    unknown: kernels whose schedule or grid is not known, which cost nothing here.
  """

  total: float = 0.0
  compute: float = 0.0
  copies: float = 0.0
  hidden_copies: float = 0.0
  collectives: float = 0.0
  hidden_collectives: float = 0.0
  parts: dict[tuple[str, str, str], float] = dataclasses.field(default_factory=dict)
  links: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
  unknown: tuple[str, ...] = ()

  def by(self, index: int) -> dict[str, float]:
    """Cycles of computation by layer (0), direction (1) or kind (2), the largest first."""
    result: dict[str, float] = collections.defaultdict(float)
    for key, cycles in self.parts.items():
      result[key[index]] += cycles
    return dict(sorted(result.items(), key=lambda item: -item[1]))


def layer_of(source: str) -> tuple[str, str]:
  """The layer, such as "encoder/block/attn", and the direction of an operation by its path in the traced function."""
  direction = "backward" if "transpose(" in source else "forward"
  # Brackets of wrappers may hold slashes, as in "transpose(jvp(Model))".
  names = [part for part in re.split(r"/(?![^(]*\))", source) if part and not _WRAPPERS.match(part)]
  if "jvp(" not in source:
    return "optimizer" if source else "other", "update"
  # The last is the operation itself; einsum and the compiler add names that are no layers.
  names = [name for name in names[:-1] if not re.search(r"->|[;(<]", name)]
  names = [re.sub(r"^(block|stage)s?(_\d+)?$", r"\1", name) for name in names]
  return "/".join(dict.fromkeys(names)) or "loss", direction


def _kind(one: Instruction, module: Module) -> str:
  """What an operation mostly does, by what it is fused of."""
  inside = {one.op}
  for _, called in one.called():
    inside |= {inner.op for inner in module.computations.get(called, ())}
  if inside & {"convolution", "dot"}:
    return "matmul"
  if inside & {"reduce", "reduce-window", "sort", "scatter"}:
    return "reduction"
  moves = {"copy", "transpose", "bitcast", "reshape", "slice", "dynamic-slice", "dynamic-update-slice", "pad", "fusion"}
  moves |= {"concatenate", "parameter", "constant", "broadcast", "tuple", "get-tuple-element", "convert", "iota"}
  return "layout" if inside <= moves else "element-wise"


class _Clock:
  """The state of the walk: the time, when copies and links are free again, and what is under way."""

  def __init__(self, module: Module, hbm: float, links: float, kernels: Mapping[str, float]) -> None:
    self.module, self.kernels = module, kernels
    self.hbm, self.links = hbm, links  # bytes a cycle; copies queue for the one, collectives for the other
    self.now = 0.0
    self.free = {"copies": 0.0, "collectives": 0.0}
    self.pending: dict[str, tuple[str, float, float]] = {}
    self.sums: dict[str, float] = collections.defaultdict(float)
    self.parts: dict[tuple[str, str, str], float] = collections.defaultdict(float)
    self.links_of: dict[str, tuple[float, float]] = {}
    self.unknown: dict[str, None] = {}

  def run(self, name: str, times: int = 1) -> None:
    """Walks through a computation once; what it costs counts `times`."""
    kinds = {one.name: one.kind for one in self.module.computations.get(name, ())}

    def arrays(one: Instruction) -> list[Shape]:
      """What it takes and what it makes."""
      return [shape for kind in (one.kind, *(kinds.get(other, "") for other in one.operands)) for shape in shapes(kind)]

    for one in self.module.computations.get(name, ()):
      base = re.sub(r"-(start|done)$", "", one.op)
      estimate = re.search(r'"estimated_cycles":"(\d+)"', one.line)
      if one.op == "while":
        body, trips, start = dict(one.called())["body"], self.module.trips(one), self.now
        self.run(body, times * trips)
        self.now = start + (self.now - start) * trips
      elif one.op.endswith("-done"):
        self.wait(one.operands[0], times)
      elif base in OPS:
        self.begin(one, base, self.collective(base, one), times)
      elif one.op in ("copy-start", "slice-start", "dynamic-slice-start", "dynamic-update-slice-start"):
        self.begin(one, "copies", max(s.bytes for s in one.shapes[-2:]) / self.hbm, times)
      elif one.op == "copy" and all(shape.space == VMEM for shape in arrays(one)):
        # The estimate is that of a copy in HBM.
        self.compute(one, sum(shape.bytes for shape in one.shapes) / _REGISTER, "layout", times)
      elif estimate:
        self.compute(one, int(estimate[1]), _kind(one, self.module), times)
      elif one.op in ("call", "async-start"):
        for _, called in one.called():
          self.run(called, times)
      elif one.op == "conditional":
        self.branches(one, times)
      elif one.is_kernel and one.name in self.kernels:
        moved = sum(shape.bytes for shape in arrays(one) if shape.space != VMEM)
        self.compute(one, max(self.kernels[one.name], moved / self.hbm), "kernel", times)
      elif one.is_kernel:
        self.unknown[one.name] = None

  def compute(self, one: Instruction, cycles: float, kind: str, times: int) -> None:
    """Advances the clock by what computes."""
    self.now += cycles
    self.sums["compute"] += cycles * times
    self.parts[(*layer_of(one.source), kind)] += cycles * times

  def branches(self, one: Instruction, times: int) -> None:
    """The most expensive branch of a conditional."""
    costs = []
    for attribute, called in one.called():
      if "computation" in attribute:
        other = _Clock(self.module, self.hbm, self.links, self.kernels)
        other.run(called)
        costs.append((other.now, called))
    if costs:
      self.run(max(costs)[1], times)

  def begin(self, one: Instruction, kind: str, cycles: float, times: int) -> None:
    """Puts a transfer, "copies" or a collective, behind its like; one that is not asynchronous is awaited at once."""
    way = "copies" if kind == "copies" else "collectives"
    self.free[way] = max(self.now, self.free[way]) + cycles
    self.pending[one.name] = kind, cycles, self.free[way]
    if not one.op.endswith("-start"):
      self.wait(one.name, times)

  def wait(self, name: str, times: int) -> None:
    """Awaits the end of a transfer."""
    if name not in self.pending:  # what an asynchronous call has computed
      return
    kind, cycles, finish = self.pending.pop(name)
    way = "copies" if kind == "copies" else "collectives"
    waited = max(0.0, finish - self.now)
    self.now += waited
    self.sums[way] += waited * times
    self.sums[f"hidden_{way}"] += max(0.0, cycles - waited) * times
    if way == "collectives":
      before = self.links_of.get(kind, (0.0, 0.0))
      self.links_of[kind] = before[0] + cycles * times, before[1] + waited * times

  def collective(self, op: str, one: Instruction) -> float:
    """Of a ring over all links of a chip: an all-reduce sends its bytes twice, the others once."""
    size = sum(s.bytes for s in one.shapes) / (2 if one.op.endswith("-start") and op != "all-reduce" else 1)
    return (2 if op == "all-reduce" else 1) * size / self.links


def kernel_cycles(module: Module, bundles: Mapping[str, int], grids: Mapping[Kernel, int]) -> dict[str, float]:
  """Cycles of the Pallas kernels of a program, by the names of their instructions.

  Args:
    module: the compiled program.
    bundles: of one step of the grid, by the name of the instruction (`kernels.read_bundles`).
    grids: of the traced function (`kernels.grids`).
  """
  # ".../short_attention/pallas_call", or ".../jvp(short_attention)/..." where the call itself is differentiated.
  made = {
    one.name: (re.sub(r"^(\w+\()+|\)+$", "", one.source.split("/")[-2:][0]), tuple(s.sizes for s in one.shapes))
    for one in itertools.chain(*module.computations.values())
    if one.is_kernel
  }
  # Of equal kernels the compiler schedules one.
  scheduled = {kernel: bundles[name] for name, kernel in made.items() if name in bundles}
  counts = {name: bundles.get(name, scheduled.get(kernel)) for name, kernel in made.items()}
  return {name: float(grids[made[name]] * n) for name, n in counts.items() if n and made[name] in grids}


def count_cycles(module: Module, chip: Chip, kernels: Mapping[str, float] | None = None) -> Cycles:
  """The predicted cycles of a compiled program on a chip; `kernels` from `kernel_cycles`."""
  clock = _Clock(module, chip.bandwidth / chip.clock, chip.links / chip.clock, kernels or {})
  clock.run(module.entry)
  sums = {name: float(clock.sums[name]) for name in ("compute", "copies", "hidden_copies")}
  sums |= {name: float(clock.sums[name]) for name in ("collectives", "hidden_collectives")}
  total = sums["compute"] + sums["copies"] + sums["collectives"]
  return Cycles(total, **sums, parts=dict(clock.parts), links=clock.links_of, unknown=tuple(clock.unknown))
