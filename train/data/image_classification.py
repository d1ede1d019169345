"""A data set on disk to batches of uint8 images [B, Y, X, C], whose order is a pure function of (seed, step).

The batch of step s is the examples [s*B, (s+1)*B) of one endless stream: the training split, shuffled anew every
epoch. So the position in the data *is* the step: nothing of it needs saving, and the number of processes, workers
and threads cannot change it. Process p of P reads the contiguous slice [s*B + p*B/P, s*B + (p+1)*B/P).

A batch is a dict of arrays: "image" uint8 [B, Y, X, C], normalised only on the device; "label" int32 [B]; "valid"
bool [B], False for padding and for corrupt images that were asked to be skipped; "id" int32 [B], the place in the
batch of all processes.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence

import grain
import jax
import numpy as np

from train.data import transforms
from train.data.array_record import Records, Source, make_source
from train.data.pipeline import Batch, Batches, check_share, endless_order, start_workers
from zoo.errors import nearest
from zoo.layers.patch_embed import check_patches

# A split of images of one size is kept decoded in memory if it is not larger.
CACHE_BYTES = 2**30
# At most so many images are one piece of work for a thread: a first batch is soon there, and memory is bounded.
PIECE = 64


@functools.lru_cache(maxsize=4)
def _decoded(source: Records, channels: int) -> tuple[np.ndarray, list, dict[int, str]]:
  """All images of a source [B, Y, X, C], their targets as stored, and the faults of those that cannot be decoded."""
  images = np.zeros((len(source), *source.shape_YXC[:2], channels), np.uint8)
  targets, faults = [], {}
  for i, (encoded, target) in enumerate(source):
    targets.append(target)
    try:
      images[i] = transforms.decode(encoded, channels)
    except ValueError as error:
      faults[i] = str(error)
  return images, targets, faults


@dataclasses.dataclass(frozen=True)
class ImageClassification:
  """Image classification data: what `config.data = dict(name="image_classification", ...)` makes.

  Attributes:
    dataset: see `make_source`.
    image_size: rows and columns of an image in a batch, or one number for both.
    train_split: what to train on.
    eval_split: what to evaluate on.
    data_dir: see `make_source`.
    channels: 1 or 3; by default as the set has them.
    crop: how the part of a picture to train on is chosen: `dict(name=..., **kwargs)` of one of `transforms.CROPS`.
    augment: what is then done to it, in this order: `dict(name=..., **kwargs)` of any of `transforms.OPS`.
    interpolation: see `transforms.cut`.
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

  unit = "images"  # what the speed of training is counted in

  def __post_init__(self):
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
    # One run of each function finds values that it cannot work with now, and not in a worker in the first step.
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

  def source(self, split: str | None = None) -> Source:
    """A split on disk, by default the training split."""
    return make_source(self.dataset, split or self.train_split, self.data_dir)

  @property
  def num_train(self) -> int:
    """Examples in the training split."""
    return len(self.source())

  def num_eval(self, split: str | None = None) -> int:
    """Examples in a split, by default the evaluation split. Raises ValueError where there is none of that name."""
    return len(self.source(split or self.eval_split))

  @property
  def num_classes(self) -> int:
    """Classes: labels are below it."""
    return self.source().num_classes

  @property
  def class_names(self) -> list[str]:
    """What the labels mean."""
    return self.source().class_names

  @classmethod
  def shapes(cls, config: Mapping, model_config, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch, told by `config.data` and the model's config alone: the set need not be here."""
    size = config["image_size"]
    size = (size, size) if isinstance(size, int) else tuple(size)
    arrays = cls.blank((*size, model_config.num_channels)) | dict(id=np.zeros((), np.int32))
    return {name: jax.ShapeDtypeStruct((batch_size, *array.shape), array.dtype) for name, array in arrays.items()}

  @classmethod
  def blank(cls, image_shape: tuple[int, int, int]) -> Batch:
    """What stands in a batch where no example is, in the order of `example`."""
    image = np.zeros(image_shape, np.uint8)
    return dict(image=image, label=np.zeros((), np.int32), valid=np.zeros((), np.bool_))

  def check_fit(self, model_config, objective) -> None:
    """Raises ValueError where a model or an objective is for other images or classes than these."""
    Y, X, C = self.image_shape
    faults = []
    if model_config.num_channels != C:
      faults.append(
        f"the model takes {model_config.num_channels} channels, the data has {C}: set model.num_channels or "
        "data.channels"
      )
    # An objective that makes labels of its own says how many classes they have.
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
    channels = self.channels or self.source().shape_YXC[-1]
    return (*self.image_size, channels if channels == 1 else 3)

  def example(self, source: Records, index: int, seed: Sequence[int] | None = None) -> tuple:
    """One image as it is in a batch, its target, here a label, and whether it is valid.

    Args:
      source: of `self.source(split)`.
      index: which.
      seed: what the augmentation's randomness is made from; None = as in evaluation.

    Raises:
      ValueError: a corrupt image, unless skipped, or a label outside the classes; the file is named.
    """
    channels = self.image_shape[-1]
    rng = None if seed is None else np.random.default_rng(seed)
    choose = self._eval_crop if rng is None else self._train_crop
    cut = {}

    def crop(shape_YX: tuple[int, int]) -> transforms.Box:
      cut.update(shape_YX=shape_YX, box=choose(shape_YX, rng=rng, size_YX=self.image_size))
      return cut["box"]

    interpolation = self.eval_interpolation if rng is None else self.interpolation
    try:
      if self.cached(source):
        images, targets, faults = _decoded(source, channels)
        if index in faults:
          raise transforms.CorruptImage(faults[index])
        image = transforms.resize(images[index], crop(images.shape[1:3]), self.image_size, interpolation)
        target = targets[index]
      else:
        encoded, target = source[index]
        image = transforms.cut(encoded, crop, self.image_size, channels, interpolation)
      target = self.cut_target(source, index, target, **cut)
    except transforms.CorruptImage as error:
      if not self.skip_corrupt:
        raise ValueError(
          f"corrupt image: {source.where(index)}: {error}. data.skip_corrupt=True leaves such images out"
        ) from error
      return tuple(self.blank(self.image_shape).values())
    for op in self._ops if rng is not None else ():
      image, target = self.distort(op, image, target, rng)
    return image, target, True

  def cut_target(self, source: Records, index: int, label: int, shape_YX: tuple[int, int], box: "augment.Box") -> int:
    """The target of an example as it is stored to what it is for a box of the picture: a label stays as it is.

    Raises:
      ValueError: it is outside the classes.
    """
    if not 0 <= label < source.num_classes:
      raise ValueError(f"label {label} is outside the {source.num_classes} classes: {source.where(index)}")
    return label

  def distort(self, op: Callable, image: np.ndarray, label: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """One operation of `augment`, on an image and on its target where that follows: no label does."""
    return op(image, rng), label

  def cached(self, source: Records) -> bool:
    """Whether a source is kept decoded in memory."""
    fixed = None not in source.shape_YXC
    if self.cache and not fixed:
      raise ValueError(f"data.cache: the images of {self.dataset!r} have different sizes, so they cannot be cached")
    small = fixed and len(source) * math.prod(source.shape_YXC) <= CACHE_BYTES
    return small if self.cache is None else self.cache

  def train_batches(
    self, batch_size: int, seed: int, first_step: int = 0, process_index: int = 0, process_count: int = 1
  ) -> Batches:
    """The part of one process of an endless row of batches.

    Args:
      batch_size: of all processes together.
      seed: of the order and of the augmentation.
      first_step: the step of the first batch.
      process_index: which process this is.
      process_count: of how many.

    Returns:
      an iterator; see `Batches`.

    Raises:
      ValueError: a batch size that the processes cannot share, or larger than the split; later, see `example`.
    """
    source = self.source()
    if batch_size > len(source):
      raise ValueError(f"batch_size={batch_size}, but {self.dataset!r} {self.train_split!r} has {len(source)} examples")
    part = _Part(self, source, batch_size, process_index, process_count, None, seed)
    return part.stream(first_step, None)

  def eval_batches(
    self,
    batch_size: int,
    split: str | None = None,
    process_index: int = 0,
    process_count: int = 1,
    limit: int | None = None,
  ) -> Batches:
    """The part of one process of batches that hold every example of a split once; the last is padded, valid=False.

    Args:
      batch_size: of all processes together; all get equally many batches.
      split: by default `eval_split`.
      process_index: which process this is.
      process_count: of how many.
      limit: only so many examples, the first on disk.

    Raises:
      ValueError: see `train_batches`.
    """
    source = self.source(split or self.eval_split)
    end = len(source) if limit is None else min(limit, len(source))
    part = _Part(self, source, batch_size, process_index, process_count, end, None)
    return part.stream(0, -(-end // batch_size))


@dataclasses.dataclass(frozen=True)
class _Part:
  """What one process reads: its slices of all batches, in pieces of work."""

  images: ImageClassification
  source: Records
  batch_size: int
  process_index: int
  process_count: int
  end: int | None  # of the examples, in evaluation
  seed: int | None  # in training

  def __post_init__(self):
    check_share(self.batch_size, self.process_index, self.process_count)

  @property
  def size(self) -> int:
    """Examples of this process in a batch."""
    return self.batch_size // self.process_count

  @functools.cached_property
  def piece(self) -> int:
    """Examples in a piece of work: a divisor of `size`."""
    return next(n for n in range(min(self.size, PIECE), 0, -1) if self.size % n == 0)

  @functools.cached_property
  def order(self) -> grain.MapDataset:
    """Place in the endless stream -> example."""
    return endless_order(len(self.source), self.seed)

  def __call__(self, which: int) -> Batch:
    """The piece of work of that number."""
    step, part = divmod(which, self.size // self.piece)
    first = self.process_index * self.size + part * self.piece
    blank = self.images.blank(self.images.image_shape)
    batch = {name: np.repeat(array[None], self.piece, 0) for name, array in blank.items()}
    for i in range(self.piece):
      place = step * self.batch_size + first + i
      if self.end is not None and place >= self.end:
        break
      index, seed = (place, None) if self.seed is None else (int(self.order[place]), (self.seed, place))
      for name, value in zip(blank, self.images.example(self.source, index, seed), strict=True):
        batch[name][i] = value
    return batch | {"id": np.arange(first, first + self.piece, dtype=np.int32)}

  def stream(self, first_step: int, steps: int | None) -> Batches:
    """Batches from `first_step` on, made by threads or worker processes ahead of time."""
    pieces = self.size // self.piece
    everything = grain.MapDataset.range(first_step * pieces, 2**62 if steps is None else steps * pieces)
    alone = self.images.workers or self.images.cached(self.source)
    threads = self.images.threads or (1 if alone else min(16, os.cpu_count() or 1))
    work = everything.map(self).to_iter_dataset(
      grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2, 2 * threads))
    )
    if self.images.cached(self.source) and not self.images.workers:
      _decoded(self.source, self.images.image_shape[-1])  # once, before several threads want it at once
    if self.images.workers:
      work = start_workers(work, self.images.workers)
    return Batches(work, pieces)
