"""An image file to a uint8 image [Y, X, C] for training or evaluation: decode, cut, resize, distort; on the host.

Two kinds of functions, both named in a config with their keyword arguments:
  CROPS  (shape of the picture, rng, size wanted) -> Box: which part of the picture becomes the image;
  OPS    (image_YXC, rng) -> image_YXC: what is done to the image after that.
A crop is chosen before the file is decoded, so that a JPEG is never decoded larger than it needs to be.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from zoo.errors import check_call, nearest

# One image is one thread's work: the parallelism is over images, and OpenCV's own threads would fight with it.
cv2.setNumThreads(0)

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
INTERPOLATIONS = ("fast", *RESAMPLING)


class CorruptImage(ValueError):
  """The bytes are no image that can be decoded."""


class Box(NamedTuple):
  """A part of a picture, in its pixels. It may lie partly outside, where the picture is black."""

  top: float
  left: float
  height: float
  width: float


# Crops.


def random_resized_crop(
  shape_YX: tuple[int, int],
  rng: np.random.Generator,
  size_YX: tuple[int, int],
  *,
  area: tuple[float, float] = (0.08, 1.0),
  aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
  """A box of random area and shape, anywhere (Szegedy et al. 2015, arXiv:1409.4842, section 6).

  As torchvision does it: ten tries, then the largest central box of a permitted shape.

  Args:
    shape_YX: of the picture.
    rng: what it draws from.
    size_YX: not used, the box is stretched to it.
    area: the least and the largest part of the picture's area.
    aspect: the least and the largest width / height, drawn uniformly in its logarithm.
  """
  height, width = shape_YX
  for _ in range(10):
    pixels = height * width * rng.uniform(*area)
    shape = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
    x, y = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
    if 0 < x <= width and 0 < y <= height:
      return Box(int(rng.integers(height - y + 1)), int(rng.integers(width - x + 1)), y, x)
  x, y = min(width, round(height * aspect[1])), min(height, round(width / aspect[0]))
  return Box((height - y) // 2, (width - x) // 2, y, x)


def center_crop(
  shape_YX: tuple[int, int], rng: np.random.Generator | None, size_YX: tuple[int, int], *, fraction: float = 1.0
) -> Box:
  """The central box of the shape wanted, `fraction` of the largest one: evaluation.

  "Resize the short side to 256, cut the central 224" is fraction=0.875.
  """
  del rng
  scale = max(size_YX[0] / shape_YX[0], size_YX[1] / shape_YX[1]) / fraction
  height, width = size_YX[0] / scale, size_YX[1] / scale
  return Box((shape_YX[0] - height) / 2, (shape_YX[1] - width) / 2, height, width)


def pad_crop(shape_YX: tuple[int, int], rng: np.random.Generator, size_YX: tuple[int, int], *, padding: int = 4) -> Box:
  """The whole picture, moved by up to `padding` of its pixels each way: the crop for small images."""
  del size_YX
  top, left = rng.integers(-padding, padding, size=2, endpoint=True).tolist()
  return Box(top, left, *shape_YX)


def random_scale_crop(
  shape_YX: tuple[int, int],
  rng: np.random.Generator,
  size_YX: tuple[int, int],
  *,
  scale: tuple[float, float] = (0.5, 2.0),
) -> Box:
  """A box of the shape wanted, anywhere in the picture scaled at random: the crop of segmentation (Chen et al. 2017).

  Where the picture is smaller than the box it is anywhere in that.

  Args:
    shape_YX: of the picture.
    rng: what it draws from.
    size_YX: of the result.
    scale: the least and the largest; at 1 the picture's shorter side is the result's.
  """
  factor = rng.uniform(*scale) * max(size_YX[0] / shape_YX[0], size_YX[1] / shape_YX[1])
  sides = [max(1, round(size / factor)) for size in size_YX]
  top, left = (
    int(rng.integers(min(0, whole - side), max(0, whole - side), endpoint=True))
    for whole, side in zip(shape_YX, sides, strict=True)
  )
  return Box(top, left, *sides)


def whole(shape_YX: tuple[int, int], rng: np.random.Generator | None, size_YX: tuple[int, int]) -> Box:
  """The whole picture, stretched to the size wanted."""
  del rng, size_YX
  return Box(0, 0, *shape_YX)


CROPS = {f.__name__: f for f in (random_resized_crop, random_scale_crop, center_crop, pad_crop, whole)}


# Decoding and cutting.


def cut(
  encoded: bytes,
  crop: Callable[[tuple[int, int]], Box],
  size_YX: tuple[int, int],
  channels: int,
  interpolation: str,
) -> np.ndarray:
  """Decodes the part of a picture that a crop chooses, at the size wanted.

  Args:
    encoded: a file that OpenCV reads: JPEG, PNG, WebP, ...
    crop: the shape of the picture to the box.
    size_YX: of the result.
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
    picture_YXC = decode(encoded, channels)
    return resize(picture_YXC, crop(picture_YXC.shape[:2]), size_YX, interpolation)
  height, width = header
  box = crop((height, width))
  fast, factor = interpolation == "fast", 1
  # Only powers of two: libjpeg-turbo decodes at 7/8 slower than in full.
  while fast and factor < 8 and box.height >= 2 * factor * size_YX[0] and box.width >= 2 * factor * size_YX[1]:
    factor *= 2
  least = dict(min_height=math.ceil(height / factor), min_width=math.ceil(width / factor))
  picture_YXC = _decode_jpeg(encoded, "RGB" if channels == 3 else "GRAY", fastdct=fast, fastupsample=fast, **least)
  y, x = picture_YXC.shape[0] / height, picture_YXC.shape[1] / width
  return resize(picture_YXC, Box(box.top * y, box.left * x, box.height * y, box.width * x), size_YX, interpolation)


def _jpeg_header(encoded: bytes) -> tuple[int, int] | None:
  """Height and width; None for other files, and for JPEGs that only OpenCV can decode."""
  if encoded[:3] != b"\xff\xd8\xff":
    return None
  try:
    return simplejpeg.decode_jpeg_header(encoded)[:2]
  except ValueError:  # an uncommon subsampling of the chroma, or bytes that do not belong in a header
    return None


def _decode_jpeg(encoded: bytes, space: str, **kwargs) -> np.ndarray:
  try:
    return simplejpeg.decode_jpeg(encoded, space, **kwargs)
  except ValueError as error:
    # Some cameras and editors leave bytes behind the image's data, which harm nobody.
    if "extraneous bytes" in str(error):
      return simplejpeg.decode_jpeg(encoded, space, strict=False, **kwargs)
    raise CorruptImage(str(error)) from error


def decode(encoded: bytes, channels: int) -> np.ndarray:
  """The whole picture, uint8 [Y, X, C]; alpha is dropped, and as in TFDS and torchvision EXIF rotations ignored.

  Raises:
    CorruptImage: nothing can be decoded.
  """
  if not encoded:
    raise CorruptImage("no bytes at all")
  flags = cv2.IMREAD_COLOR_RGB if channels == 3 else cv2.IMREAD_GRAYSCALE
  picture = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
  if picture is None:
    raise CorruptImage(f"{len(encoded)} bytes, beginning with {encoded[:8]!r}, that are no image OpenCV can decode")
  return picture.reshape(*picture.shape[:2], channels)


def resize(picture_YXC: np.ndarray, box: Box, size_YX: tuple[int, int], interpolation: str) -> np.ndarray:
  """The box of a picture at the size wanted, uint8; see `cut`."""
  height, width, channels = picture_YXC.shape
  inside = box.top >= 0 and box.left >= 0 and box.top + box.height <= height and box.left + box.width <= width
  if interpolation != "fast" and inside and (box.height, box.width) != size_YX:
    picture = Image.fromarray(picture_YXC if channels == 3 else picture_YXC[..., 0])
    corners = (box.left, box.top, box.left + box.width, box.top + box.height)
    image = picture.resize(size_YX[::-1], RESAMPLING[interpolation], box=corners)
    return np.asarray(image).reshape(*size_YX, channels)
  top, left, y, x = round(box.top), round(box.left), max(1, round(box.height)), max(1, round(box.width))
  part_YXC = picture_YXC[max(0, top) : top + y, max(0, left) : left + x]
  if part_YXC.shape[:2] != (y, x):
    above, before = max(0, -top), max(0, -left)
    borders = above, y - above - part_YXC.shape[0], before, x - before - part_YXC.shape[1]
    part_YXC = cv2.copyMakeBorder(part_YXC, *borders, cv2.BORDER_CONSTANT, value=0)
  if (y, x) == size_YX:
    return np.array(part_YXC).reshape(*size_YX, channels)
  if interpolation != "fast":
    part_YXC = part_YXC.reshape(y, x, channels)
    return resize(part_YXC, Box(0, 0, y, x), size_YX, interpolation)
  shrinks = y >= 2 * size_YX[0] or x >= 2 * size_YX[1]
  how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
  return cv2.resize(part_YXC, size_YX[::-1], interpolation=how).reshape(*size_YX, channels)


def resize_mask(mask_YX: np.ndarray, box: Box, size_YX: tuple[int, int], outside: int) -> np.ndarray:
  """The box of a mask at the size wanted, each pixel as the nearest one; `outside` where there is none."""
  rows, columns = (
    np.floor(start + (np.arange(size) + 0.5) * length / size).astype(int)
    for start, length, size in zip(box[:2], box[2:], size_YX, strict=True)
  )
  inside = [(places >= 0) & (places < side) for places, side in zip((rows, columns), mask_YX.shape, strict=True)]
  found_YX = mask_YX[np.clip(rows, 0, mask_YX.shape[0] - 1)[:, None], np.clip(columns, 0, mask_YX.shape[1] - 1)]
  return np.where(inside[0][:, None] & inside[1], found_YX, np.asarray(outside, mask_YX.dtype))


# Operations on the image.


def flip(image_YXC: np.ndarray, rng: np.random.Generator, *, probability: float = 0.5) -> np.ndarray:
  """Left becomes right."""
  return _keep_shape(cv2.flip, image_YXC, 1) if rng.random() < probability else image_YXC


def color_jitter(
  image_YXC: np.ndarray,
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
    image_YXC: the image; saturation and hue leave a grey one alone.
    rng: what it draws from.
    brightness: the factor is drawn from [1 - brightness, 1 + brightness], not below 0.
    contrast: as `brightness`.
    saturation: as `brightness`.
    hue: the shift is drawn from [-hue, hue], in turns of the colour circle (0.5 is all of it).
    probability: of doing anything at all.
  """
  if rng.random() >= probability:
    return image_YXC
  for i in rng.permutation(4).tolist():
    strength = (brightness, contrast, saturation, hue)[i]
    if i < 3:
      factor = rng.uniform(max(0.0, 1 - strength), 1 + strength)
      image_YXC = (_brightness, _contrast, _color)[i](image_YXC, factor) if strength else image_YXC
    else:
      shift = rng.uniform(-strength, strength)
      image_YXC = _hue(image_YXC, shift) if strength else image_YXC
  return image_YXC


def rand_augment(
  image_YXC: np.ndarray,
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
    image_YXC: the image.
    rng: what it draws from.
    layers: how many operations are drawn, each anew from all.
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
      image_YXC = operation(image_YXC, level, sign, fill)
  return image_YXC


def random_erasing(
  image_YXC: np.ndarray,
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
    image_YXC: the image.
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
  height, width, channels = image_YXC.shape
  if rng.random() >= probability:
    return image_YXC
  for _ in range(10):
    pixels = height * width * rng.uniform(*area)
    shape = math.exp(rng.uniform(math.log(aspect), -math.log(aspect)))
    y, x = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
    if y < height and x < width:
      top, left = rng.integers(height - y + 1), rng.integers(width - x + 1)
      value = np.broadcast_to(np.asarray(mean, np.float32), (y, x, channels))
      if mode == "pixel":
        value = value + np.asarray(std, np.float32) * rng.standard_normal((y, x, channels), np.float32)
      image_YXC = image_YXC.copy()
      image_YXC[top : top + y, left : left + x] = np.clip(value * 255 + 0.5, 0, 255)
      break
  return image_YXC


OPS = {f.__name__: f for f in (flip, color_jitter, rand_augment, random_erasing)}


def bind(spec: Mapping, known: Mapping[str, Callable], given: Sequence[str], what: str) -> Callable:
  """The function that `dict(name=..., **kwargs)` means, with the keyword arguments filled in.

  Raises:
    ValueError: no name, an unknown name, or keyword arguments that the function does not take.
  """
  if not hasattr(spec, "keys"):
    raise ValueError(f"{what} is {spec!r}; wanted dict(name=..., ...) with one of {', '.join(known)}")
  kwargs = dict(spec)
  name = kwargs.pop("name", None)
  if name not in known:
    raise ValueError(f"{what}: unknown name {name!r}{nearest(str(name), known)}")
  check_call(known[name], kwargs, f"{what} ({name})", given=given)
  for key in ("area", "aspect", "scale"):
    pair = kwargs.get(key)
    if isinstance(pair, Sequence) and not (len(pair) == 2 and 0 < pair[0] <= pair[1]):
      raise ValueError(f"{what} ({name}): {key} is {pair!r}; wanted the least and the largest, both above 0")
  return functools.partial(known[name], **kwargs)


bind_crop = functools.partial(bind, known=CROPS, given=("shape_YX", "rng", "size_YX"))
bind_op = functools.partial(bind, known=OPS, given=("image_YXC", "rng"))


# What RandAugment and the colour jitter are made of.


def _keep_shape(function: Callable, image_YXC: np.ndarray, *args) -> np.ndarray:
  """Calls OpenCV, which drops a last axis of size one."""
  return function(image_YXC, *args).reshape(image_YXC.shape)


def _lookup(image_YXC: np.ndarray, table: np.ndarray) -> np.ndarray:
  """Every value through a table, [256] or one column a channel, [256, C]."""
  table = np.clip(table, 0, 255).astype(np.uint8)
  return _keep_shape(cv2.LUT, image_YXC, table if table.ndim == 1 else table.reshape(1, 256, -1))


_VALUES = np.arange(256, dtype=np.float32)


def _grey(image_YXC: np.ndarray) -> np.ndarray:
  """Luma (ITU-R 601), [Y, X, 1]."""
  if image_YXC.shape[-1] == 1:
    return image_YXC
  return cv2.cvtColor(image_YXC, cv2.COLOR_RGB2GRAY)[..., None]


def _blend(degenerate: np.ndarray, image_YXC: np.ndarray, factor: float) -> np.ndarray:
  """`degenerate` at factor 0, the image at 1, and beyond."""
  return _keep_shape(cv2.addWeighted, image_YXC, factor, degenerate.reshape(image_YXC.shape), 1 - factor, 0)


def _brightness(image_YXC: np.ndarray, factor: float) -> np.ndarray:
  return _lookup(image_YXC, _VALUES * factor)


def _contrast(image_YXC: np.ndarray, factor: float) -> np.ndarray:
  mean = int(_grey(image_YXC).mean() + 0.5)
  return _lookup(image_YXC, mean + (_VALUES - mean) * factor)


def _color(image_YXC: np.ndarray, factor: float) -> np.ndarray:
  if image_YXC.shape[-1] == 1:
    return image_YXC
  return _blend(cv2.cvtColor(_grey(image_YXC), cv2.COLOR_GRAY2RGB), image_YXC, factor)


def _hue(image_YXC: np.ndarray, turns: float) -> np.ndarray:
  if image_YXC.shape[-1] == 1:
    return image_YXC
  hsv = cv2.cvtColor(image_YXC, cv2.COLOR_RGB2HSV_FULL)
  hsv[..., 0] += np.uint8(round(turns * 256) % 256)  # wraps round, as hue does
  return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


def _sharpness(image_YXC: np.ndarray, factor: float) -> np.ndarray:
  smooth_YXC = image_YXC.copy()
  # The outermost pixels stay as they are, as in Pillow.
  smooth_YXC[1:-1, 1:-1] = _keep_shape(cv2.filter2D, image_YXC, -1, _SMOOTH)[1:-1, 1:-1]
  return _blend(smooth_YXC, image_YXC, factor)


def _auto_contrast(image_YXC: np.ndarray) -> np.ndarray:
  low, high = image_YXC.min(axis=(0, 1)).astype(np.float32), image_YXC.max(axis=(0, 1)).astype(np.float32)
  flat = high <= low
  scale = np.where(flat, 1, 255 / np.where(flat, 1, high - low))
  return _lookup(image_YXC, (_VALUES[:, None] - np.where(flat, 0, low)) * scale)


def _equalize(image_YXC: np.ndarray) -> np.ndarray:
  """Each channel's values become as equally frequent as they can (Pillow's rounding, not OpenCV's)."""
  columns = []
  for c in range(image_YXC.shape[-1]):
    counts = np.bincount(image_YXC[..., c].ravel(), minlength=256)
    step = (counts.sum() - counts[counts.nonzero()[0][-1]]) // 255
    columns.append((step // 2 + np.cumsum(counts) - counts) // step if step else _VALUES)
  return _lookup(image_YXC, np.stack(columns, axis=-1))


def _solarize(image_YXC: np.ndarray, threshold: float) -> np.ndarray:
  return _lookup(image_YXC, np.where(threshold > _VALUES, _VALUES, 255 - _VALUES))


def _affine(image_YXC: np.ndarray, matrix: list[list[float]], fill: int) -> np.ndarray:
  """`matrix` [2, 2+1] leads from a point of the result to one of the image, both from the image's centre."""
  center = np.array([(image_YXC.shape[1] - 1) / 2, (image_YXC.shape[0] - 1) / 2])
  matrix = np.array(matrix, np.float64)
  matrix[:, 2] += center - matrix[:, :2] @ center
  flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
  size = image_YXC.shape[1::-1]
  return _keep_shape(cv2.warpAffine, image_YXC, matrix, size, None, flags, cv2.BORDER_CONSTANT, (fill,) * 3)


def _rotate(image_YXC: np.ndarray, degrees: float, fill: int) -> np.ndarray:
  cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
  return _affine(image_YXC, [[cos, -sin, 0], [sin, cos, 0]], fill)


# (image, level in [0, 1], sign, fill) -> image.
RAND_AUGMENT: dict[str, Callable[[np.ndarray, float, int, int], np.ndarray]] = {
  "auto_contrast": lambda image, level, sign, fill: _auto_contrast(image),
  "equalize": lambda image, level, sign, fill: _equalize(image),
  "invert": lambda image, level, sign, fill: _lookup(image, 255 - _VALUES),
  "posterize": lambda image, level, sign, fill: _lookup(
    image,
    np.arange(256) & (0xFF00 >> (4 - int(4 * level))),  # keeps 4 bits to none
  ),
  "solarize": lambda image, level, sign, fill: _solarize(image, 256 - int(256 * level)),
  "solarize_add": lambda image, level, sign, fill: _lookup(
    image, np.where(_VALUES < 128, _VALUES + int(110 * level), _VALUES)
  ),
  "brightness": lambda image, level, sign, fill: _brightness(image, 1 + sign * 0.9 * level),
  "contrast": lambda image, level, sign, fill: _contrast(image, 1 + sign * 0.9 * level),
  "color": lambda image, level, sign, fill: _color(image, 1 + sign * 0.9 * level),
  "sharpness": lambda image, level, sign, fill: _sharpness(image, 1 + sign * 0.9 * level),
  "rotate": lambda image, level, sign, fill: _rotate(image, sign * 30 * level, fill),
  "shear_x": lambda image, level, sign, fill: _affine(image, [[1, sign * 0.3 * level, 0], [0, 1, 0]], fill),
  "shear_y": lambda image, level, sign, fill: _affine(image, [[1, 0, 0], [sign * 0.3 * level, 1, 0]], fill),
  "translate_x": lambda image, level, sign, fill: _affine(
    image, [[1, 0, sign * 0.45 * level * image.shape[1]], [0, 1, 0]], fill
  ),
  "translate_y": lambda image, level, sign, fill: _affine(
    image, [[1, 0, 0], [0, 1, sign * 0.45 * level * image.shape[0]]], fill
  ),
}
