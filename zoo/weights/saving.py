"""`save` and `average`: models' weights to files."""

import importlib.metadata
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import numpy as safetensors

from zoo import registry
from zoo.errors import nearest
from zoo.layers.stack import unstack_params
from zoo.weights.layouts import for_layout, layouts_of, shapes_of, unrolled
from zoo.weights.rules import WeightsError, convert, write_back
from zoo.weights.sources import checkpoints_of, read


def save(path: str | Path, model_name: str, overrides: Mapping, variables: Mapping, *, layout: str = "zoo") -> None:
  """Writes a model's weights as one portable .safetensors file that `load` needs only the path of.

  The keys are our paths, as "params/encoder/block_00/attn/q/kernel", also for a scanned model. The write is atomic.

  Args:
    path: of the file; its directory is made where it is missing.
    model_name: as for `zoo.create`.
    overrides: as for `zoo.create`; kept in the file with the name.
    variables: `{"params": ...}` and the model's other collections.
    layout: "zoo", or the layout of another library, such as "huggingface" and "timm"; such a file does not specify its
      model.

  Raises:
    WeightsError: the variables are not those of this model: all faults in one error.
    ValueError: unknown model, field or layout, or the path does not end in .safetensors.
  """
  path = Path(path)
  if path.suffix != ".safetensors":
    raise ValueError(f"{path} ends in {path.suffix!r}; weights are written as .safetensors")
  model = registry.create(model_name, **overrides)
  template = unrolled(shapes_of(model))
  layouts = layouts_of(model, template)
  if layout not in layouts:
    raise ValueError(f"unknown layout {layout!r}{nearest(layout, layouts)}")
  ours: Any = flatten_dict({k: unstack_params(v) for k, v in variables.items() if v}, sep="/")
  variables = convert(ours, layouts["zoo"], template, about=f"these variables are not those of {model_name}")
  metadata = {"format": "pt"}
  if layout == "zoo":
    tensors = write_back(variables, layouts["zoo"])
    metadata = {
      "zoo_model": model_name,
      "zoo_overrides": json.dumps(dict(overrides)),
      "zoo_version": _version(),
    }
  else:
    tensors = write_back(for_layout(layout, layouts[layout], variables), layouts[layout])
  _write(path, safetensors.save(tensors, metadata))


def average(run: str | Path, path: str | Path, *, last: int) -> list[int]:
  """Writes the mean of a training run's last checkpoints as a file of weights (Vaswani et al. 2017, 6.1).

  Of a run that keeps a moving average of its parameters, it is the parameters themselves that are averaged.

  Args:
    run: its work directory.
    path: of the file, as for `save`.
    last: how many checkpoints, at least 1. Only one at a time is in memory, and the sum.

  Returns:
    the steps that the mean is of.

  Raises:
    WeightsError: there are fewer checkpoints, or one cannot be read. A ValueError.
  """
  steps = checkpoints_of(run)
  if not 1 <= last <= len(steps):
    there = f"{len(steps)} checkpoint{'s' * (len(steps) > 1)}, of steps {', '.join(d.name for d in steps)}"
    fault = f"there are {there}; wanted 1 <= last <= {len(steps)}, and last is {last}; see checkpoint.max_to_keep"
    raise WeightsError(str(run), [fault])
  sums: dict[str, np.ndarray] = {}
  source = read(steps[-1])
  for step in steps[-last:]:
    source = read(step)
    # In float64 the sum is exact, so that the mean of equal numbers is the number.
    sums = {key: sums.get(key, 0) + np.asarray(tensor, np.float64) for key, tensor in source.tensors.items()}
  variables = unflatten_dict({key: value / last for key, value in sums.items()}, sep="/")
  save(path, str(source.model), source.overrides, variables)
  return [int(step.name) for step in steps[-last:]]


def _write(path: Path, content: bytes) -> None:
  """Atomic: written to a temporary file beside it, which is then renamed."""
  path.parent.mkdir(parents=True, exist_ok=True)
  handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  try:
    with os.fdopen(handle, "wb") as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(temporary, 0o666 & ~umask)  # mkstemp's file is readable by its owner only
    os.replace(temporary, path)
  except BaseException:
    os.unlink(temporary)
    raise


def _version() -> str:
  try:
    return importlib.metadata.version("transformer-zoo")
  except importlib.metadata.PackageNotFoundError:
    return "unknown"
