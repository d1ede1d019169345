"""Text to pretrain BERT on: rows of tokens, each of one sequence or, packed, of several.

A batch (`train.data.base`) has, of tokens, int32 [B, T]: "input_ids"; "segment_ids", which sequence of the row a token
belongs to, 1, 2, ..., and 0 for padding; "position_ids", which start at 0 in each sequence; "token_type_ids", 1 in the
second text of a pair, 0 elsewhere; "word_ids", which word of the row a token is a piece of, 1, 2, ..., and 0 for
special tokens and padding. Of the first Z sequences, int32 [B, Z]: "cls_positions", where each begins;
"next_sentence_label", 1 where the second text follows the first in the corpus, 0 where it is random, and -1 where there
is none. Of rows int32 [B]: "example", the number in the split. No token is masked yet: the objective does it.
"""

import dataclasses
import functools
import itertools
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tensorflow_datasets as tfds

from train.data import array_record
from train.data.base import Dataset
from train.data.pipeline import Batch
from train.data.text import masked_lm_rows, prepare_corpus
from train.data.text.corpora import Source, make_source
from train.data.text.documents import Encoder
from train.data.text.vocabulary import KINDS, Vocabulary, load_vocabulary, train_vocabulary
from zoo.errors import nearest


class Row(NamedTuple):
  """A row of training, without padding.

  Attributes:
    input_ids: [n], every sequence "[CLS] A [SEP]" or "[CLS] A [SEP] B [SEP]".
    ends: [k], where each sequence ends. second_starts: [k], where its B begins; its end, if there is none.
    next_sentence_label: [k], 1 where B follows A in the corpus, 0 where B is random, -1 where there is none.
  """

  input_ids: np.ndarray
  ends: np.ndarray
  second_starts: np.ndarray
  next_sentence_label: np.ndarray


class TokenRows(Dataset):
  """Rows of tokens. A subclass has as fields or properties `length` (T), `sequences` (Z), `pairs` and `vocabulary`."""

  dataset: str
  train_split: str
  eval_split: str
  length: int
  sequences: int
  pairs: bool
  vocabulary: Vocabulary

  unit = "rows"

  @classmethod
  def shapes(cls, config: Mapping, model_config: Any, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a batch that `config.data` makes, without reading anything."""
    del model_config
    fields = cls.from_config(config)
    sizes = dict.fromkeys(("input_ids", "segment_ids", "position_ids", "token_type_ids", "word_ids"), (fields.length,))
    sizes |= dict.fromkeys(("cls_positions", "next_sentence_label"), (fields.sequences,)) | dict.fromkeys(
      ("id", "example"), ()
    )
    arrays = {key: jax.ShapeDtypeStruct((batch_size, *size), np.int32) for key, size in sizes.items()}
    return arrays | {"valid": jax.ShapeDtypeStruct((batch_size,), bool)}

  def check_fit(self, model_config: Any, objective: object) -> None:
    """Raises ValueError where a model has not the vocabulary, length, special tokens or head for these rows."""
    del objective
    c, faults = model_config, []
    if c.vocab_size < self.vocabulary.size:
      words = self.vocabulary.size
      faults.append(
        f"the model's vocab_size is {c.vocab_size}, the vocabulary has {words} tokens: set model.vocab_size={words}"
      )
    if c.max_length < self.length:
      faults.append(
        f"rows have up to {self.length} tokens, the model's max_length is {c.max_length}: set model.max_length or "
        "data.length"
      )
    for name in ("pad", "mask"):
      field = f"{name}_token_id"
      if getattr(c, field) != (token := getattr(self.vocabulary, name)):
        faults.append(
          f"{field} is token {token} of the vocabulary, {getattr(c, field)} of the model: set model.{field}"
        )
    if c.head not in ("pretraining", "masked_lm"):
      faults.append(f"model.head is {c.head!r}; wanted 'pretraining', or 'masked_lm' without pairs")
    elif c.head == "pretraining" and not self.pairs:
      faults.append(
        "model.head='pretraining' predicts whether B follows A, but rows have no pairs: set model.head='masked_lm'"
      )
    if self.pairs and c.type_vocab_size < 2:
      faults.append(f"pairs have tokens of two types, the model has {c.type_vocab_size}: set model.type_vocab_size=2")
    if faults:
      raise ValueError("\n".join(faults))

  def collate(self, rows: Sequence[Row | None], numbers: np.ndarray, length: None) -> Batch:
    """Arrays of rows; see the top of this file."""
    del length
    return collate(self.vocabulary, rows, numbers, self.length, self.sequences)


def collate(
  vocabulary: Vocabulary, rows: Sequence[Row | None], numbers: np.ndarray, length: int, sequences: int
) -> Batch:
  """Arrays of rows; see the top of this file.

  Args:
    vocabulary: separates words from their pieces.
    rows: None for padding.
    numbers: of the rows in the split.
    length: T. sequences: Z.
  """
  input_ids, segments, positions, types = np.zeros((4, len(rows), length), np.int32)
  input_ids[:] = vocabulary.pad
  cls_positions, follows = np.zeros((2, len(rows), sequences), np.int32)
  follows[:] = -1
  for i, row in enumerate(rows):
    if row is None:
      continue
    n, sizes = len(row.input_ids), np.diff(row.ends, prepend=0)
    starts = row.ends - sizes
    input_ids[i, :n] = row.input_ids
    segments[i, :n] = np.repeat(np.arange(1, len(sizes) + 1), sizes)
    positions[i, :n] = np.arange(n) - np.repeat(starts, sizes)
    types[i, :n] = np.arange(n) >= np.repeat(row.second_starts, sizes)
    kept = min(len(sizes), sequences)
    cls_positions[i, :kept], follows[i, :kept] = starts[:kept], row.next_sentence_label[:kept]
  return {
    "input_ids": input_ids,
    "segment_ids": segments,
    "position_ids": positions,
    "token_type_ids": types,
    "word_ids": number_words(input_ids, vocabulary),
    "cls_positions": cls_positions,
    "next_sentence_label": follows,
    "example": np.asarray(numbers, np.int32),
  }


def number_words(input_ids: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
  """Which word of its row each token is a piece of, 1, 2, ...; 0 for special tokens and padding; int32."""
  special = np.isin(input_ids, [vocabulary.pad, vocabulary.cls, vocabulary.sep])
  # The token after a special token begins a word, even where it is the rest of a truncated one.
  behind = np.pad(special[:, :-1], ((0, 0), (1, 0)), constant_values=True)
  begins = ~special & (vocabulary.begins_word[input_ids] | behind)
  return np.where(special, 0, np.cumsum(begins, 1)).astype(np.int32)


class _Records(array_record.Records):
  """The rows of a split on disk."""

  def parse(self, values: Mapping) -> Row:
    """A row, from its features as TFDS stores them."""
    return Row(*(np.array(values[name].int64_list.value, np.int32) for name in Row._fields))


@dataclasses.dataclass(frozen=True)
class MaskedLMCorpus(TokenRows):
  """Rows that `zoo prepare corpus/NAME` made of a text: what `config.data = dict(name="masked_lm_corpus", ...)` makes.

  Attributes:
    dataset: "corpus/NAME".
    length: T, at least that of the preparation.
    pairs: whether rows are of pairs of texts, as the preparation made them.
    sequences: Z; of a packed row, next sentence prediction covers the first Z sequences, masked tokens all of it.
    train_split: what to train on.
    eval_split: what to evaluate on.
    data_dir: where prepared sets are; by default where TFDS keeps them.

  Raises:
    ValueError: numbers that make no sense; later, fields that differ from the preparation.
  """

  dataset: str
  length: int = 128
  pairs: bool = True
  sequences: int = 1
  train_split: str = "train"
  eval_split: str = "val"
  data_dir: str | None = None

  def __post_init__(self) -> None:
    for key, least in dict(length=masked_lm_rows.SHORTEST, sequences=1).items():
      if (value := getattr(self, key)) < least:
        raise ValueError(f"data.{key} is {value!r}; wanted at least {least}")

  @functools.cached_property
  def _opened(self) -> tuple[tfds.core.DatasetBuilder, dict]:
    """The set, and what it was made with and has in it."""
    builder = array_record.open_builder(self.dataset, self.data_dir)
    path = Path(builder.data_path) / prepare_corpus.ARGUMENTS
    if not path.exists():
      raise ValueError(
        f"{self.dataset!r} is no prepared corpus: there is no {path.name} in {path.parent}. To make one of it: "
        f"zoo prepare corpus/NAME --source {self.dataset} --data-dir DIR"
      )
    arguments = json.loads(path.read_text(encoding="utf-8"))
    faults = []
    if arguments["length"] > self.length:
      faults.append(f"rows of {arguments['length']} tokens, data.length is {self.length}")
    if arguments["pairs"] != self.pairs:
      kinds = {True: "rows of pairs", False: "rows without pairs"}
      faults.append(f"{kinds[arguments['pairs']]}, data.pairs is {self.pairs}")
    if faults:
      raise ValueError(f"{self.dataset!r} was prepared with " + "; and ".join(faults))
    return builder, arguments

  @functools.cached_property
  def vocabulary(self) -> Vocabulary:
    """The one that was prepared with the corpus."""
    return load_vocabulary(str(self._opened[0].data_path))

  def examples(self, split: str | None = None) -> array_record.Records:
    """The rows of a split, by default the training split."""
    return _Records(self.dataset, split or self.train_split, self.data_dir, self._opened[0])

  def about(self, batch_size: int, seed: int) -> str:
    """The tokens, the rows and their padding."""
    del batch_size, seed
    counts = self._opened[1]["counts"]
    return _about(counts["train_tokens"], counts["train_rows"], self.length)


class _Made(Sequence):
  """Rows in memory."""

  def __init__(self, rows: masked_lm_rows.Rows) -> None:
    self.made = rows

  def __len__(self) -> int:
    return len(self.made)

  def __getitem__(self, index: int) -> Row:
    rows = self.made
    tokens, sequences = (slice(*ends[index : index + 2]) for ends in (rows.row_starts, rows.first_sequences))
    return Row(
      rows.tokens[tokens], rows.ends[sequences], rows.second_starts[sequences], rows.next_sentence_label[sequences]
    )


@dataclasses.dataclass(frozen=True)
class MaskedLM(TokenRows):
  """A small text, made to rows in memory: what `config.data = dict(name="masked_lm", ...)` makes.

  Its vocabulary is trained on its training split. A corpus that takes minutes to read is for `zoo prepare`; see
  `MaskedLMCorpus`.

  Attributes:
    dataset: a text file, a folder of them, "verses_en_es" (bundled) or a prepared set of TFDS.
    length: T.
    pairs, pack, dupe_factor: what is in a row, see `train.data.text.masked_lm_rows.make_rows`.
    sequences: Z; of a packed row, next sentence prediction covers the first Z sequences, masked tokens all of it.
    documents, sentences, feature: where documents and sentences end, and which text of a data set; see
      `train.data.text.corpora`. Empty for what fits most.
    train_split: what to train on.
    eval_split: what to evaluate on. A file or folder has "train" and "val": of `hold_out` documents in a row the last
      one is for validation.
    hold_out: see `eval_split`.
    data_dir: where prepared sets are; by default where TFDS keeps them.
    vocab_size: tokens of the vocabulary, at most.
    tokenizer: "wordpiece" or "bpe", see `train.data.text.vocabulary.train_vocabulary`.
    lowercase: make all text lower-case, without accents.
    vocab_file: a vocabulary to use in place of a trained one, see `train.data.text.vocabulary.load_vocabulary`.
    seed: what pairs and lengths are drawn from.

  Raises:
    ValueError: any of the above is not what it should be, before anything is read.
  """

  dataset: str
  length: int = 128
  pairs: bool = True
  pack: bool = False
  dupe_factor: int = 1
  sequences: int = 1
  documents: str = ""
  sentences: str = ""
  feature: str = ""
  train_split: str = "train"
  eval_split: str = "val"
  hold_out: int = 20
  data_dir: str | None = None
  vocab_size: int = 8000
  tokenizer: str = "wordpiece"
  lowercase: bool = True
  vocab_file: str = ""
  seed: int = 0

  def __post_init__(self) -> None:
    try:
      masked_lm_rows.check(self.length, self.pairs, None, self.pack, self.dupe_factor)
    except ValueError as error:
      raise ValueError("\n".join(f"data.{line}" for line in str(error).splitlines())) from error
    for key, least in dict(sequences=1, hold_out=2, vocab_size=1).items():
      if (value := getattr(self, key)) < least:
        raise ValueError(f"data.{key} is {value!r}; wanted at least {least}")
    if self.tokenizer not in KINDS:
      raise ValueError(f"data.tokenizer: unknown name {self.tokenizer!r}{nearest(self.tokenizer, KINDS)}")

  @functools.cached_property
  def _is_file(self) -> bool:
    return Path(self.dataset).exists()

  def _source(self, split: str) -> Source:
    given = {key: getattr(self, key) or None for key in ("documents", "sentences", "feature")}
    return make_source(self.dataset, **given, split=None if self._is_file else split, data_dir=self.data_dir)

  def _documents(self, split: str) -> list[list[str]]:
    """Of a split, each a list of sentences; empty ones are left out."""
    if self._is_file and split not in ("train", "val"):
      raise ValueError(f"{self.dataset} has no split {split!r}{nearest(split, ('train', 'val'))}")
    source = self._source(split)
    found = [document for chunk in source.chunks() for document in source.read(chunk) if document]
    if self._is_file:
      last = self.hold_out - 1
      found = [document for i, document in enumerate(found) if (i % self.hold_out == last) == (split == "val")]
    if not found:
      raise ValueError(f"{self.dataset} {split!r} has no document; wanted text, with {self.hold_out} of them or more")
    return found

  @functools.cached_property
  def vocabulary(self) -> Vocabulary:
    """Of the file, or trained on the training split."""
    if self.vocab_file:
      return load_vocabulary(self.vocab_file)
    lines = itertools.chain.from_iterable(self._documents(self.train_split))
    return train_vocabulary(lines, self.vocab_size, self.tokenizer, self.lowercase)

  @functools.cached_property
  def _splits(self) -> dict[str, _Made]:
    return {}

  def examples(self, split: str | None = None) -> "_Made":
    """The rows of a split, by default the training split; made once."""
    split = split or self.train_split
    if split not in self._splits:
      read = Encoder(self.vocabulary)(self._documents(split))
      rng = np.random.default_rng([self.seed, zlib.crc32(split.encode())])
      # An evaluation reads its text once.
      copies = self.dupe_factor if split == self.train_split else 1
      made = masked_lm_rows.make_rows(
        read, self.vocabulary, rng, length=self.length, pairs=self.pairs, pack=self.pack, dupe_factor=copies
      )
      self._splits[split] = _Made(made)
    return self._splits[split]

  def about(self, batch_size: int, seed: int) -> str:
    """The tokens, the rows and their padding."""
    del batch_size, seed
    rows = self.examples().made
    return _about(len(rows.tokens), len(rows), self.length)


def _about(tokens: int, rows: int, length: int) -> str:
  return f"{tokens:,} tokens in {rows:,} rows of {1 - tokens / (rows * length):.1%} padding"
