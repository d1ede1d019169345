"""What the colour jitter and RandAugment are made of: functions of a uint8 image [Y, X, C] and a strength."""

import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np


def keep_shape(function: Callable, image: np.ndarray, *args: Any) -> np.ndarray:
  """Calls OpenCV, which drops a last axis of size one."""
  return function(image, *args).reshape(image.shape)


def lookup(image: np.ndarray, table: np.ndarray) -> np.ndarray:
  """Every value through a table, [256] or one column a channel, [256, C]."""
  table = np.clip(table, 0, 255).astype(np.uint8)
  return keep_shape(cv2.LUT, image, table if table.ndim == 1 else table.reshape(1, 256, -1))


VALUES = np.arange(256, dtype=np.float32)


def grey(image: np.ndarray) -> np.ndarray:
  """Luma (ITU-R 601), [Y, X, 1]."""
  if image.shape[-1] == 1:
    return image
  return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]


def blend(degenerate: np.ndarray, image: np.ndarray, factor: float) -> np.ndarray:
  """`degenerate` at factor 0, the image at 1, and beyond."""
  return keep_shape(cv2.addWeighted, image, factor, degenerate.reshape(image.shape), 1 - factor, 0)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
  """Multiplied by a factor."""
  return lookup(image, VALUES * factor)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
  """Away from the mean grey level by a factor."""
  mean = int(grey(image).mean() + 0.5)
  return lookup(image, mean + (VALUES - mean) * factor)


def color(image: np.ndarray, factor: float) -> np.ndarray:
  """Away from grey by a factor."""
  if image.shape[-1] == 1:
    return image
  return blend(cv2.cvtColor(grey(image), cv2.COLOR_GRAY2RGB), image, factor)


def hue(image: np.ndarray, turns: float) -> np.ndarray:
  """The hue turned by a part of the colour circle."""
  if image.shape[-1] == 1:
    return image
  hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
  hsv[..., 0] += np.uint8(round(turns * 256) % 256)  # wraps round, as hue does
  return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


SMOOTHING = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
  """Away from a smoothed image by a factor."""
  smooth = image.copy()
  # The outermost pixels are unchanged, as in Pillow.
  smooth[1:-1, 1:-1] = keep_shape(cv2.filter2D, image, -1, SMOOTHING)[1:-1, 1:-1]
  return blend(smooth, image, factor)


def auto_contrast(image: np.ndarray) -> np.ndarray:
  """Each channel stretched from its least value to its largest."""
  low, high = image.min(axis=(0, 1)).astype(np.float32), image.max(axis=(0, 1)).astype(np.float32)
  flat = high <= low
  scale = np.where(flat, 1, 255 / np.where(flat, 1, high - low))
  return lookup(image, (VALUES[:, None] - np.where(flat, 0, low)) * scale)


def equalize(image: np.ndarray) -> np.ndarray:
  """Each channel's values become as equally frequent as they can (Pillow's rounding, not OpenCV's)."""
  columns = []
  for c in range(image.shape[-1]):
    counts = np.bincount(image[..., c].ravel(), minlength=256)
    step = (counts.sum() - counts[counts.nonzero()[0][-1]]) // 255
    columns.append((step // 2 + np.cumsum(counts) - counts) // step if step else VALUES)
  return lookup(image, np.stack(columns, axis=-1))


def solarize(image: np.ndarray, threshold: float) -> np.ndarray:
  """Values from the threshold on inverted."""
  return lookup(image, np.where(threshold > VALUES, VALUES, 255 - VALUES))


def affine(image: np.ndarray, matrix: list[list[float]], fill: int) -> np.ndarray:
  """`matrix` [2, 2+1] leads from a point of the result to one of the image, both from the image's centre."""
  center = np.array([(image.shape[1] - 1) / 2, (image.shape[0] - 1) / 2])
  centered = np.array(matrix, np.float64)
  centered[:, 2] += center - centered[:, :2] @ center
  flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
  size = image.shape[1::-1]
  return keep_shape(cv2.warpAffine, image, centered, size, None, flags, cv2.BORDER_CONSTANT, (fill,) * 3)


def rotate(image: np.ndarray, degrees: float, fill: int) -> np.ndarray:
  """Turned about its centre."""
  cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
  return affine(image, [[cos, -sin, 0], [sin, cos, 0]], fill)
