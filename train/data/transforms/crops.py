"""Crops: (shape of an image, rng, wanted size) -> the box of it that becomes the example."""

import math
from typing import NamedTuple

import numpy as np


class Box(NamedTuple):
  """A part of an image, in its pixels. It may lie partly outside, where the image is black."""

  top: float
  left: float
  height: float
  width: float


def random_resized_crop(
  shape: tuple[int, int],
  rng: np.random.Generator,
  size: tuple[int, int],
  *,
  area: tuple[float, float] = (0.08, 1.0),
  aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
  """A box of random area and shape, anywhere (Szegedy et al. 2015, arXiv:1409.4842, section 6).

  As torchvision does it: ten tries, then the largest central box of a permitted shape.

  Args:
    shape: of the image.
    rng: what it draws from.
    size: not used, the box is stretched to it.
    area: the least and the largest part of the image's area.
    aspect: the least and the largest width / height, drawn uniformly in its logarithm.
  """
  height, width = shape
  for _ in range(10):
    pixels = height * width * rng.uniform(*area)
    ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
    x, y = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
    if 0 < x <= width and 0 < y <= height:
      return Box(int(rng.integers(height - y + 1)), int(rng.integers(width - x + 1)), y, x)
  x, y = min(width, round(height * aspect[1])), min(height, round(width / aspect[0]))
  return Box((height - y) // 2, (width - x) // 2, y, x)


def center_crop(
  shape: tuple[int, int], rng: np.random.Generator | None, size: tuple[int, int], *, fraction: float = 1.0
) -> Box:
  """The central box of the shape wanted, `fraction` of the largest one: evaluation.

  "Resize the short side to 256, cut the central 224" is fraction=0.875.
  """
  del rng
  scale = max(size[0] / shape[0], size[1] / shape[1]) / fraction
  height, width = size[0] / scale, size[1] / scale
  return Box((shape[0] - height) / 2, (shape[1] - width) / 2, height, width)


def pad_crop(shape: tuple[int, int], rng: np.random.Generator, size: tuple[int, int], *, padding: int = 4) -> Box:
  """The whole image, moved by up to `padding` of its pixels each way: the crop for small images."""
  del size
  top, left = rng.integers(-padding, padding, size=2, endpoint=True).tolist()
  return Box(top, left, *shape)


def random_scale_crop(
  shape: tuple[int, int],
  rng: np.random.Generator,
  size: tuple[int, int],
  *,
  scale: tuple[float, float] = (0.5, 2.0),
) -> Box:
  """A box of the shape wanted, anywhere in the image scaled at random: the crop of segmentation (Chen et al. 2017).

  Where the image is smaller than the box it is anywhere in that.

  Args:
    shape: of the image.
    rng: what it draws from.
    size: of the result.
    scale: the least and the largest; at 1 the image's shorter side is the result's.
  """
  factor = rng.uniform(*scale) * max(size[0] / shape[0], size[1] / shape[1])
  sides = [max(1, round(length / factor)) for length in size]
  top, left = (
    int(rng.integers(min(0, whole - side), max(0, whole - side), endpoint=True))
    for whole, side in zip(shape, sides, strict=True)
  )
  return Box(top, left, *sides)


def whole(shape: tuple[int, int], rng: np.random.Generator | None, size: tuple[int, int]) -> Box:
  """The whole image, stretched to the size wanted."""
  del rng, size
  return Box(0, 0, *shape)


CROPS = {f.__name__: f for f in (random_resized_crop, random_scale_crop, center_crop, pad_crop, whole)}
