"""Data sets on disk: the records of a split in ArrayRecord files, and how the sets get there."""

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
from train.datasets._tensorflow import stand_in
from zoo.errors import check_call, nearest

# What is prepared of text to pretrain on is a config of this set.
CORPUS = "corpus"


class Records:
  """The records of a split on disk, in the order there; what one holds is up to `parse`.

  Attributes: `dataset`, `split`, `data_dir`, `builder`.
  """

  def __init__(self, dataset: str, split: str, data_dir: str | None, builder: tfds.core.DatasetBuilder):
    self.dataset, self.split, self.data_dir, self.builder = dataset, split, data_dir, builder
    try:
      self._files = builder.info.splits[split].file_instructions
    except ValueError as error:
      known = nearest(re.split(r"\W", split)[0], builder.info.splits)
      raise ValueError(f"{dataset!r} has no split {split!r} ({error}){known}") from error
    self._ends = np.cumsum([file.take for file in self._files]).tolist()

  def parse(self, values: Mapping) -> tuple:
    """An example, from its features as TFDS stores them."""
    raise NotImplementedError

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  def __getitem__(self, index: int) -> tuple:
    file, place = self._find(index)
    try:
      return self._parse(self._reader(file).read([place])[0])
    except Exception as error:
      raise ValueError(f"cannot read {self.where(index)}: {error}") from error

  def __iter__(self) -> Iterator[tuple]:
    return self.span(0, len(self))

  def span(self, begin: int, end: int) -> Iterator[tuple]:
    """Some in order: many records at a time, which is several times as fast as one by one."""
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
    """The file and the place in it where an example is, for error messages."""
    file, place = self._find(index)
    return f"example {index} of {self.dataset!r} {self.split!r} (record {place} of {file})"

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


class Source(Records):
  """A split of an image classification set: `source[i]` is (encoded image, label).

  Attributes: `num_classes`, `class_names`, `shape_YXC` (None where it varies).
  """

  def __init__(self, dataset: str, split: str, data_dir: str | None, builder: tfds.core.DatasetBuilder):
    features, keys = dict(builder.info.features), builder.info.supervised_keys
    self._image, self._label = keys if keys and len(keys) == 2 else ("image", "label")
    image, label = features.get(self._image), features.get(self._label)
    if not (isinstance(image, tfds.features.Image) and isinstance(label, tfds.features.ClassLabel)):
      raise ValueError(f"{dataset!r} has no images with one label each: its features are {features}")
    self.shape_YXC, self.num_classes, self.class_names = image.shape, label.num_classes, label.names
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


def open_builder(dataset: str, data_dir: str | None = None) -> tfds.core.DatasetBuilder:
  """Opens a set that is prepared, or bundled; for the arguments see `make_source`.

  Raises:
    ValueError: no such set (the nearest is named), one that is not prepared (and how to).
  """
  base = re.split("[/:]", dataset)[0]
  folder = Path(datasets.__path__[0]) if base in bundled() else data_dir
  try:
    builder = tfds.core.read_only_builder.builder_from_files(dataset, data_dir=folder)
  except tfds.core.registered.DatasetNotFoundError as error:
    _check_name(base)
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


def _check_name(name: str) -> None:
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


def prepare(
  name: str,
  data_dir: str,
  source: str | None = None,
  vocab_size: int | None = None,
  tokenizer: str | None = None,
  **corpus,
) -> str:
  """Builds a set as ArrayRecord in `data_dir`, downloading what is needed; returns the set's folder.

  A set of translations gets a tokenizer, trained on its split "train", once: every run is to use the same.

  Args:
    name: a builder in `train/datasets/`, or any name in TFDS; or "corpus/NAME", text to pretrain on.
    data_dir: where the set goes.
    source: the folder with files that only a person may download, by default `data_dir/downloads/manual`; or the text
      of a corpus.
    vocab_size: of the tokenizer; by default 32,000, of a corpus 30,522.
    tokenizer: its kind, "bpe" (the default), "unigram" or "word"; of a corpus "wordpiece" (the default) or "bpe".
    corpus: keyword arguments of `train.data.text.prepare.prepare_corpus`; None is as if not given.

  Raises:
    ValueError: no such set (the nearest is named), or one that cannot be built here, and why; another tokenizer is
      there already; a tokenizer for a set without translations; an argument of a corpus for another set.
  """
  corpus = {key: value for key, value in corpus.items() if value is not None}
  if re.split("[/:]", name)[0] == CORPUS:
    from train.data.text import prepare as preparation

    check_call(preparation.prepare_corpus, corpus, "a corpus", given=("name", "data_dir", "source"))
    if source is None:
      raise ValueError(f"{name!r} needs a text: --source FILE, FOLDER or a name in TFDS")
    return preparation.prepare_corpus(name, data_dir, source, vocab_size=vocab_size, tokenizer=tokenizer, **corpus)
  if corpus:
    raise ValueError(f"--{next(iter(corpus)).replace('_', '-')} is for {CORPUS}/NAME; this is {name!r}")
  from train.data.text import tokenizers as tokenizers
  from train.data.text import translation  # which builds on this module

  tokenizers.check(vocab_size or translation.VOCABULARY, tokenizer or "bpe")
  base = re.split("[/:]", name)[0]
  _check_name(base)
  if base in bundled():
    raise ValueError(f"{name!r} comes with the code: there is nothing to prepare")
  downloads = Path(data_dir) / "downloads"
  manual = Path(source) if source else downloads / "manual"
  try:
    with stand_in():
      if base in local():
        make_builder = importlib.import_module(f"train.datasets.{base}").Builder
        if "/" in name:
          make_builder = functools.partial(make_builder, config=name.partition("/")[2])
      else:
        make_builder = functools.partial(tfds.builder, name)
      builder = make_builder(data_dir=data_dir, file_format="array_record")
      built = Path(builder.data_path).exists()
      if source and built and not translation.lacks_tokenizer(builder):
        raise ValueError(f"{builder.data_path} is there already; who wants another one deletes it first")
      if (what := builder.MANUAL_DOWNLOAD_INSTRUCTIONS) and not built and not manual.is_dir():
        raise ValueError(f"{name!r} needs files in {manual}, which is no folder. {what.strip()}")
      builder.download_and_prepare(
        download_dir=downloads, download_config=tfds.download.DownloadConfig(manual_dir=manual)
      )
  except ImportError as error:
    raise ValueError(
      f"TFDS's builder of {name!r} needs a package that is not here ({error}), to prepare the set, though not to read"
      " it. If it is TensorFlow: pip install tensorflow"
    ) from error
  except (AssertionError, OSError) as error:  # files that are missing, a download that failed, a full disk
    raise ValueError(f"cannot prepare {name!r}: {error}") from error
  translation.prepare_tokenizer(name, data_dir, builder, vocab_size, tokenizer)
  return str(builder.data_path)
