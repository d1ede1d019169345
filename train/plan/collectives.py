"""What the devices of a compiled program send each other, read from the text of its optimised HLO."""

import dataclasses
import math
import re
from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh


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
    return tuple(math.prod(shape) for _, shape in map(_parse_shape, self.shapes))

  @property
  def elements(self) -> int:
    """The number of elements of the whole arrays, as in `bytes`."""
    return sum(self.sizes) * (len(self.groups[0]) if self.op == "reduce-scatter" else 1)

  def crosses(self, mesh: Mesh, axis: str) -> bool:
    """Whether devices at different positions of a mesh axis communicate."""
    position = np.indices(mesh.devices.shape)[mesh.axis_names.index(axis)].ravel()
    return any(len({position[device] for device in group}) > 1 for group in self.groups)


_OPS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
_OPS += ("collective-broadcast",)
_WIDTHS = {"pred": 8, "bf16": 16} | {f"{t}{n}": n for t in "sufc" for n in (2, 4, 8, 16, 32, 64, 128)}
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\(")
_CALLED = re.compile(r"(\w+)=(?:%([\w.-]+)|\{(%[\w.-]+(?:, ?%[\w.-]+)*)\})")
_SHAPE = re.compile(r"\b([a-z]+\d*(?:e\d\w*)?)\[([\d,]*)\]")


def _parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
  kind, _, sizes = text.rstrip("]").partition("[")
  return kind, tuple(int(s) for s in sizes.split(",") if s)


def _bytes(shape: str) -> int:
  kind, sizes = _parse_shape(shape)
  return math.prod(sizes) * (8 if kind.startswith("f8") else _WIDTHS[kind]) // 8


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
  computations: dict[str, list[str]] = {}
  lines: list[str] = []
  entry = None
  for line in hlo.splitlines():
    if header := _COMPUTATION.match(line):
      lines = computations[header[2]] = []
      entry = header[2] if header[1] else entry
    elif computations:
      lines.append(line)

  found: dict[tuple, Collective] = {}  # the pieces of an asynchronous collective share channel and shapes

  def walk(name: str, times: int) -> None:
    for line in computations[name]:
      instruction = _INSTRUCTION.match(line)
      if not instruction:
        continue
      _, result, kind, op = instruction.groups()
      base = op.removesuffix("-start")
      if base in _OPS:
        one = _collective(base, kind, line, asynchronous=op != base, times=times)
        channel = re.search(r"channel_id=(\d+)", line)
        if name.startswith("all-reduce-scatter"):
          # A fusion of an all-reduce and the slice that the device keeps: a TPU's reduce-scatter.
          root = next(filter(None, (_INSTRUCTION.match(x) for x in computations[name] if "ROOT" in x)))
          one = dataclasses.replace(one, op="reduce-scatter", shapes=_shapes(root[3]))
        key = (one.op, one.shapes, channel[1] if channel else f"{name}/{result}")
        if key not in found or found[key].count < times:
          found[key] = one
        continue  # what it calls only adds two numbers
      for attribute, called, several in _CALLED.findall(line):
        for inner in [called] if called else re.findall(r"%([\w.-]+)", several):
          if inner in computations:
            walk(inner, times * (_trips(line, computations) if attribute == "body" else 1))

  if entry:
    walk(entry, 1)
  return list(found.values())


def _shapes(kind: str) -> tuple[str, ...]:
  return tuple(f"{k}[{sizes}]" for k, sizes in _SHAPE.findall(kind))


def _collective(op: str, kind: str, line: str, asynchronous: bool, times: int) -> Collective:
  groups, shapes = _groups(line), _shapes(kind)
  if asynchronous and op != "all-reduce":
    # Starting yields (operands, results, handles); an all-reduce only its results.
    shapes = tuple(s for s in shapes if s not in ("u32[]", "s32[]"))
    shapes = shapes[len(shapes) // 2 :]
  size = sum(map(_bytes, shapes)) * (len(groups[0]) if op == "reduce-scatter" else 1)
  source = re.search(r'op_name="([^"]*)"', line)
  return Collective(op, shapes, size, groups, times, source[1] if source else "")


def _trips(line: str, computations: dict[str, list[str]]) -> int:
  if found := re.search(r'known_trip_count"?:\{"n":"(\d+)"\}', line):
    return int(found[1])
  called = re.search(r"condition=%?([\w.-]+)", line)
  condition = computations[called[1]] if called else []
  bounds = [int(n) for x in condition for n in re.findall(r"[su]32\[\]\S* constant\((\d+)\)", x)]
  return bounds[0] if len(bounds) == 1 and any("direction=LT" in x for x in condition) else 1
