"""Where weights come from: files, Hugging Face directories and training runs; `read(path)` returns a `Source`."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from zoo.errors import nearest
from zoo.layers.stack import unstack_params
from zoo.weights.formats import read_file
from zoo.weights.rules import WeightsError

HUGGINGFACE_FILES = (
  "model.safetensors",
  "model.safetensors.index.json",
  "pytorch_model.bin",
  "pytorch_model.bin.index.json",
)


class Source(NamedTuple):
  """Contents of a file or directory.

  Attributes:
    tensors: by their keys.
    layout: layout of the keys, "zoo" or "huggingface", where it is specified.
    model, overrides: arguments of `zoo.create`, where they are specified.
    config: the `config.json` of a Hugging Face directory.
  """

  tensors: Mapping[str, Any]
  layout: str | None = None
  model: str | None = None
  overrides: Mapping = {}
  config: Any = None


def check_exists(path: str | Path, advice: str = "") -> None:
  """Raises WeightsError, with what is beside it and an advice, where there is no such file or directory."""
  path = Path(path)
  if not path.exists():
    beside = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
    raise WeightsError(str(path), [f"no such file or directory{nearest(path.name, beside) if beside else ''}{advice}"])


def read(path: str | Path, average: bool = False) -> Source:
  """Reads a weights file (.safetensors, .npz, .pt, .pth, .bin), a Hugging Face directory or a training run.

  Args:
    path: the file or directory.
    average: read a run's moving average instead of its last parameters.

  Raises:
    WeightsError: it does not exist, is truncated or corrupt (naming the file), of an unknown format, or needs
      PyTorch where that is not installed.
  """
  path = Path(path)
  check_exists(path)
  if average and path.is_file():
    raise WeightsError(str(path), ["average=True reads a run's moving average; a file holds one set of weights"])
  if path.is_dir():
    # A work directory has a config.json too, that of its training.
    of_training = (path / "checkpoints").is_dir() or not (path / "config.json").exists()
    return read_run(path, average) if of_training else _huggingface(path)
  tensors, metadata = read_file(path)
  if "zoo_model" not in metadata:
    return Source(tensors)
  return Source(tensors, "zoo", metadata["zoo_model"], json.loads(metadata["zoo_overrides"]))


def _huggingface(directory: Path) -> Source:
  """`config.json` and the weights, in one file or several."""
  found = [directory / name for name in HUGGINGFACE_FILES if (directory / name).exists()]
  if not found:
    raise WeightsError(str(directory), [f"has config.json but none of {', '.join(HUGGINGFACE_FILES)}"])
  try:
    config = json.loads((directory / "config.json").read_text())
    files = [found[0]]
    if found[0].suffix == ".json":
      files = [directory / name for name in sorted(set(json.loads(found[0].read_text())["weight_map"].values()))]
  except (json.JSONDecodeError, KeyError) as error:
    raise WeightsError(str(directory), [f"config.json or the index is truncated or corrupt: {error}"]) from error
  tensors = {key: tensor for file in files for key, tensor in read_file(file)[0].items()}
  return Source(tensors, "huggingface", config=config)


def checkpoints_of(directory: str | Path) -> list[Path]:
  """The checkpoints of a training run, by its work directory or the directory of its checkpoints; the oldest first.

  Raises:
    WeightsError: there is none.
  """
  directory = Path(directory).resolve()
  parent = directory / "checkpoints" if (directory / "checkpoints").is_dir() else directory
  steps = [d for d in parent.iterdir() if d.name.isdigit() and (d / "state").is_dir()] if parent.is_dir() else []
  if not steps:
    raise WeightsError(str(directory), ["neither a Hugging Face directory (config.json) nor a run with checkpoints"])
  return sorted(steps, key=lambda d: int(d.name))


def read_run(directory: str | Path, average: bool = False) -> Source:
  """The newest checkpoint of a training run, or the one named.

  Args:
    directory: a work directory (with `checkpoints/`), a directory of checkpoints, or one checkpoint. A checkpoint
      has the items `state`, with `params`, `model_state` and `ema_params`, and `meta`, a JSON with `model`: its
      name and overrides, either at the top or in `config`.
    average: take `ema_params` for the parameters.

  Raises:
    WeightsError: there is no checkpoint, it is damaged, or the run kept no average.
  """
  if not (step := Path(directory).resolve()).joinpath("state").is_dir():
    step = checkpoints_of(directory)[-1]
  meta, state = _restore(step, average)
  model = dict(meta["model"] if "model" in meta else meta["config"]["model"])
  variables = {"params": state["ema_params" if average else "params"], **(state["model_state"] or {})}
  tensors = flatten_dict({k: unstack_params(v) for k, v in variables.items()}, sep="/")
  return Source(dict(tensors), "zoo", model.pop("name"), model)


def _restore(step: Path, average: bool) -> tuple[dict, dict]:
  """The metadata of a checkpoint, and its parameters (or their average) and variables as numpy arrays."""
  try:
    import orbax.checkpoint as ocp  # an optional dependency, and slow to import
  except ImportError as error:
    fault = "the checkpoint of a run needs Orbax: pip install 'transformer-zoo[train]'"
    raise WeightsError(str(step), [fault]) from error

  logger = logging.getLogger("absl")
  level = logger.level
  logger.setLevel(logging.ERROR)  # Orbax warns about files that its own managers did not write
  try:
    meta = json.loads((step / "meta" / "metadata").read_text())
    with ocp.PyTreeCheckpointer() as checkpointer:
      tree = checkpointer.metadata(step / "state").item_metadata.tree
      wanted = {
        "params": tree["ema_params" if average else "params"] or {},
        "model_state": tree.get("model_state") or {},
      }
      if average and not wanted["params"]:
        raise WeightsError(str(step), ["the run kept no moving average; leave average out"])
      if average:
        wanted["ema_params"] = wanted.pop("params")
      # As numpy arrays: the devices of the run need not be here.
      as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
      return meta, checkpointer.restore(
        step / "state", args=ocp.args.PyTreeRestore(item=wanted, restore_args=as_numpy, partial_restore=True)
      )
  except WeightsError:
    raise
  except Exception as error:  # Orbax and its stores raise many kinds
    raise WeightsError(str(step), [f"the checkpoint is truncated or corrupt: {error}"]) from error
  finally:
    logger.setLevel(level)
