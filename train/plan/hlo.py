"""Reads the text of an optimised HLO module: computations, instructions in the order they run, loop lengths."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-<>]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\(([^)]*)")
_CALLED = re.compile(r"(\w+)=(?:%([\w.\-<>]+)|\{(%[\w.\-<>]+(?:, ?%[\w.\-<>]+)*)\})")
_SHAPE = re.compile(r"\b([a-z]+\d*(?:e\d\w*)?)\[([\d,]*)\](?:\{([^}]*)\})?")
_BITS = {"pred": 8, "bf16": 16} | {f"{kind}{n}": n for kind in "sufc" for n in (2, 4, 8, 16, 32, 64, 128)}
# The memory space of an array in a TPU's vector memory; without a space it is in HBM.
VMEM = 1


@dataclass(frozen=True)
class Shape:
  """An array of a program: element type, sizes, and the memory space of its layout (0 is HBM, `VMEM`)."""

  kind: str
  sizes: tuple[int, ...]
  space: int = 0

  @property
  def elements(self) -> int:
    """The number of elements."""
    return math.prod(self.sizes)

  @property
  def bytes(self) -> int:
    """Without the padding of tiles."""
    return self.elements * (8 if self.kind.startswith("f8") else _BITS[self.kind]) // 8

  def __str__(self) -> str:
    return f"{self.kind}[{','.join(map(str, self.sizes))}]"


def shapes(text: str) -> tuple[Shape, ...]:
  """The arrays that a type names, such as `(bf16[2,5]{1,0:T(8,128)S(1)}, u32[])`."""
  found = ((kind, sizes, re.search(r"S\((\d+)\)", layout)) for kind, sizes, layout in _SHAPE.findall(text))
  return tuple(
    Shape(kind, tuple(int(n) for n in sizes.split(",") if n), int(space[1]) if space else 0)
    for kind, sizes, space in found
  )


@dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    name: unique in the module. kind: text of the type of its result. op: such as "fusion" or "copy-start".
    operands: names. line: the whole text. root: whether its result is that of its computation.
  """

  name: str
  kind: str
  op: str
  operands: tuple[str, ...]
  line: str
  root: bool

  @property
  def shapes(self) -> tuple[Shape, ...]:
    """The arrays of its result."""
    return shapes(self.kind)

  @property
  def source(self) -> str:
    """The operation of the traced function it was made for, such as "jit(step)/encoder/attn/dot_general"; or ""."""
    found = re.search(r'op_name="([^"]*)"', self.line)
    return found[1] if found else ""

  @property
  def is_kernel(self) -> bool:
    """Whether it is a kernel of Pallas."""
    return 'custom_call_target="tpu_custom_call"' in self.line

  def called(self) -> Iterator[tuple[str, str]]:
    """Pairs of attribute and name of a computation, such as ("body", "region_1.2")."""
    for attribute, one, several in _CALLED.findall(self.line):
      for name in [one] if one else re.findall(r"%([\w.\-<>]+)", several):
        yield attribute, name


class Module:
  """Computations by their names, each a list of instructions in the order of the schedule.

  Attributes:
    computations: name -> instructions. entry: name of the one that the program runs.
  """

  def __init__(self, text: str) -> None:
    self.computations: dict[str, list[Instruction]] = {}
    self.entry = ""
    current: list[Instruction] = []
    # The programs of kernels, up to megabytes each, say nothing here; their metadata may have lines of its own.
    text = re.sub(r'"body":"[^"]*"', '"body":""', text)
    for line in re.sub(r"kernel_metadata=\{\n(.*)\n\}", r"kernel_metadata={\1}", text).splitlines():
      if header := _COMPUTATION.match(line):
        current = self.computations[header[2]] = []
        self.entry = header[2] if header[1] else self.entry
      elif found := _INSTRUCTION.match(line):
        root, name, kind, op, operands = found.groups()
        names = tuple(re.findall(r"%([\w.-]+)", operands))
        current.append(Instruction(name, kind, op, names, line, bool(root)))

  def trips(self, loop: Instruction) -> int:
    """How often the body of a `while` runs: what XLA knows, else the bound in its condition, else 1."""
    if found := re.search(r'known_trip_count"?:\{"n":"(\d+)"\}', loop.line):
      return int(found[1])
    condition = self.computations.get(dict(loop.called()).get("condition", ""), [])
    constants = [re.search(r"constant\((\d+)\)", one.line) for one in condition if re.match(r"[su]32\[\]", one.kind)]
    bounds = [int(found[1]) for found in constants if found]
    return bounds[0] if len(bounds) == 1 and any("direction=LT" in one.line for one in condition) else 1
