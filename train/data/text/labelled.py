"""Labelled texts to batches that BERT is fine-tuned on; a pure function of (seed, step).

A row is "[CLS] A [SEP]" or "[CLS] A [SEP] B [SEP]". As with `train.data.text.pair_batches`, an epoch is ceil(rows / B)
batches that hold every row once, in an order made from (seed, epoch) alone, and rows of similar length are together, in
batches of few lengths: each is a program to compile.

A batch is a dict of arrays: "input_ids" int32 [B, T]; "token_type_ids" [B, T], 0 in A and 1 in B; "segment_ids" [B, T],
1 for tokens and 0 for padding; "position_ids" [B, T]; "valid" bool [B], False for rows that hold nothing; "id" int32
[B], the place in the batch of all processes; and the labels, which depend on the kind of data. Where an example has C
choices, the first four are [B, C, T].
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np

from train import config as configuration
from train import data
from train.data import pipeline
from train.data.text.pair_batches import GRAIN, Epochs, cheapest_edges
from train.data.text.vocabulary import Vocabulary, load_vocabulary

# A table of words may have so many more rows than the vocabulary has words: it is rounded up for the devices' sake.
ROUNDED = 128


@dataclasses.dataclass(frozen=True)
class Rows:
  """A split in tokens. Row i is `tokens[ends[i] - lengths[i] : ends[i]]`; example n has the rows from n * C on.

  Attributes:
    tokens: of all rows, one row after the other, [CLS] and [SEP] among them.
    lengths: of the rows.
    second: how many tokens of each row come before its B; its length, if it has none.
    labels: by name, an array with a value for each example.
    token_labels: by name, an array with a value for each of `tokens`; padding has -1.
    choices: C.
    cut: how many rows were cut to their length.
    note: more to say of the split, for the log.
  """

  tokens: np.ndarray
  lengths: np.ndarray
  second: np.ndarray
  labels: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  token_labels: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  choices: int = 1
  cut: int = 0
  note: str = ""

  def __len__(self) -> int:
    return len(self.lengths) // self.choices

  @functools.cached_property
  def ends(self) -> np.ndarray:
    """Where each row ends."""
    return np.cumsum(self.lengths)

  @functools.cached_property
  def needed(self) -> np.ndarray:
    """The length of the longest row of each example."""
    return self.lengths.reshape(-1, self.choices).max(1)


class RowBuilder:
  """Collects rows; `length` is of the longest."""

  def __init__(self, vocabulary: Vocabulary, length: int):
    self._cls, self._sep, self.length = vocabulary.cls, vocabulary.sep, length
    self._rows: list[np.ndarray] = []
    self._second: list[int] = []
    self.cut = 0

  def add(self, one: Sequence[int], two: Sequence[int] | None = None) -> tuple[int, int]:
    """Makes a row of one text or two; returns how many tokens of each there was room for."""
    room = self.length - (2 if two is None else 3)
    kept = truncate(len(one), 0 if two is None else len(two), room)
    self.cut += sum(kept) < len(one) + len(two or ())
    first = [self._cls, *one[: kept[0]], self._sep]
    self._rows.append(np.array(first if two is None else [*first, *two[: kept[1]], self._sep], np.int32))
    self._second.append(len(first))
    return kept

  def finish(self, **rest) -> Rows:
    """The rows, with what else they have."""
    tokens = np.concatenate(self._rows) if self._rows else np.zeros(0, np.int32)
    lengths = np.array([len(row) for row in self._rows], np.int64)
    return Rows(tokens, lengths, np.array(self._second, np.int64), cut=self.cut, **rest)


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
def _read(labelled: "Labelled", split: str, train: bool) -> Rows:
  """Tokenises a split, once for all who ask."""
  rows = labelled.read(split, train)
  if not len(rows):
    raise ValueError(f"{labelled.dataset!r} {split!r} has no example")
  return rows


class Labelled:
  """Batches of labelled texts; which texts and labels is up to a subclass, a frozen dataclass with these fields.

  Attributes:
    dataset: the name of a set, or the path of a folder of files.
    train_split, eval_split: what to train and to evaluate on.
    vocabulary: see `open_vocabulary`. lowercase: see `train.data.text.vocabulary.load_vocabulary`.
    length: tokens in a row at most, [CLS] and [SEP] included.
    buckets: how many lengths of batches there are.
  """

  dataset: str
  train_split: str
  eval_split: str
  vocabulary: str
  lowercase: bool | None
  length: int
  buckets: int

  unit = "examples"
  head = "sequence_classification"  # of the model
  # Arrays of a batch that are labels of the row, and those that are labels of its tokens.
  row_labels: ClassVar[Mapping[str, type]] = {}
  token_labels: ClassVar[Sequence[str]] = ()
  choices = ()
  skip_corrupt = False  # a damaged file is an error: a text that cannot be read cannot be left out by itself
  type_vocab_size = 2  # kinds of segments

  def __post_init__(self):
    for key, least in dict(length=5, buckets=1).items():
      value = getattr(self, key)
      if not isinstance(value, int) or value < least:
        raise ValueError(f"data.{key} is {value!r}; wanted a whole number, at least {least}")

  def read(self, split: str, train: bool) -> Rows:
    """A split in tokens, for training or for evaluation."""
    raise NotImplementedError

  def faults(self, model_config) -> list[str]:
    """What else keeps a model from telling these labels, a line each."""
    del model_config
    return []

  @functools.cached_property
  def words(self) -> Vocabulary:
    """The vocabulary."""
    return open_vocabulary(self.vocabulary, self.lowercase)

  def rows(self, split: str | None = None) -> Rows:
    """The training split in tokens, or another one as evaluation has it."""
    return _read(self, split or self.train_split, split is None)

  @classmethod
  def shapes(cls, config: Mapping, model_config, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of the largest batch that `config.data` makes, without reading anything.

    Args:
      config: `name` and the fields.
      model_config: of the model, which changes nothing here.
      batch_size: B.
    """
    del model_config
    fields = cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if k != "name"})
    row = (batch_size, len(fields.choices), fields.length) if fields.choices else (batch_size, fields.length)
    arrays = {
      name: (row, np.int32)
      for name in ("input_ids", "token_type_ids", "segment_ids", "position_ids", *fields.token_labels)
    }
    arrays |= {name: ((batch_size,), kind) for name, kind in fields.row_labels.items()}
    arrays |= {"valid": ((batch_size,), bool), "id": ((batch_size,), np.int32)}
    return {name: jax.ShapeDtypeStruct(*array) for name, array in arrays.items()}

  def check_fit(self, model_config, objective) -> None:
    """Raises ValueError where a model has not the head, the words, the length or the classes of this data."""
    del objective
    faults, head = [], getattr(model_config, "head", "")
    if head != self.head:
      had = f"head is {head!r}" if head else f"{type(model_config).__module__} has no such head"
      raise ValueError(f"data of this kind wants a model with head={self.head!r}, such as bert/base; its {had}")
    size, vocab_size = self.words.size, model_config.vocab_size
    if not size <= vocab_size < size + ROUNDED:
      faults.append(
        f"the model has {vocab_size} words, the vocabulary {self.vocabulary} has {size}: wanted the one that the model "
        f"was pretrained with (data.vocabulary), or model.vocab_size={size}"
      )
    if model_config.pad_token_id != self.words.pad:
      faults.append(
        f"the model's pad_token_id is {model_config.pad_token_id}, the vocabulary's [PAD] is {self.words.pad}: set "
        f"model.pad_token_id={self.words.pad}, if this is the vocabulary that the model was pretrained with"
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

  @property
  def num_train(self) -> int:
    """Examples in the training split."""
    return len(self.rows())

  def num_eval(self, split: str | None = None) -> int:
    """Examples in a split, by default the evaluation split. Raises ValueError where there is none of that name."""
    return len(self.rows(split or self.eval_split))

  @functools.cached_property
  def _buckets(self) -> tuple[list[int], np.ndarray]:
    """The lengths of batches, rising, and which of them each example needs at least."""
    grains = -(-self.length // GRAIN)
    lengths = np.array([-(-self.length * i // grains) for i in range(grains + 1)])
    need = np.searchsorted(lengths, self.rows().needed)
    edges = cheapest_edges(np.bincount(need, minlength=grains + 1), self.buckets)
    return lengths[edges].tolist(), np.searchsorted(edges, need)

  @property
  def batch_lengths(self) -> list[int]:
    """T of all batches that there are, the largest last."""
    return self._buckets[0]

  def about(self, batch_size: int, seed: int) -> str:
    """What is trained on, in a line for the log."""
    rows = self.rows()
    batches, shapes = self._epochs(batch_size, seed).epoch(0)
    slots = batches.shape[1] * rows.choices * np.array(self.batch_lengths)[shapes].sum()
    parts = [f"{len(rows):,} {self.unit}", rows.note, f"{rows.cut:,} cut" if rows.cut else ""]
    return f"{', '.join(filter(None, parts))}; batches of {1 - rows.lengths.sum() / slots:.1%} padding"

  def _epochs(self, batch_size: int, seed: int) -> Epochs:
    return Epochs(self._buckets[1], len(self.batch_lengths), batch_size, seed)

  def train_batches(
    self, batch_size: int, seed: int, first_step: int = 0, process_index: int = 0, process_count: int = 1
  ) -> pipeline.Batches:
    """The part of one process of an endless row of batches.

    Args:
      batch_size: of all processes together.
      seed: of the order.
      first_step: the step of the first batch.
      process_index: which process this is.
      process_count: of how many.

    Raises:
      ValueError: a batch size that the processes cannot share, or larger than the split.
    """
    pipeline.check_share(batch_size, process_index, process_count)
    rows, part = self.rows(), batch_size // process_count
    if batch_size > len(rows):
      raise ValueError(
        f"batch_size={batch_size}, but {self.dataset!r} {self.train_split!r} has {len(rows)} {self.unit}"
      )
    epochs = self._epochs(batch_size, seed)

    def make(step: int) -> pipeline.Batch:
      epoch, place = divmod(step, epochs.steps)
      batches, shapes = epochs.epoch(epoch)
      mine = batches[place, process_index * part :][:part]
      return self.collate(rows, mine, self.batch_lengths[shapes[place]], process_index * part)

    return pipeline.prefetch(make, first_step)

  def eval_batches(
    self,
    batch_size: int,
    split: str | None = None,
    process_index: int = 0,
    process_count: int = 1,
    limit: int | None = None,
  ) -> pipeline.Batches:
    """The part of one process of batches that hold every example of a split once, in order.

    Args:
      batch_size: of all processes together; all get equally many batches, the last of which is padded.
      split: by default `eval_split`.
      process_index: which process this is.
      process_count: of how many.
      limit: only so many examples, the first ones.

    Raises:
      ValueError: see `train_batches`.
    """
    pipeline.check_share(batch_size, process_index, process_count)
    rows, part = self.rows(split or self.eval_split), batch_size // process_count
    end = len(rows) if limit is None else min(limit, len(rows))
    # The lengths do not ask for the training split, which need not be there.
    lengths = [-(-self.length * i // self.buckets) for i in range(1, self.buckets + 1)]

    def make(step: int) -> pipeline.Batch:
      # One length for the parts of all processes.
      longest = rows.needed[step * batch_size : min((step + 1) * batch_size, end)].max()
      length = next(n for n in lengths if n >= longest)
      places = np.arange(part) + step * batch_size + process_index * part
      return self.collate(rows, np.where(places < end, places, -1), length, process_index * part)

    return pipeline.prefetch(make, 0, -(-end // batch_size))

  def collate(self, rows: Rows, examples: np.ndarray, length: int, first_id: int = 0) -> pipeline.Batch:
    """Arrays of the examples of these numbers; -1 is padding. See the top of this file."""
    B, C, valid = len(examples), rows.choices, examples >= 0
    batch = {name: np.zeros((B * C, length), np.int32) for name in ("token_type_ids", "segment_ids", "position_ids")}
    batch["input_ids"] = np.full((B * C, length), self.words.pad, np.int32)
    batch |= {name: np.full((B * C, length), -1, np.int32) for name in rows.token_labels}
    for i, example in enumerate(examples.tolist()):
      for choice in range(C if example >= 0 else 0):
        place, row = i * C + choice, example * C + choice
        size = rows.lengths[row]
        here = slice(rows.ends[row] - size, rows.ends[row])
        batch["input_ids"][place, :size], batch["segment_ids"][place, :size] = rows.tokens[here], 1
        batch["position_ids"][place, :size] = np.arange(size)
        batch["token_type_ids"][place, rows.second[row] : size] = 1
        for name, values in rows.token_labels.items():
          batch[name][place, :size] = values[here]
    if self.choices:
      batch = {name: array.reshape(B, C, length) for name, array in batch.items()}
    for name, values in rows.labels.items():
      batch[name] = np.where(valid, values[examples], np.zeros((), values.dtype))
    return batch | {"valid": valid, "id": np.arange(B, dtype=np.int32) + first_id}


def open_vocabulary(path: str, lowercase: bool | None = None) -> Vocabulary:
  """A vocabulary from its file, a folder that holds one, or the work directory of a run that has one.

  Raises:
    ValueError: no path, or nothing of the kind there.
  """
  if not path:
    raise ValueError(
      "data.vocabulary is empty; wanted a vocab.txt or tokenizer.json, a folder with one of them, or the work "
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
  found = run.words if isinstance(run, Labelled) else getattr(run, "vocabulary", None)
  if not isinstance(found, Vocabulary):
    raise ValueError(f"{folder} is a run of data {config.data.name!r}, which has no vocabulary with [CLS] and [SEP]")
  return found
