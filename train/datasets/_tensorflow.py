"""What TFDS's own builders of image sets ask of TensorFlow, without TensorFlow: reading files and encoding images."""

import contextlib
import functools
import glob
import importlib.util
import io
import os
import types
from collections.abc import Iterator
from typing import IO

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.features import image_feature
from tensorflow_datasets.core.utils import lazy_imports_utils


def _reencode(encoded: bytes, quality: int = 100) -> bytes:
  """An image file as an RGB JPEG."""
  file = io.BytesIO()
  Image.open(io.BytesIO(encoded)).convert("RGB").save(file, "JPEG", quality=quality)
  return file.getvalue()


def _encode(encoder: image_feature._ImageEncoder, image: np.ndarray) -> bytes:
  """An array as a file, with the settings of TensorFlow's encoders."""
  file = io.BytesIO()
  image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
  image.save(file, encoder.encoding_format.upper(), **(dict(quality=95) if encoder.encoding_format == "jpeg" else {}))
  return file.getvalue()


def _open(path: str, mode: str = "r") -> IO:
  return open(path, mode)


GFILE = types.SimpleNamespace(
  GFile=_open,
  exists=os.path.exists,
  isdir=os.path.isdir,
  listdir=os.listdir,
  makedirs=functools.partial(os.makedirs, exist_ok=True),
  glob=glob.glob,
  walk=os.walk,
)


@contextlib.contextmanager
def stand_in() -> Iterator[None]:
  """Within it, builders find these functions in place of TensorFlow's; nothing changes where that is installed.

  Everything else of TensorFlow remains an ImportError.
  """
  if importlib.util.find_spec("tensorflow") is not None:
    yield
    return
  # TFDS imports TensorFlow at the first access to a name of it that is not there yet.
  lazy = vars(lazy_imports_utils.tensorflow)
  before = dict(lazy)
  with contextlib.ExitStack() as stack:
    stack.callback(lambda: (lazy.clear(), lazy.update(before)))
    lazy["io"] = types.SimpleNamespace(gfile=GFILE)
    stack.enter_context(_replaced(image_feature._ImageEncoder, "_encode_image", _encode))
    for name in ("png_to_jpeg", "jpeg_cmyk_to_rgb"):
      stack.enter_context(_replaced(tfds.core.utils, name, _reencode))
    yield


@contextlib.contextmanager
def _replaced(owner, name: str, value) -> Iterator[None]:
  """Within it, an attribute of a class or module has another value."""
  before = vars(owner)[name]
  setattr(owner, name, value)
  try:
    yield
  finally:
    setattr(owner, name, before)
