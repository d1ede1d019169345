"""Augmentations: (image, rng) -> image, uint8 [Y, X, C]; and the operations of RandAugment."""

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from train.data.transforms import filters
from zoo.errors import nearest

# (image, level in [0, 1], sign, fill) -> image.
RAND_AUGMENT: dict[str, Callable[[np.ndarray, float, int, int], np.ndarray]] = {
  "auto_contrast": lambda image, level, sign, fill: filters.auto_contrast(image),
  "equalize": lambda image, level, sign, fill: filters.equalize(image),
  "invert": lambda image, level, sign, fill: filters.lookup(image, 255 - filters.VALUES),
  "posterize": lambda image, level, sign, fill: filters.lookup(
    image,
    np.arange(256) & (0xFF00 >> (4 - int(4 * level))),  # keeps 4 bits to none
  ),
  "solarize": lambda image, level, sign, fill: filters.solarize(image, 256 - int(256 * level)),
  "solarize_add": lambda image, level, sign, fill: filters.lookup(
    image, np.where(filters.VALUES < 128, filters.VALUES + int(110 * level), filters.VALUES)
  ),
  "brightness": lambda image, level, sign, fill: filters.brightness(image, 1 + sign * 0.9 * level),
  "contrast": lambda image, level, sign, fill: filters.contrast(image, 1 + sign * 0.9 * level),
  "color": lambda image, level, sign, fill: filters.color(image, 1 + sign * 0.9 * level),
  "sharpness": lambda image, level, sign, fill: filters.sharpness(image, 1 + sign * 0.9 * level),
  "rotate": lambda image, level, sign, fill: filters.rotate(image, sign * 30 * level, fill),
  "shear_x": lambda image, level, sign, fill: filters.affine(image, [[1, sign * 0.3 * level, 0], [0, 1, 0]], fill),
  "shear_y": lambda image, level, sign, fill: filters.affine(image, [[1, 0, 0], [sign * 0.3 * level, 1, 0]], fill),
  "translate_x": lambda image, level, sign, fill: filters.affine(
    image, [[1, 0, sign * 0.45 * level * image.shape[1]], [0, 1, 0]], fill
  ),
  "translate_y": lambda image, level, sign, fill: filters.affine(
    image, [[1, 0, 0], [0, 1, sign * 0.45 * level * image.shape[0]]], fill
  ),
}


def flip(image: np.ndarray, rng: np.random.Generator, *, probability: float = 0.5) -> np.ndarray:
  """Flips left and right."""
  return filters.keep_shape(cv2.flip, image, 1) if rng.random() < probability else image


def color_jitter(
  image: np.ndarray,
  rng: np.random.Generator,
  *,
  brightness: float = 0.0,
  contrast: float = 0.0,
  saturation: float = 0.0,
  hue: float = 0.0,
  probability: float = 1.0,
) -> np.ndarray:
  """Brightness, contrast, saturation and hue, each by a random amount, in random order; as in torchvision.

  Args:
    image: the image; saturation and hue leave a grey one alone.
    rng: what it draws from.
    brightness: the factor is drawn from [1 - brightness, 1 + brightness], not below 0.
    contrast: as `brightness`.
    saturation: as `brightness`.
    hue: the shift is drawn from [-hue, hue], in turns of the colour circle (0.5 is all of it).
    probability: of doing anything at all.
  """
  if rng.random() >= probability:
    return image
  for i in rng.permutation(4).tolist():
    strength = (brightness, contrast, saturation, hue)[i]
    if i < 3:
      factor = rng.uniform(max(0.0, 1 - strength), 1 + strength)
      image = (filters.brightness, filters.contrast, filters.color)[i](image, factor) if strength else image
    else:
      shift = rng.uniform(-strength, strength)
      image = filters.hue(image, shift) if strength else image
  return image


def rand_augment(
  image: np.ndarray,
  rng: np.random.Generator,
  *,
  layers: int = 2,
  magnitude: float = 9.0,
  deviation: float = 0.5,
  probability: float = 0.5,
  fill: int = 128,
) -> np.ndarray:
  """RandAugment (Cubuk et al. 2020, arXiv:1909.13719) with the fifteen operations and ranges of timm's "inc1".

  `magnitude=9, deviation=0.5` is timm's "rand-m9-mstd0.5-inc1", the recipe of DeiT, Swin and MAE's fine-tuning.
  Every operation grows with the magnitude; the geometric ones and the four enhancements are the identity at 0.

  Args:
    image: the image.
    rng: what it draws from.
    layers: how many operations are drawn, each from all.
    magnitude: from 0 to 10.
    deviation: the standard deviation of each operation's magnitude.
    probability: of doing a drawn operation.
    fill: the grey level that comes in from outside.
  """
  operations = tuple(RAND_AUGMENT.values())
  for _ in range(layers):
    operation = operations[rng.integers(len(operations))]
    if rng.random() < probability:
      level = float(np.clip(rng.normal(magnitude, deviation), 0, 10)) / 10
      sign = -1 if rng.random() < 0.5 else 1
      image = operation(image, level, sign, fill)
  return image


def random_erasing(
  image: np.ndarray,
  rng: np.random.Generator,
  *,
  probability: float = 0.25,
  area: tuple[float, float] = (0.02, 1 / 3),
  aspect: float = 0.3,
  mode: str = "pixel",
  mean: float | Sequence[float] = 0.5,
  std: float | Sequence[float] = 0.25,
) -> np.ndarray:
  """Replaces a random rectangle (Zhong et al. 2017, arXiv:1708.04896), as timm does, but before normalisation.

  Args:
    image: the image.
    rng: what it draws from.
    probability: of doing anything at all.
    area: the least and the largest part of the image's area.
    aspect: the least height / width; the largest is its inverse.
    mode: "pixel", normal noise in every value, which here ends at black and white; or "const", the mean.
    mean: of the data, per channel, in [0, 1]: what normalisation will subtract.
    std: of the data, per channel, in [0, 1]: what normalisation will divide by.
  """
  if mode not in ("pixel", "const"):
    raise ValueError(f"unknown random_erasing mode {mode!r}{nearest(mode, ['pixel', 'const'])}")
  height, width, channels = image.shape
  if rng.random() >= probability:
    return image
  for _ in range(10):
    pixels = height * width * rng.uniform(*area)
    ratio = math.exp(rng.uniform(math.log(aspect), -math.log(aspect)))
    y, x = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
    if y < height and x < width:
      top, left = rng.integers(height - y + 1), rng.integers(width - x + 1)
      value = np.broadcast_to(np.asarray(mean, np.float32), (y, x, channels))
      if mode == "pixel":
        value = value + np.asarray(std, np.float32) * rng.standard_normal((y, x, channels), np.float32)
      image = image.copy()
      image[top : top + y, left : left + x] = np.clip(value * 255 + 0.5, 0, 255)
      break
  return image


OPS = {f.__name__: f for f in (flip, color_jitter, rand_augment, random_erasing)}
