"""A data set on disk to batches of uint8 images [B, Y, X, C], whose order is a pure function of (seed, step).

The batch of step s is the examples [s*B, (s+1)*B) of one endless stream: the training split, shuffled anew every
epoch. So the position in the data *is* the step: nothing of it needs saving, and the number of processes, workers
and threads cannot change it. Process p of P reads the contiguous slice [s*B + p*B/P, s*B + (p+1)*B/P).
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

Batch = dict[str, np.ndarray]


class Source:
  """A split of an image classification set: `source[i]` is (encoded image, label), in the order on disk.

  Attributes: `dataset`, `split`, `num_classes`, `class_names`, `channels`.
  """

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> tuple[bytes, int]: ...

  def where(self, index: int) -> str:
    """The file and the place in it where an example is, for error messages."""


def make_source(dataset: str, split: str, data_dir: str | None = None) -> Source:
  """Opens a split.

  Args:
    dataset: a bundled set ("fashion_mnist_small"), a builder in `train/datasets/`, or any name in TFDS.
    split: as in TFDS, "train", "test", "train[:90%]", ...
    data_dir: where prepared sets are; by default where TFDS keeps them.

  Raises:
    ValueError: no such set (the nearest is named), set not prepared (how to), no such split, no labels.
  """


def prepare(name: str, data_dir: str, source: str | None = None) -> str:
  """Builds a set as ArrayRecord, in `data_dir`; returns its folder.

  Args:
    name: a builder in `train/datasets/`, or any name in TFDS.
    data_dir: where it goes.
    source: a folder with files that were downloaded by hand, by default `data_dir/downloads/manual`.
  """


@dataclasses.dataclass(frozen=True)
class Images:
  """Image classification data: what `config.data = dict(name="images", ...)` makes.

  Attributes:
    dataset: see `make_source`.
    image_size: rows and columns, or one number for both.
    train_split: ...
    eval_split: ...
    data_dir: ...
    channels: 1 or 3; by default as the set has them.
    crop: how the training box is cut, `dict(name=..., **kwargs)` of a function in `augment.CROPS`.
    augment: what is done to the cut image in training, a sequence of `dict(name=..., **kwargs)` of `augment.OPS`.
    eval_crop: as `crop`, in evaluation.
    workers: processes that decode; 0 = threads of this process.
    threads: in each process.
    cache: keep the decoded split in memory; None: if it has one fixed size and fits in 1 GB.
    skip_corrupt: give a black image with valid=False instead of an error.
  """

  dataset: str
  image_size: int | tuple[int, int]
  train_split: str = "train"
  eval_split: str = "test"
  data_dir: str | None = None
  channels: int | None = None
  crop: Mapping = dataclasses.field(default_factory=lambda: dict(name="center"))
  augment: Sequence[Mapping] = ()
  eval_crop: Mapping = dataclasses.field(default_factory=lambda: dict(name="center"))
  workers: int = 0
  threads: int = 4
  cache: bool | None = None
  skip_corrupt: bool = False

  @property
  def num_train(self) -> int:
    """Examples in the training split."""

  @property
  def num_classes(self) -> int: ...

  @property
  def class_names(self) -> list[str]: ...

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(Y, X, C) of every image in a batch."""

  def num_examples(self, split: str) -> int: ...

  def train_batches(
    self, batch_size: int, seed: int, first_step: int = 0, process_index: int = 0, process_count: int = 1
  ) -> Iterator[Batch]:
    """Endless batches of this process, beginning with that of step `first_step`; `close()` ends its workers."""

  def eval_batches(
    self,
    batch_size: int,
    split: str | None = None,
    process_index: int = 0,
    process_count: int = 1,
    limit: int | None = None,
  ) -> Iterator[Batch]:
    """Every example of a split once, over all processes; the last batches are padded with valid=False."""


def make(name: str, **kwargs) -> Images:
  """`make(**config.data)`: the data by the name of its kind, "images"."""
