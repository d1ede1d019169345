"""The HBM that a compiled program needs on one chip."""

import re
from dataclasses import dataclass
from typing import Any

import jax

from train.plan.chips import GB, Chip


class OutOfHbm(ValueError):
  """The program does not fit a chip; `needed` and `usable` are bytes."""

  def __init__(self, needed: int, usable: int) -> None:
    super().__init__(f"needs {needed / GB:.2f} GiB of HBM a chip and there are {usable / GB:.2f}")
    self.needed, self.usable = needed, usable


def out_of_hbm(message: str) -> OutOfHbm | None:
  """The memory error in a compiler's message, in the wordings of libtpu 0.0.23 to 0.0.52; None for another error."""
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


@dataclass(frozen=True)
class Memory:
  """Bytes of HBM on one chip; parts are None if the program did not fit, since they are unknown then.

  Attributes:
    peak: the most in use at once. usable: available to a program.
    arguments: state and batch. outputs: the new state and the metrics, of which `aliased` overwrite arguments.
    temporaries: activations, gradients and other intermediates. program: the code.
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


def hbm(compiled: jax.stages.Compiled, chip: Chip) -> Memory:
  """The memory that a compiled program needs on one chip."""
  m: Any = compiled.memory_analysis()
  return Memory(
    peak=m.peak_memory_in_bytes,
    usable=chip.usable,
    arguments=m.argument_size_in_bytes,
    outputs=m.output_size_in_bytes,
    aliased=m.alias_size_in_bytes,
    temporaries=m.temp_size_in_bytes,
    program=m.generated_code_size_in_bytes,
  )
