"""Image files to uint8 images [Y, X, C]: decode, crop, resize."""

import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from train.data.transforms.crops import Box

# One image is one thread's work: the parallelism is over images, and OpenCV's own threads would fight with it.
cv2.setNumThreads(0)

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
INTERPOLATIONS = ("fast", *RESAMPLING)


class CorruptImage(ValueError):
  """The bytes are no image that can be decoded."""


def decode_crop(
  encoded: bytes,
  crop: Callable[[tuple[int, int]], Box],
  size: tuple[int, int],
  channels: int,
  interpolation: str,
) -> np.ndarray:
  """Decodes the part of an image that a crop chooses, at the size wanted.

  Args:
    encoded: a file that OpenCV reads: JPEG, PNG, WebP, ...
    crop: the shape of the image to the box.
    size: of the result.
    channels: 1 or 3.
    interpolation: "bilinear" or "bicubic" as Pillow has them, which is how published numbers are evaluated; or
      "fast": a JPEG is decoded at 1/2, 1/4 or 1/8 where the box still has all pixels wanted, with libjpeg's fast
      inverse DCT and chroma upsampling, the box moves to whole pixels of that, and the rest is bilinear between
      the four nearest pixels (the mean of all, where more than half of them would not count).

  Returns:
    uint8 [Y, X, C].

  Raises:
    CorruptImage: nothing can be decoded, or not all of it.
  """
  header = _jpeg_header(encoded)
  if header is None:
    image = decode(encoded, channels)
    return resize(image, crop(image.shape[:2]), size, interpolation)
  height, width = header
  box = crop((height, width))
  fast, factor = interpolation == "fast", 1
  # Only powers of two: libjpeg-turbo decodes at 7/8 slower than in full.
  while fast and factor < 8 and box.height >= 2 * factor * size[0] and box.width >= 2 * factor * size[1]:
    factor *= 2
  least = dict(min_height=math.ceil(height / factor), min_width=math.ceil(width / factor))
  image = decode_jpeg(encoded, "RGB" if channels == 3 else "GRAY", fastdct=fast, fastupsample=fast, **least)
  y, x = image.shape[0] / height, image.shape[1] / width
  return resize(image, Box(box.top * y, box.left * x, box.height * y, box.width * x), size, interpolation)


def _jpeg_header(encoded: bytes) -> tuple[int, int] | None:
  """Height and width; None for other files, and for JPEGs that only OpenCV can decode."""
  if encoded[:3] != b"\xff\xd8\xff":
    return None
  try:
    height, width, *_ = simplejpeg.decode_jpeg_header(encoded)
    return int(height), int(width)
  except ValueError:  # an uncommon subsampling of the chroma, or bytes that do not belong in a header
    return None


def decode_jpeg(encoded: bytes, space: str, **kwargs: Any) -> np.ndarray:
  """A JPEG by libjpeg-turbo; `space` is "RGB" or "GRAY". Raises CorruptImage."""
  try:
    return simplejpeg.decode_jpeg(encoded, space, **kwargs)
  except ValueError as error:
    # Some cameras and editors leave harmless bytes behind the image's data.
    if "extraneous bytes" in str(error):
      return simplejpeg.decode_jpeg(encoded, space, strict=False, **kwargs)
    raise CorruptImage(str(error)) from error


def decode(encoded: bytes, channels: int) -> np.ndarray:
  """The whole image, uint8 [Y, X, C]; alpha is dropped, and as in TFDS and torchvision EXIF rotations ignored.

  Raises:
    CorruptImage: nothing can be decoded.
  """
  if not encoded:
    raise CorruptImage("no bytes at all")
  flags = cv2.IMREAD_COLOR_RGB if channels == 3 else cv2.IMREAD_GRAYSCALE
  image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
  if image is None:
    raise CorruptImage(f"{len(encoded)} bytes, beginning with {encoded[:8]!r}, that are no image OpenCV can decode")
  return image.reshape(*image.shape[:2], channels)


def resize(image: np.ndarray, box: Box, size: tuple[int, int], interpolation: str) -> np.ndarray:
  """The box of an image at the size wanted, uint8; see `decode_crop`."""
  height, width, channels = image.shape
  inside = box.top >= 0 and box.left >= 0 and box.top + box.height <= height and box.left + box.width <= width
  if interpolation != "fast" and inside and (box.height, box.width) != size:
    pillow = Image.fromarray(image if channels == 3 else image[..., 0])
    corners = (box.left, box.top, box.left + box.width, box.top + box.height)
    resized = pillow.resize((size[1], size[0]), RESAMPLING[interpolation], box=corners)
    return np.asarray(resized).reshape(*size, channels)
  top, left, y, x = round(box.top), round(box.left), max(1, round(box.height)), max(1, round(box.width))
  part: Any = image[max(0, top) : top + y, max(0, left) : left + x]
  if part.shape[:2] != (y, x):
    above, before = max(0, -top), max(0, -left)
    borders = above, y - above - part.shape[0], before, x - before - part.shape[1]
    part = cv2.copyMakeBorder(part, *borders, cv2.BORDER_CONSTANT, value=0)
  if (y, x) == size:
    return np.array(part).reshape(*size, channels)
  if interpolation != "fast":
    part = part.reshape(y, x, channels)
    return resize(part, Box(0, 0, y, x), size, interpolation)
  shrinks = y >= 2 * size[0] or x >= 2 * size[1]
  how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
  return cv2.resize(part, (size[1], size[0]), interpolation=how).reshape(*size, channels)


def resize_mask(mask: np.ndarray, box: Box, size: tuple[int, int], outside: int) -> np.ndarray:
  """The box of a mask at the size wanted, each pixel as the nearest one; `outside` where there is none."""
  rows, columns = (
    np.floor(start + (np.arange(wanted) + 0.5) * length / wanted).astype(int)
    for start, length, wanted in zip(box[:2], box[2:], size, strict=True)
  )
  inside = [(positions >= 0) & (positions < side) for positions, side in zip((rows, columns), mask.shape, strict=True)]
  found = mask[np.clip(rows, 0, mask.shape[0] - 1)[:, None], np.clip(columns, 0, mask.shape[1] - 1)]
  return np.where(inside[0][:, None] & inside[1], found, np.asarray(outside, mask.dtype))
