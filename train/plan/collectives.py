"""What the devices of a compiled program send each other, read from the text of its optimised HLO."""

import dataclasses
import math
import re
from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh

from train.plan.hlo import Instruction, Module, shapes


@dataclass(frozen=True)
class Collective:
  """A collective operation of a compiled program.

  Attributes:
    op: "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute" or "collective-broadcast".
    shapes: what one device gets of it, such as ("f32[256,512]",); several where XLA combined them.
    bytes: of the whole arrays, once: what an all-gather ends with and a reduce-scatter starts from.
    groups: the devices (positions in the mesh) that communicate; for a permutation pairs of source and target.
    count: how often it runs in one run of the program; loops counted.
    source: the operation of the traced function it was made for.
  """

  op: str
  shapes: tuple[str, ...]
  bytes: int
  groups: tuple[tuple[int, ...], ...]
  count: int = 1
  source: str = ""

  @property
  def sizes(self) -> tuple[int, ...]:
    """The number of elements of each array that one device gets."""
    return tuple(shape.elements for text in self.shapes for shape in shapes(text))

  @property
  def elements(self) -> int:
    """The number of elements of the whole arrays, as in `bytes`."""
    return sum(self.sizes) * (len(self.groups[0]) if self.op == "reduce-scatter" else 1)

  def crosses(self, mesh: Mesh, axis: str) -> bool:
    """Whether devices at different positions of a mesh axis communicate."""
    position = np.indices(mesh.devices.shape)[mesh.axis_names.index(axis)].ravel()
    return any(len({position[device] for device in group}) > 1 for group in self.groups)


OPS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
OPS += ("collective-broadcast",)


def _groups(line: str) -> tuple[tuple[int, ...], ...]:
  """The replica groups of an instruction, in each of the three ways XLA writes them."""
  if found := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}", line):
    return tuple(tuple(map(int, g.split(","))) for g in re.findall(r"\{([\d, ]+)\}", found[1]))
  if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
    shape, counted, order = ([int(i) for i in (g or "").split(",") if i] for g in found.groups())
    devices = np.arange(math.prod(counted)).reshape(counted)
    return tuple(map(tuple, devices.transpose(order or range(len(counted))).reshape(shape).tolist()))
  if found := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", line):
    axes = {name: int(size) for name, size in re.findall(r"'?([\w.]+)'?=(\d+)", found[1])}
    over = [list(axes).index(name) for name in re.findall(r"'?([\w.]+)'?", found[2])]
    devices = np.arange(math.prod(axes.values())).reshape(*axes.values())
    devices = np.moveaxis(devices, over, range(-len(over), 0))
    return tuple(map(tuple, devices.reshape(-1, math.prod(devices.shape[-len(over) :])).tolist()))
  raise ValueError(f"cannot read the replica groups of {line.strip()[:300]}")


def collectives(hlo: str) -> list[Collective]:
  """The collectives of a compiled program, `compiled.as_text()`, in its order.

  A loop's length is the one XLA knows, or the bound in its condition. One that the compiler made asynchronous and
  distributed over several fusions is one; an all-reduce that only a slice is kept of is the reduce-scatter it was.

  Raises:
    ValueError: replica groups in a notation that is not known.
  """
  module = Module(hlo)
  found: dict[tuple, Collective] = {}  # the pieces of an asynchronous collective share channel and shapes

  def walk(name: str, times: int) -> None:
    for one in module.computations[name]:
      base = one.op.removesuffix("-start")
      if base in OPS:
        made = _collective(base, one, times)
        channel = re.search(r"channel_id=(\d+)", one.line)
        if name.startswith("all-reduce-scatter"):
          # A fusion of an all-reduce and the slice that the device keeps: a TPU's reduce-scatter.
          root = next(x for x in module.computations[name] if x.root)
          made = dataclasses.replace(made, op="reduce-scatter", shapes=tuple(map(str, root.shapes)))
        key = (made.op, made.shapes, channel[1] if channel else f"{name}/{one.name}")
        if key not in found or found[key].count < times:
          found[key] = made
        continue  # what it calls only adds two numbers
      for attribute, called in one.called():
        if called in module.computations:
          walk(called, times * (module.trips(one) if attribute == "body" else 1))

  if module.entry:
    walk(module.entry, 1)
  return list(found.values())


def _collective(op: str, one: Instruction, times: int) -> Collective:
  groups, arrays = _groups(one.line), one.shapes
  if one.op != op and op != "all-reduce":
    # Starting yields (operands, results, handles); an all-reduce only its results.
    arrays = tuple(a for a in arrays if str(a) not in ("u32[]", "s32[]"))
    arrays = arrays[len(arrays) // 2 :]
  size = sum(a.bytes for a in arrays) * (len(groups[0]) if op == "reduce-scatter" else 1)
  return Collective(op, tuple(map(str, arrays)), size, groups, times, one.source)
