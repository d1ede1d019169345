"""Images with one label each, to batches of uint8 images [B, Y, X, C] and labels.

A batch (`train.data.base`) has "image" uint8 [B, Y, X, C], normalised only on the device, and "label" int32 [B];
"valid" is False for corrupt images too, where these are skipped.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tensorflow_datasets as tfds

from train.data import transforms
from train.data.array_record import Records, open_builder
from train.data.base import Dataset
from train.data.pipeline import Batch
from zoo.errors import nearest
from zoo.layers.patch_embed import check_patches

# A split of images of one size is kept decoded in memory if it is not larger.
CACHE_BYTES = 2**30


class Source(Records):
  """A split of an image classification set: `source[i]` is (encoded image, label).

  Attributes: `num_classes`, `class_names`, `shape` (None where it varies).
  """

  def __init__(self, dataset: str, split: str, data_dir: str | None, builder: tfds.core.DatasetBuilder) -> None:
    features, keys = dict(builder.info.features), builder.info.supervised_keys
    self._image, self._label = keys if keys and len(keys) == 2 else ("image", "label")
    image, label = features.get(self._image), features.get(self._label)
    if not (isinstance(image, tfds.features.Image) and isinstance(label, tfds.features.ClassLabel)):
      raise ValueError(f"{dataset!r} has no images with one label each: its features are {features}")
    self.shape, self.num_classes, self.class_names = image.shape, label.num_classes, label.names
    super().__init__(dataset, split, data_dir, builder)

  def parse(self, values: Mapping) -> tuple[bytes, int]:
    """The image file and the label."""
    return values[self._image].bytes_list.value[0], values[self._label].int64_list.value[0]

  def __reduce__(self):
    # A worker process opens its own files.
    return make_source, (self.dataset, self.split, self.data_dir)


@functools.lru_cache
def make_source(dataset: str, split: str, data_dir: str | None = None) -> Source:
  """Opens a split of images.

  Args:
    dataset: a bundled set ("fashion_mnist_small"), a builder in `train/datasets/`, or any name in TFDS.
    split: as in TFDS: "train", "test", "train[:90%]", ...
    data_dir: where prepared sets are; by default where TFDS keeps them.

  Raises:
    ValueError: see `open_builder`; no such split, no images with labels.
  """
  return Source(dataset, split, data_dir, open_builder(dataset, data_dir))


@functools.lru_cache(maxsize=4)
def _decoded(examples: Records, channels: int) -> tuple[np.ndarray, list, dict[int, str]]:
  """All images of a split [N, Y, X, C], their targets as stored, and the faults of those that cannot be decoded."""
  images = np.zeros((len(examples), *examples.shape[:2], channels), np.uint8)
  targets, faults = [], {}
  for i, (encoded, target) in enumerate(examples):
    targets.append(target)
    try:
      images[i] = transforms.decode(encoded, channels)
    except ValueError as error:
      faults[i] = str(error)
  return images, targets, faults


@dataclasses.dataclass(frozen=True)
class ImageClassification(Dataset):
  """Image classification data: what `config.data = dict(name="image_classification", ...)` makes.

  Attributes:
    dataset: see `make_source`.
    image_size: rows and columns of an image in a batch, or one number for both.
    train_split: what to train on.
    eval_split: what to evaluate on.
    data_dir: see `make_source`.
    channels: 1 or 3; by default as the set has them.
    crop: how the part of an image to train on is chosen: `dict(name=..., **kwargs)` of one of `transforms.CROPS`.
    augment: what is then done to it, in this order: `dict(name=..., **kwargs)` of any of `transforms.OPS`.
    interpolation: see `transforms.decode_crop`.
    eval_crop: as `crop`, in evaluation.
    eval_interpolation: as `interpolation`, in evaluation.
    workers: processes that decode; with 0, threads of this process do.
    threads: how many, if there are no workers; None: one for each core up to 16, but one alone for a cached split,
      whose images are so little work each that threads only wait for each other.
    cache: keep the split decoded in memory; None: if its images have one size and take at most 1 GB.
    skip_corrupt: for a corrupt image give a black one with valid=False, instead of an error.

  Raises:
    ValueError: any of the above is not what it should be, before anything is read.
  """

  dataset: str
  image_size: int | tuple[int, int]
  train_split: str = "train"
  eval_split: str = "test"
  data_dir: str | None = None
  channels: int | None = None
  crop: Mapping = dataclasses.field(default_factory=lambda: dict(name="center_crop"))
  augment: Sequence[Mapping] = ()
  interpolation: str = "fast"
  eval_crop: Mapping = dataclasses.field(default_factory=lambda: dict(name="center_crop"))
  eval_interpolation: str = "bicubic"
  workers: int = 0
  threads: int | None = None
  cache: bool | None = None
  skip_corrupt: bool = False

  unit = "images"
  chunk_size = 64  # a first batch is soon there, and memory is bounded

  def __post_init__(self) -> None:
    size = (self.image_size,) * 2 if isinstance(self.image_size, int) else tuple(self.image_size)
    if not (len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size)):
      raise ValueError(f"data.image_size is {self.image_size!r}; wanted a number, or rows and columns")
    object.__setattr__(self, "image_size", size)
    for key in ("interpolation", "eval_interpolation"):
      if (value := getattr(self, key)) not in transforms.INTERPOLATIONS:
        raise ValueError(f"data.{key}: unknown name {value!r}{nearest(str(value), transforms.INTERPOLATIONS)}")
    if self.channels not in (None, 1, 3):
      raise ValueError(f"data.channels is {self.channels!r}; wanted 1, 3, or None for what the set has")
    for key, value, least in (("workers", self.workers, 0), ("threads", self.threads or 1, 1)):
      if not isinstance(value, int) or value < least:
        raise ValueError(f"data.{key} is {value!r}; wanted a whole number, at least {least}")
    # Each function runs once, so that impossible values are found now and not in a worker in the first step.
    rng, image = np.random.default_rng(0), np.zeros((*size, self.channels or 3), np.uint8)
    for what, function, args in (
      ("crop", self._train_crop, (size, rng, size)),
      ("eval_crop", self._eval_crop, (size, rng, size)),
      *((f"augment[{i}]", op, (image, rng)) for i, op in enumerate(self._ops)),
    ):
      try:
        function(*args)
      except (TypeError, ValueError) as error:
        raise ValueError(f"data.{what} ({function.func.__name__}) with {function.keywords}: {error}") from error

  @functools.cached_property
  def _train_crop(self):
    return transforms.bind_crop(self.crop, what="data.crop")

  @functools.cached_property
  def _eval_crop(self):
    return transforms.bind_crop(self.eval_crop, what="data.eval_crop")

  @functools.cached_property
  def _ops(self):
    return [transforms.bind_op(spec, what=f"data.augment[{i}]") for i, spec in enumerate(self.augment)]

  def examples(self, split: str | None = None) -> Source:
    """A split on disk, by default the training split."""
    return make_source(self.dataset, split or self.train_split, self.data_dir)

  @property
  def num_classes(self) -> int:
    """Classes: labels are below it."""
    return self.examples().num_classes

  @property
  def class_names(self) -> list[str]:
    """The names of the labels."""
    return self.examples().class_names

  @classmethod
  def shapes(cls, config: Mapping, model_config: Any, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a batch, from `config.data` and the model's config: the data need not be there."""
    size = config["image_size"]
    size = (size, size) if isinstance(size, int) else tuple(size)
    arrays = cls.blank((*size, model_config.num_channels)) | dict(id=np.zeros((), np.int32))
    return {name: jax.ShapeDtypeStruct((batch_size, *array.shape), array.dtype) for name, array in arrays.items()}

  @classmethod
  def blank(cls, image_shape: tuple[int, int, int]) -> Batch:
    """An empty row of a batch, in the order of `example`."""
    image = np.zeros(image_shape, np.uint8)
    return dict(image=image, label=np.zeros((), np.int32), valid=np.zeros((), np.bool_))

  def check_fit(self, model_config: Any, objective: object) -> None:
    """Raises ValueError where a model or an objective is for other images or classes than these."""
    Y, X, C = self.image_shape
    faults = []
    if model_config.num_channels != C:
      faults.append(
        f"the model takes {model_config.num_channels} channels, the data has {C}: set model.num_channels or "
        "data.channels"
      )
    # An objective that makes its own labels has a number of classes.
    own = getattr(objective, "num_classes", 0)
    classes = own or self.num_classes
    if 0 < model_config.num_classes < classes:
      faults.append(
        f"the model has {model_config.num_classes} classes, the {'objective' if own else 'data'} has labels up to "
        f"{classes - 1}: set model.num_classes={classes}"
      )
    if faults:
      raise ValueError("\n".join(faults))
    check_patches((Y, X), model_config.patch_size)

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(Y, X, C) of every image in a batch."""
    channels = self.channels or self.examples().shape[-1]
    return (*self.image_size, channels if channels == 1 else 3)

  def example(self, examples: Records, index: int, seed: Sequence[int] | None = None) -> tuple:
    """One image as it is in a batch, its target, here a label, and whether it is valid.

    Args:
      examples: a split.
      index: which.
      seed: of random augmentation; None: as in evaluation.

    Raises:
      ValueError: a corrupt image, unless skipped, or a label outside the classes; the file is named.
    """
    rng = None if seed is None else np.random.default_rng(seed)
    choose = self._eval_crop if rng is None else self._train_crop
    crop = {}

    def choose_box(shape: tuple[int, int]) -> transforms.Box:
      crop.update(shape=shape, box=choose(shape, rng=rng, size=self.image_size))
      return crop["box"]

    interpolation = self.eval_interpolation if rng is None else self.interpolation
    try:
      image, target = self._read(examples, index, choose_box, interpolation)
      target = self.crop_target(examples, index, target, **crop)
    except transforms.CorruptImage as error:
      if not self.skip_corrupt:
        raise ValueError(
          f"corrupt image: {examples.where(index)}: {error}. data.skip_corrupt=True leaves such images out"
        ) from error
      return tuple(self.blank(self.image_shape).values())
    for op in self._ops if rng is not None else ():
      image, target = self.augment_both(op, image, target, rng)
    return image, target, True

  def _read(self, examples: Records, index: int, crop: Callable, interpolation: str) -> tuple:
    """The cropped image, and the target as it is stored."""
    channels = self.image_shape[-1]
    if not self.cached(examples):
      encoded, target = examples[index]
      return transforms.decode_crop(encoded, crop, self.image_size, channels, interpolation), target
    images, targets, faults = _decoded(examples, channels)
    if index in faults:
      raise transforms.CorruptImage(faults[index])
    image = transforms.resize(images[index], crop(images.shape[1:3]), self.image_size, interpolation)
    return image, targets[index]

  def collate(self, rows: Sequence[tuple | None], numbers: np.ndarray, length: None) -> Batch:
    """Arrays of images, targets and "valid"."""
    del numbers, length
    batch = {name: np.repeat(array[None], len(rows), 0) for name, array in self.blank(self.image_shape).items()}
    for i, row in enumerate(rows):
      if row is not None:
        for array, value in zip(batch.values(), row, strict=True):
          array[i] = value
    return batch

  def crop_target(self, examples: Records, index: int, label: int, shape: tuple[int, int], box: transforms.Box) -> int:
    """The target for a box of the image, from that for all of it: a label is unchanged.

    Raises:
      ValueError: it is outside the classes.
    """
    if not 0 <= label < examples.num_classes:
      raise ValueError(f"label {label} is outside the {examples.num_classes} classes: {examples.where(index)}")
    return label

  def augment_both(
    self, op: Callable, image: np.ndarray, label: int, rng: np.random.Generator
  ) -> tuple[np.ndarray, int]:
    """One operation of `augment` on an image, and on its target where that moves too: no label does."""
    return op(image, rng), label

  def cached(self, examples: Records) -> bool:
    """Whether a split is kept decoded in memory."""
    fixed = None not in examples.shape
    if self.cache and not fixed:
      raise ValueError(f"data.cache: the images of {self.dataset!r} have different sizes, so they cannot be cached")
    small = fixed and len(examples) * math.prod(examples.shape) <= CACHE_BYTES
    return small if self.cache is None else self.cache

  def count_threads(self, examples: Records) -> int:
    """`threads`, or as many as are useful."""
    alone = self.workers or self.cached(examples)
    return self.threads or (1 if alone else min(16, os.cpu_count() or 1))

  def preload(self, examples: Records) -> None:
    """Decodes a split that is cached."""
    if self.cached(examples):
      _decoded(examples, self.image_shape[-1])
