"""Batches of any data set, and files of images to make one of."""

import io

import numpy as np
from PIL import Image


def take(batches, count):
  """The first batches of a stream, which is closed."""
  result = [next(batches) for _ in range(count)]
  batches.close()
  return result


def assert_equal(first, second):
  """Two batches have the same arrays of the same types."""
  assert first.keys() == second.keys()
  for key in first:
    np.testing.assert_array_equal(first[key], second[key], err_msg=key)
    assert first[key].dtype == second[key].dtype


def concatenate(parts):
  """One batch of all examples of several."""
  return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def image_file(seed=0, size=(20, 24), format="PNG"):
  """The bytes of an image of random pixels."""
  file = io.BytesIO()
  Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(file, format)
  return file.getvalue()
