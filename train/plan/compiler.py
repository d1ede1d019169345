"""Compiles for a TPU that need not be here, by libtpu (extra [plan])."""

import importlib.util
import os
import re
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import topologies
from jax.extend import core

from train import doctor
from train.plan.chips import CHIPS, Chip
from train.plan.cycles import Cycles, count_cycles, kernel_cycles
from train.plan.hlo import Module
from train.plan.kernels import dump_schedules, grids, read_bundles
from train.plan.memory import out_of_hbm
from zoo.errors import nearest


def tpu_devices(topology: str) -> tuple[Chip, list[jax.Device]]:  # pyright: ignore[reportInvalidTypeForm]
  """The devices of a TPU slice that need not exist, to compile for.

  On a machine with a TPU call it in a process of its own, started with JAX_PLATFORMS=cpu: it configures libtpu not to
  look for the other hosts of a slice.

  Args:
    topology: chip and shape, such as "v5e:2x4" or "v5p:2x2x2".

  Returns:
    the chip, and one device a chip.

  Raises:
    ValueError: libtpu is not installed, or not in the version that JAX needs, or there is no such chip or shape.
  """
  name, _, shape = topology.partition(":")
  if name not in CHIPS:
    raise ValueError(f"unknown TPU {name!r} in {topology!r}{nearest(name, CHIPS)}")
  if not re.fullmatch(r"\d+(x\d+){1,2}", shape):
    raise ValueError(f"{topology!r} has no shape such as {name}:2x4 (v4 and v5p: {name}:2x2x1)")
  if importlib.util.find_spec("libtpu") is None:
    raise ValueError("the TPU compiler is not installed: pip install 'transformer-zoo[plan]'")
  for found in doctor.version_problems():
    if found.problem.startswith("libtpu "):
      raise ValueError(f"{found.problem}: {found.remedy}")
  # libtpu reads these when it is loaded: no metadata server, no other hosts, any known type, no lock on a chip.
  # Overwritten, because importing jax may have set its own guesses.
  os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost", TPU_ACCELERATOR_TYPE="v5litepod-8")
  os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
  dump_schedules()
  options = {"chip_config_name": CHIPS[name].config} if CHIPS[name].config else {}
  try:
    described = topologies.get_topology_desc(topology, "tpu", **options)
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(f"libtpu knows no {topology!r}: {str(error).splitlines()[0]}") from error
  return CHIPS[name], list(described.devices)


def compile_for(function: Callable, *args: Any, **jit_options: Any) -> jax.stages.Compiled:
  """Compiles a function for the devices that its arguments' shardings name.

  Args:
    function: traceable by JAX, or the result of `jax.jit`.
    *args: trees of `jax.ShapeDtypeStruct` with shardings on a mesh of `tpu_devices`.
    **jit_options: of `jax.jit`: `donate_argnums`, `out_shardings`, ...

  Raises:
    OutOfHbm: it needs more memory than a chip has.
  """
  jitted: Any = function if hasattr(function, "lower") and not jit_options else jax.jit(function, **jit_options)
  try:
    return jitted.lower(*args).compile()
  except jax.errors.JaxRuntimeError as error:
    if too_much := out_of_hbm(str(error)):
      raise too_much from error
    raise


def compile_and_count(
  function: Callable, chip: Chip, traced: core.Jaxpr, *args: Any
) -> tuple[jax.stages.Compiled, str, Cycles]:
  """`compile_for`, the program's HLO, and its predicted cycles.

  Args:
    function, *args: as of `compile_for`.
    chip: that it is compiled for.
    traced: the function as `train.plan.macs.needed_jaxpr` gives it.
  """
  read_bundles()  # those of earlier programs
  compiled = compile_for(function, *args)
  text = compiled.as_text() or ""
  module = Module(text)
  return compiled, text, count_cycles(module, chip, kernel_cycles(module, read_bundles(), grids(traced)))
