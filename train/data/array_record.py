"""Data sets on disk: the records of a split in ArrayRecord files."""

import abc
import bisect
import difflib
import functools
import importlib
import pkgutil
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from train import datasets
from zoo.errors import nearest

# What is prepared of text to pretrain on is a config of this set.
CORPUS = "corpus"


class Records(abc.ABC):
  """The records of a split on disk, in their order there; `parse` makes an example of a record.

  Attributes: `dataset`, `split`, `data_dir`, `builder`.
  """

  def __init__(self, dataset: str, split: str, data_dir: str | None, builder: tfds.core.DatasetBuilder) -> None:
    self.dataset, self.split, self.data_dir, self.builder = dataset, split, data_dir, builder
    try:
      self._files = builder.info.splits[split].file_instructions
    except ValueError as error:
      known = nearest(re.split(r"\W", split)[0], builder.info.splits)
      raise ValueError(f"{dataset!r} has no split {split!r} ({error}){known}") from error
    self._ends = np.cumsum([file.take for file in self._files]).tolist()

  @abc.abstractmethod
  def parse(self, values: Mapping) -> tuple:
    """An example, from its features as TFDS stores them."""

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  def __getitem__(self, index: int) -> tuple:
    file, record = self._find(index)
    try:
      return self._parse(self._reader(file).read([record])[0])
    except Exception as error:
      raise ValueError(f"cannot read {self.where(index)}: {error}") from error

  def __iter__(self) -> Iterator[tuple]:
    return self.span(0, len(self))

  def span(self, begin: int, end: int) -> Iterator[tuple]:
    """A range of examples in order, read many at a time, which is several times as fast."""
    while begin < end:
      file, first = self._find(begin)
      count = min(1024, end - begin, self._ends[bisect.bisect_right(self._ends, begin)] - begin)
      try:
        records = self._reader(file).read(first, first + count)
      except Exception as error:
        raise ValueError(f"cannot read record {first} or one of the next in {file}: {error}") from error
      yield from map(self._parse, records)
      begin += count

  def _parse(self, record: bytes) -> tuple:
    return self.parse(tf_example_pb2.Example.FromString(record).features.feature)

  def where(self, index: int) -> str:
    """The file and the record in it that hold an example, for error messages."""
    file, record = self._find(index)
    return f"example {index} of {self.dataset!r} {self.split!r} (record {record} of {file})"

  def _find(self, index: int) -> tuple[str, int]:
    if not 0 <= index < len(self):
      raise IndexError(f"example {index} of {len(self)}")
    which = bisect.bisect_right(self._ends, index)
    file = self._files[which]
    return file.filename, index - (self._ends[which] - file.take) + file.skip

  @functools.cached_property
  def _reader(self):
    # Random access: nothing is read ahead.
    return functools.cache(
      lambda file: array_record_module.ArrayRecordReader(
        file, options="readahead_buffer_size:0", file_reader_buffer_size=32768
      )
    )


def open_builder(dataset: str, data_dir: str | None = None) -> tfds.core.DatasetBuilder:
  """Opens a set.

  Args:
    dataset: a bundled set ("fashion_mnist_small"), a builder in `train/datasets/`, or any name in TFDS.
    data_dir: where prepared sets are; by default where TFDS keeps them.

  Raises:
    ValueError: no such set (the nearest is named), one that is not prepared (and how to).
  """
  base = re.split("[/:]", dataset)[0]
  folder = Path(datasets.__path__[0]) if base in bundled() else data_dir
  try:
    builder = tfds.core.read_only_builder.builder_from_files(dataset, data_dir=folder)
  except tfds.core.registered.DatasetNotFoundError as error:
    check_name(base)
    where = data_dir or tfds.core.constants.DATA_DIR
    raise ValueError(
      f"the data set {dataset!r} is not in {where}. To prepare it: zoo prepare {dataset} --data-dir {where}"
    ) from error
  if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
    raise ValueError(
      f"{builder.data_path} is in {builder.info.file_format.value} files, which have no random access. To prepare"
      f" it as ArrayRecord, in another folder: zoo prepare {dataset} --data-dir FOLDER"
    )
  return builder


def bundled() -> list[str]:
  """The data sets that travel with the code."""
  return sorted({p.parent.parent.name for p in Path(datasets.__path__[0]).glob("*/*/dataset_info.json")})


def local() -> list[str]:
  """The data sets with a builder in `train/datasets/`."""
  modules = (m.name for m in pkgutil.iter_modules(datasets.__path__))
  return sorted(m for m in modules if not m.startswith(("make_", "_")))


def check_name(name: str) -> None:
  """Raises ValueError where there is no such set, bundled, local or in TFDS; the nearest are named."""
  # Without TensorFlow TFDS ends the registration of its sets at the first module that wants it, before these.
  for part in ("question_answering", "text", "translate"):
    importlib.import_module(f"tensorflow_datasets.{part}")
  if name == CORPUS:
    return
  known = {*bundled(), *local(), *tfds.list_builders(with_community_datasets=False)}
  if name not in known:
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.4)
    here = ", ".join([*bundled(), *local()])
    raise ValueError(
      f"unknown data set {name!r}; near it: {', '.join(near) or 'nothing'}. There are {here}, and all of TFDS:"
      " https://www.tensorflow.org/datasets/catalog/overview"
    )
