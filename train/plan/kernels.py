"""What the Pallas kernels of a compiled program cost, for which the compiler writes no estimate.

The final schedule of a kernel has a number of instruction bundles, one a cycle, for a step of its grid: bundles times
grid are its cycles, unless its bytes take longer at the bandwidth of HBM. A loop inside of a kernel counts once, so one
whose work is in such loops comes out too cheap. Schedules are dumped into a private folder (`dump_schedules`).
"""

import functools
import importlib.util
import math
import mmap
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from jax.extend import core

from train.plan.macs import inner_jaxprs

_LABEL = "final_bundles"
# A kernel by its name and the sizes of its results: one function makes a kernel for each shape.
Kernel = tuple[str, tuple[tuple[int, ...], ...]]


@functools.cache
def dump_schedules() -> Path:
  """A private folder for schedules, removed at the end of the process; call it before libtpu is loaded.

  The label keeps everything else out: all dumps of one step can take 30 GB, its final schedules some MB.
  """
  folder = tempfile.TemporaryDirectory(prefix="zoo_plan_")
  _KEPT.append(folder)
  values = dict(xla_jf_dump_to=folder.name, xla_jf_dump_llo_text="true", xla_jf_dump_llo_pass_label_regex=_LABEL)
  # An option that libtpu does not know ends the process; without them kernels are not counted.
  if _libtpu_has(values):
    options = " ".join(f"--{name}={value}" for name, value in values.items())
    os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {options}".strip()
  return Path(folder.name)


def _libtpu_has(options: Iterable[str]) -> bool:
  """Whether the installed libtpu knows all of these options, by the names in its library."""
  found = importlib.util.find_spec("libtpu")
  for folder in (found.submodule_search_locations if found else None) or ():
    library = Path(folder) / "libtpu.so"
    if library.exists():
      with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return all(content.find(name.encode()) >= 0 for name in options)
  return False


_KEPT: list[tempfile.TemporaryDirectory] = []  # until the end of the process


def read_bundles() -> dict[str, int]:
  """The bundles of each instruction compiled since the last call, by its name in the HLO; the dumps are removed."""
  found = {}
  for file in dump_schedules().glob("*"):
    name = re.fullmatch(rf"\d+-(.+)-\d+-schedule-analysis_{_LABEL}\.txt", file.name)
    count = name and re.search(r"total scheduled bundles:\s+(\d+)", file.read_text(errors="replace"))
    if name and count:
      found[name[1]] = int(count[1])
    file.unlink()
  return found


def grids(jaxpr: core.Jaxpr) -> dict[Kernel, int]:
  """The number of grid steps of each Pallas kernel in a traced function."""
  return dict(_grids(jaxpr))


def _grids(jaxpr: core.Jaxpr) -> Iterator[tuple[Kernel, int]]:
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "pallas_call":
      sizes = tuple(tuple(getattr(v.aval, "shape", ())) for v in eqn.outvars)
      yield (_name(eqn.params), sizes), math.prod(eqn.params["grid_mapping"].grid)
    else:
      for value in eqn.params.values():
        for inner in inner_jaxprs(value):
          yield from _grids(inner)


def _name(params: dict[str, Any]) -> str:
  found = params.get("name_and_src_info", params.get("name"))
  return str(getattr(found, "name", found))
