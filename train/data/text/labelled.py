"""Labelled texts to batches for fine-tuning BERT.

A row is "[CLS] A [SEP]" or "[CLS] A [SEP] B [SEP]". Rows of similar length share batches of a few lengths
(`train.data.order.Buckets`), each of which is a program to compile.

A batch (`train.data.base`) has "input_ids" int32 [B, T]; "token_type_ids" [B, T], 0 in A and 1 in B; "segment_ids" [B,
T], 1 for tokens and 0 for padding; "position_ids" [B, T]; and the labels, which depend on the kind of data. Where an
example has C choices, the first four are [B, C, T].
"""

import abc
import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from train import config as configuration
from train import data
from train.data.base import Dataset
from train.data.order import Buckets, InOrder, cheapest_edges
from train.data.pipeline import Batch
from train.data.text.seq2seq import LENGTH_MULTIPLE
from train.data.text.vocabulary import Vocabulary, load_vocabulary

# An embedding table may have so many more rows than the vocabulary has tokens: sizes are rounded up for the devices.
ROUNDED = 128


@dataclasses.dataclass(frozen=True, eq=False)
class Rows(Sequence):
  """A split in tokens. Row i is `tokens[ends[i] - lengths[i] : ends[i]]`; example n has the rows from n * C on.

  Attributes:
    tokens: of all rows, one row after the other, [CLS] and [SEP] among them.
    lengths: of the rows.
    second: how many tokens of each row come before its B; its length, if it has none.
    labels: by name, an array with a value for each example.
    token_labels: by name, an array with a value for each of `tokens`; padding has -1.
    choices: C.
    truncated: how many rows were truncated.
    note: a remark on the split, for the log.
  """

  tokens: np.ndarray
  lengths: np.ndarray
  second: np.ndarray
  labels: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  token_labels: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  choices: int = 1
  truncated: int = 0
  note: str = ""

  def __len__(self) -> int:
    return len(self.lengths) // self.choices

  def __getitem__(self, index: int) -> "Example":
    rows = []
    for row in range(index * self.choices, (index + 1) * self.choices):
      here = slice(self.ends[row] - self.lengths[row], self.ends[row])
      labels = {name: values[here] for name, values in self.token_labels.items()}
      rows.append((self.tokens[here], self.second[row], labels))
    return Example(rows, {name: values[index] for name, values in self.labels.items()})

  @functools.cached_property
  def ends(self) -> np.ndarray:
    """Where each row ends."""
    return np.cumsum(self.lengths)

  @functools.cached_property
  def needed(self) -> np.ndarray:
    """The length of the longest row of each example."""
    return self.lengths.reshape(-1, self.choices).max(1)


class Example(NamedTuple):
  """An example: of each row the tokens, where its B begins and its labels of tokens; and the example's own labels."""

  rows: list[tuple[np.ndarray, int, dict[str, np.ndarray]]]
  labels: dict[str, np.ndarray]


class RowBuilder:
  """Collects rows; `length` is of the longest."""

  def __init__(self, vocabulary: Vocabulary, length: int) -> None:
    self._cls, self._sep, self.length = vocabulary.cls, vocabulary.sep, length
    self._rows: list[np.ndarray] = []
    self._second: list[int] = []
    self.truncated = 0

  def add(self, one: Sequence[int], two: Sequence[int] | None = None) -> tuple[int, int]:
    """Makes a row of one text or two; returns how many tokens of each there was room for."""
    room = self.length - (2 if two is None else 3)
    kept = truncate(len(one), 0 if two is None else len(two), room)
    self.truncated += sum(kept) < len(one) + len(two or ())
    first = [self._cls, *one[: kept[0]], self._sep]
    self._rows.append(np.array(first if two is None else [*first, *two[: kept[1]], self._sep], np.int32))
    self._second.append(len(first))
    return kept

  def finish(self, **rest: Any) -> Rows:
    """The rows, with what else they have."""
    tokens = np.concatenate(self._rows) if self._rows else np.zeros(0, np.int32)
    lengths = np.array([len(row) for row in self._rows], np.int64)
    return Rows(tokens, lengths, np.array(self._second, np.int64), truncated=self.truncated, **rest)


def truncate(one: int, two: int, room: int) -> tuple[int, int]:
  """How many tokens two texts keep: the longer one loses its last, the second of two equals, until both fit in `room`.

  So the released code has it (Devlin et al. 2019, `_truncate_seq_pair`), token by token.
  """
  over = max(one + two - room, 0)
  # First the longer one alone, down to the other's length; then both in turn.
  alone = min(over, abs(one - two))
  one, two = one - alone * (one > two), two - alone * (two > one)
  both = over - alone
  return one - both // 2, two - (both - both // 2)


@functools.lru_cache(maxsize=8)
def _read(kind: "LabelledText", split: str, train: bool) -> Rows:
  """Tokenises a split, once per process."""
  rows = kind.read(split, train)
  if not len(rows):
    raise ValueError(f"{kind.dataset!r} {split!r} has no example")
  return rows


class LabelledText(Dataset):
  """Labelled texts. A subclass has `read`, and these fields.

  Attributes:
    dataset: the name of a set, or the path of a folder of files.
    train_split, eval_split: what to train and to evaluate on.
    vocab_file: see `open_vocabulary`. lowercase: see `train.data.text.vocabulary.load_vocabulary`.
    length: tokens in a row at most, [CLS] and [SEP] included.
    buckets: how many lengths of batches there are.
  """

  dataset: str
  train_split: str
  eval_split: str
  vocab_file: str
  lowercase: bool | None
  length: int
  buckets: int

  head = "sequence_classification"  # of the model
  # Arrays of a batch that are labels of the row, and those that are labels of its tokens.
  row_labels: ClassVar[Mapping[str, type]] = {}
  token_labels: ClassVar[Sequence[str]] = ()
  choices = ()
  type_vocab_size = 2

  def __post_init__(self) -> None:
    for key, least in dict(length=5, buckets=1).items():
      value = getattr(self, key)
      if not isinstance(value, int) or value < least:
        raise ValueError(f"data.{key} is {value!r}; wanted a whole number, at least {least}")

  @abc.abstractmethod
  def read(self, split: str, train: bool) -> Rows:
    """A split in tokens, for training or for evaluation."""

  def faults(self, model_config: Any) -> list[str]:
    """What else of a model does not fit these labels, a line each."""
    del model_config
    return []

  @functools.cached_property
  def vocabulary(self) -> Vocabulary:
    """The tokens."""
    return open_vocabulary(self.vocab_file, self.lowercase)

  def examples(self, split: str | None = None) -> Rows:
    """The training split in tokens, or another one as evaluation has it."""
    return _read(self, split or self.train_split, split is None)

  @classmethod
  def shapes(cls, config: Mapping, model_config: Any, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of the largest batch that `config.data` makes, without reading anything.

    Args:
      config: `name` and the fields.
      model_config: not used.
      batch_size: B.
    """
    del model_config
    fields = cls.from_config(config)
    row = (batch_size, len(fields.choices), fields.length) if fields.choices else (batch_size, fields.length)
    arrays = {
      name: (row, np.int32)
      for name in ("input_ids", "token_type_ids", "segment_ids", "position_ids", *fields.token_labels)
    }
    arrays |= {name: ((batch_size,), kind) for name, kind in fields.row_labels.items()}
    arrays |= {"valid": ((batch_size,), bool), "id": ((batch_size,), np.int32)}
    return {name: jax.ShapeDtypeStruct(*array) for name, array in arrays.items()}

  def check_fit(self, model_config: Any, objective: object) -> None:
    """Raises ValueError where a model has not the head, vocabulary, length or classes of this data."""
    del objective
    faults, head = [], getattr(model_config, "head", "")
    if head != self.head:
      had = f"head is {head!r}" if head else f"{type(model_config).__module__} has no such head"
      raise ValueError(f"data of this kind wants a model with head={self.head!r}, such as bert/base; its {had}")
    size, vocab_size = self.vocabulary.size, model_config.vocab_size
    if not size <= vocab_size < size + ROUNDED:
      faults.append(
        f"the model's vocab_size is {vocab_size}, the vocabulary {self.vocab_file} has {size} tokens: set "
        f"data.vocab_file to the one that the model was pretrained with, or model.vocab_size={size}"
      )
    if model_config.pad_token_id != self.vocabulary.pad:
      faults.append(
        f"the model's pad_token_id is {model_config.pad_token_id}, the vocabulary's [PAD] is {self.vocabulary.pad}: "
        f"set model.pad_token_id={self.vocabulary.pad}, if this is the vocabulary that the model was pretrained with"
      )
    if self.length > model_config.max_length:
      faults.append(
        f"rows have up to {self.length} tokens, the model's max_length is {model_config.max_length}: set data.length "
        "or model.max_length"
      )
    if self.type_vocab_size > model_config.type_vocab_size:
      faults.append(
        f"there are pairs of texts, but the model has type_vocab_size={model_config.type_vocab_size}: set "
        "model.type_vocab_size=2"
      )
    if faults := faults + self.faults(model_config):
      raise ValueError("\n".join(faults))

  @functools.cached_property
  def _buckets(self) -> tuple[list[int], np.ndarray]:
    """The lengths of batches, rising, and which of them each example needs at least."""
    grains = -(-self.length // LENGTH_MULTIPLE)
    lengths = np.array([-(-self.length * i // grains) for i in range(grains + 1)])
    need = np.searchsorted(lengths, self.examples().needed)
    edges = cheapest_edges(np.bincount(need, minlength=grains + 1), self.buckets)
    return lengths[edges].tolist(), np.searchsorted(edges, need)

  @property
  def batch_lengths(self) -> list[int]:
    """T of all batches that there are, the largest last."""
    return self._buckets[0]

  def about(self, batch_size: int, seed: int) -> str:
    """The examples and their padding."""
    rows = self.examples()
    batches, shapes = self.train_order(rows, batch_size, seed).epoch(0)
    slots = batches.shape[1] * rows.choices * np.array(self.batch_lengths)[shapes].sum()
    parts = [f"{len(rows):,} {self.unit}", rows.note, f"{rows.truncated:,} truncated" if rows.truncated else ""]
    return f"{', '.join(filter(None, parts))}; batches of {1 - rows.lengths.sum() / slots:.1%} padding"

  def train_order(self, examples: Rows, batch_size: int, seed: int) -> Buckets:
    """Rows of similar length together."""
    del examples
    return Buckets(batch_size, self._buckets[1], self.batch_lengths, seed)

  def eval_order(self, examples: Rows, batch_size: int, end: int) -> InOrder:
    """In order, each batch of the smallest length that its rows fit in."""
    # These lengths do not depend on the training split, which need not be there.
    lengths = [-(-self.length * i // self.buckets) for i in range(1, self.buckets + 1)]
    return InOrder(
      batch_size, end, lambda begin, end: next(n for n in lengths if n >= examples.needed[begin:end].max())
    )

  def collate(self, rows: Sequence[Example | None], numbers: np.ndarray, length: int) -> Batch:
    """Arrays of examples; see the top of this file."""
    del numbers
    B, C = len(rows), len(self.choices) or 1
    batch = {name: np.zeros((B * C, length), np.int32) for name in ("token_type_ids", "segment_ids", "position_ids")}
    batch["input_ids"] = np.full((B * C, length), self.vocabulary.pad, np.int32)
    batch |= {name: np.full((B * C, length), -1, np.int32) for name in self.token_labels}
    batch |= {name: np.zeros(B, kind) for name, kind in self.row_labels.items()}
    for i, example in enumerate(rows):
      for choice, (tokens, second, labels) in enumerate(example.rows if example else ()):
        row, size = i * C + choice, len(tokens)
        batch["input_ids"][row, :size], batch["segment_ids"][row, :size] = tokens, 1
        batch["position_ids"][row, :size] = np.arange(size)
        batch["token_type_ids"][row, second:size] = 1
        for name, values in labels.items():
          batch[name][row, :size] = values
      if example:
        for name in self.row_labels:
          batch[name][i] = example.labels[name]
    if self.choices:
      batch = {name: array.reshape(B, C, length) if array.ndim == 2 else array for name, array in batch.items()}
    return batch


def open_vocabulary(path: str, lowercase: bool | None = None) -> Vocabulary:
  """A vocabulary from its file, a folder that holds one, or the work directory of a run that has one.

  Raises:
    ValueError: no path, or no vocabulary there.
  """
  if not path:
    raise ValueError(
      "data.vocab_file is empty; wanted a vocab.txt or tokenizer.json, a folder with one of them, or the work "
      "directory of the run that pretrained the model"
    )
  folder = Path(path)
  if not (folder / "config.json").exists() or any((folder / name).exists() for name in ("vocab.txt", "tokenizer.json")):
    return load_vocabulary(path, lowercase)
  try:
    config = configuration.restore(json.loads((folder / "config.json").read_text()))
  except (ValueError, KeyError, AttributeError, TypeError) as error:
    raise ValueError(f"{folder} has neither vocab.txt nor tokenizer.json, and is no run: {error}") from error
  run = data.make(config.data.name, **configuration.kwargs(config.data))
  found = getattr(run, "vocabulary", None)
  if not isinstance(found, Vocabulary):
    raise ValueError(f"{folder} is a run of data {config.data.name!r}, which has no vocabulary with [CLS] and [SEP]")
  return found
