"""Weights files to tensors, a function for each format."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from zoo.weights.rules import WeightsError

Tensors = Mapping[str, np.ndarray]


def read_file(path: Path) -> tuple[Tensors, Mapping]:
  """The tensors of a file by their keys, and its metadata.

  Raises:
    WeightsError: the file is truncated or corrupt, of an unknown format, or needs PyTorch where that is not installed.
  """
  if path.suffix not in READERS:
    raise WeightsError(str(path), [f"unknown format {path.suffix!r}; there are {', '.join(READERS)} and directories"])
  try:
    return READERS[path.suffix](path)
  # Each library raises its own errors for a broken file.
  except (SafetensorError, zipfile.BadZipFile, pickle.UnpicklingError, OSError, RuntimeError, EOFError) as error:
    raise WeightsError(str(path), [f"cannot be read, it is truncated, corrupt or no {path.suffix}: {error}"]) from error


def read_safetensors(path: Path) -> tuple[Tensors, Mapping]:
  """A .safetensors file."""
  with safe_open(path, framework="np") as file:
    return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 (not a mapping)


def read_npz(path: Path) -> tuple[Tensors, Mapping]:
  """An .npz file without Python objects, which would run code."""
  try:
    with np.load(path, allow_pickle=False) as file:
      return dict(file), {}
  except ValueError as error:  # Python objects, or not a zip file
    raise WeightsError(str(path), [str(error)]) from error


def read_torch(path: Path) -> tuple[Tensors, Mapping]:
  """A PyTorch file: a dict of tensors, at the top or under "model" or "state_dict"."""
  try:
    import torch  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    fault = "a PyTorch file needs PyTorch: pip install torch; or convert the file to .safetensors"
    raise WeightsError(str(path), [fault]) from error
  import argparse

  # Published checkpoints keep their command line beside the weights; nothing else may be unpickled.
  with torch.serialization.safe_globals([argparse.Namespace]):
    content = torch.load(path, map_location="cpu", weights_only=True)
  for key in ("model", "state_dict"):
    content = content[key] if isinstance(content, Mapping) and isinstance(content.get(key), Mapping) else content
  if not isinstance(content, Mapping) or not all(isinstance(v, torch.Tensor) for v in content.values()):
    raise WeightsError(str(path), ["wanted a dict of tensors, or {'model': dict of tensors}"])
  # numpy has no bfloat16; float32 holds it exactly.
  return {k: (v.float() if v.dtype == torch.bfloat16 else v).numpy() for k, v in content.items()}, {}


READERS = {
  ".safetensors": read_safetensors,
  ".npz": read_npz,
  ".pt": read_torch,
  ".pth": read_torch,
  ".bin": read_torch,
}
