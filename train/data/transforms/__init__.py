"""An image file to a uint8 image [Y, X, C] for training or evaluation, on the host: decode, crop, resize, augment.

Two kinds of functions are named in a config with their keyword arguments:
  CROPS  (shape of the image, rng, wanted size) -> Box: which part of it becomes the example (`crops`);
  OPS    (image, rng) -> image: what is done to it after that (`operations`).
A crop is chosen before the file is decoded, so that a JPEG is never decoded larger than needed (`decoding`).
"""

import functools
from collections.abc import Callable, Mapping, Sequence

from ml_collections import ConfigDict

from train.data.transforms.crops import (
  CROPS,
  Box,
  center_crop,
  pad_crop,
  random_resized_crop,
  random_scale_crop,
  whole,
)
from train.data.transforms.decoding import (
  INTERPOLATIONS,
  RESAMPLING,
  CorruptImage,
  decode,
  decode_crop,
  decode_jpeg,
  resize,
  resize_mask,
)
from train.data.transforms.operations import OPS, RAND_AUGMENT, color_jitter, flip, rand_augment, random_erasing
from zoo.errors import check_call, nearest

__all__ = [
  "CROPS",
  "INTERPOLATIONS",
  "OPS",
  "RAND_AUGMENT",
  "RESAMPLING",
  "Box",
  "CorruptImage",
  "bind_crop",
  "bind_op",
  "center_crop",
  "color_jitter",
  "decode",
  "decode_crop",
  "decode_jpeg",
  "flip",
  "pad_crop",
  "rand_augment",
  "random_erasing",
  "random_resized_crop",
  "random_scale_crop",
  "resize",
  "resize_mask",
  "whole",
]


def bind(spec: Mapping, known: Mapping[str, Callable], given: Sequence[str], what: str) -> Callable:
  """The function that `dict(name=..., **kwargs)` means, with the keyword arguments filled in.

  Raises:
    ValueError: no name, an unknown name, or keyword arguments that the function does not take.
  """
  if not isinstance(spec, Mapping | ConfigDict):
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


bind_crop = functools.partial(bind, known=CROPS, given=("shape", "rng", "size"))
bind_op = functools.partial(bind, known=OPS, given=("image", "rng"))
