"""Pairs of texts to batches of token pairs, source [B, S] and target [B, T].

A row holds one pair, or several (`batching="pack"`); rows of similar length share batches (`train.data.order.Buckets`).

A batch (`train.data.base`) has, of sequences that end with </s> (no <s>: the objective that shifts the target adds it),
"source_ids" int32 [B, S] and "target_ids" int32 [B, T]; "source_segment_ids" and "target_segment_ids", which pair
of the row a token belongs to, 1, 2, ..., and 0 for padding; "source_position_ids" and "target_position_ids", which
start at 0 in each segment.
"""

import abc
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tokenizers import Tokenizer

from train.data.base import Dataset
from train.data.order import Buckets, InOrder, cheapest_edges
from train.data.pipeline import Batch
from train.data.text import tokenizers as tokenizers
from zoo.errors import nearest

BATCHING = ("bucket", "pack", "pad")
TOO_LONG = ("drop", "truncate")
# Packing considers only the rows that were begun last, so many: its time is linear in the number of pairs.
OPEN_ROWS = 256
# Lengths of buckets are about multiples of it: the rows of a TPU's registers.
LENGTH_MULTIPLE = 8


# Tokens in memory.


@dataclasses.dataclass(frozen=True)
class Side:
  """The sequences of one language, one after the other: sequence i is `tokens[ends[i] - lengths[i] : ends[i]]`."""

  tokens: np.ndarray
  lengths: np.ndarray

  @functools.cached_property
  def ends(self) -> np.ndarray:
    """Where each sequence ends."""
    return np.cumsum(self.lengths)

  def __getitem__(self, index: int) -> np.ndarray:
    return self.tokens[self.ends[index] - self.lengths[index] : self.ends[index]]


@dataclasses.dataclass(frozen=True)
class Corpus:
  """A tokenised split.

  Attributes:
    source, target: its sequences.
    empty: pairs that were left out, since one side has no text.
    too_long: pairs with a side above the limit: left out or truncated.
  """

  source: Side
  target: Side
  empty: int
  too_long: int

  def __len__(self) -> int:
    return len(self.source.lengths)


@functools.lru_cache(maxsize=4)
def _tokenise(data: "Seq2Seq", split: str, too_long: str, train: bool = False) -> Corpus:
  """Tokenises a split, once per process; see `Seq2Seq.train_texts` for `train`."""
  limits = data.source_length, data.target_length
  tokens, lengths, empty, long = ([], []), ([], []), 0, 0
  texts = data.train_texts() if train else data.texts(split)
  while chunk := list(itertools.islice(texts, 4096)):
    full = [pair for pair in chunk if all(pair)]
    empty += len(chunk) - len(full)
    sources, unknown = data.encode([source for source, _ in full])
    targets, _ = data.encode([target for _, target in full], unknown)
    for pair in zip(sources, targets, strict=True):
      if above := any(len(ids) > limit for ids, limit in zip(pair, limits, strict=True)):
        long += 1
        if too_long == "drop":
          continue
      for ids, limit, t, n in zip(pair, limits, tokens, lengths, strict=True):
        kept = [*ids[: limit - 1], tokenizers.EOS] if above and len(ids) > limit else ids
        t.append(np.array(kept, np.int32))
        n.append(len(kept))
  if not lengths[0]:
    raise ValueError(
      f"{data.dataset!r} {split!r} has no pair to use: {empty} are empty on one side, {long} are longer than "
      f"data.source_length={limits[0]} or data.target_length={limits[1]} tokens"
    )
  source, target = (Side(np.concatenate(t), np.array(n)) for t, n in zip(tokens, lengths, strict=True))
  return Corpus(source, target, empty, long)


@dataclasses.dataclass(frozen=True, eq=False)
class Rows(Sequence):
  """Rows of pairs: row i has the pairs `order[ends[i - 1] : ends[i]]`, each as (source tokens, target tokens)."""

  corpus: Corpus
  order: np.ndarray
  ends: np.ndarray

  def __len__(self) -> int:
    return len(self.ends)

  def __getitem__(self, index: int) -> list[tuple[np.ndarray, np.ndarray]]:
    pairs = self.order[self.ends[index - 1] if index else 0 : self.ends[index]]
    return [(self.corpus.source[pair], self.corpus.target[pair]) for pair in pairs.tolist()]


# Batches.


class Seq2Seq(Dataset):
  """Pairs of texts. A subclass has `texts`, a `tokenizer`, and as fields these attributes; see `Translation`."""

  dataset: str
  train_split: str
  eval_split: str
  source_length: int
  target_length: int
  tokenizer: Tokenizer

  batching = "pad"
  buckets = 1
  too_long = "drop"
  copy_slots = 0

  def __post_init__(self) -> None:
    for key, known in (("batching", BATCHING), ("too_long", TOO_LONG)):
      if (value := getattr(self, key)) not in known:
        raise ValueError(f"data.{key}: unknown name {value!r}{nearest(str(value), known)}")
    self._check_numbers(dict(source_length=2, target_length=2, buckets=1, copy_slots=0))

  def _check_numbers(self, at_least: Mapping[str, int]) -> None:
    for key, least in at_least.items():
      value = getattr(self, key)
      if not isinstance(value, int) or value < least:
        raise ValueError(f"data.{key} is {value!r}; wanted a whole number, at least {least}")

  @classmethod
  def shapes(cls, config: Mapping, model_config: Any, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of the largest batch that `config.data` makes, without reading anything.

    Args:
      config: `name` and the fields above.
      model_config: not used.
      batch_size: B.
    """
    del model_config
    fields = cls.from_config(config)
    arrays = {"valid": jax.ShapeDtypeStruct((batch_size,), bool), "id": jax.ShapeDtypeStruct((batch_size,), np.int32)}
    for side, length in (("source", fields.source_length), ("target", fields.target_length)):
      for name in (f"{side}_ids", f"{side}_segment_ids", f"{side}_position_ids"):
        arrays[name] = jax.ShapeDtypeStruct((batch_size, length), np.int32)
    return arrays

  def check_fit(self, model_config: Any, objective: object) -> None:
    """Raises ValueError where a model has not the vocabulary, the length or the special tokens of these texts.

    And where rows hold several pairs, and the objective takes one (its `one_pair_per_row`).
    """
    faults, slots = [], getattr(model_config, "copy_slots", 0)
    if self.batching == "pack" and getattr(objective, "one_pair_per_row", False):
      faults.append(
        "data.batching='pack' puts several pairs into a row, the objective takes one: set 'bucket' or 'pad'"
      )
    if model_config.vocab_size < self.vocab_size:
      faults.append(
        f"the model's vocab_size is {model_config.vocab_size}, the tokenizer's {self.vocab_size}: "
        f"set model.vocab_size={self.vocab_size}"
      )
    elif self.copy_slots and model_config.vocab_size > self.vocab_size:
      faults.append(
        f"words to copy are tokens from {self.vocab_size} on in the data, from {model_config.vocab_size} on in the "
        f"model: set model.vocab_size={self.vocab_size}"
      )
    if slots != self.copy_slots:
      faults.append(
        f"the model copies up to {slots} unknown words of a source (model.copy_slots), the data has up to "
        f"{self.copy_slots} (data.copy_slots): set both alike, and model.head=copy"
      )
    if self.copy_slots and not tokenizers.is_word_level(self.tokenizer):
      faults.append(
        f"data.copy_slots is {self.copy_slots}, but to a tokenizer of bytes no word is unknown: `zoo prepare "
        "--tokenizer word`, or set data.word_vocab_size"
      )
    if (length := max(self.source_length, self.target_length)) > model_config.max_length:
      faults.append(
        f"rows have up to {length} tokens, the model's max_length is {model_config.max_length}: set model.max_length, "
        "or data.source_length and data.target_length"
      )
    special = dict(pad_token_id=tokenizers.PAD, bos_token_id=tokenizers.BOS, eos_token_id=tokenizers.EOS)
    if found := {key: n for key in special if (n := getattr(model_config, key)) != special[key]}:
      faults.append(f"the model's special tokens are {found}, the tokenizer's {special}")
    if faults:
      raise ValueError("\n".join(faults))

  @property
  def tokenizer_digest(self) -> str:
    """Identifies the tokenizer: another one has another digest."""
    return tokenizers.digest(self.tokenizer)

  @property
  def vocab_size(self) -> int:
    """Tokens: all are below it."""
    return self.tokenizer.get_vocab_size()

  def clean(self, text: str) -> str:
    """A text as the model is trained on it."""
    return text

  @abc.abstractmethod
  def texts(self, split: str) -> Iterator[tuple[str, str]]:
    """(source, target) of every example of a split, in order; pairs with an empty side are left out later."""

  def train_texts(self) -> Iterator[tuple[str, str]]:
    """The same of the training split, with the targets to learn."""
    return self.texts(self.train_split)

  def encode(
    self, texts: Sequence[str], unknown: Sequence[list[str]] | None = None
  ) -> tuple[list[list[int]], list[list[str]]]:
    """Tokens of sources, and for each the words of its tokens V, V + 1, ...; or of targets, given these words."""
    texts = [*map(self.clean, texts)]
    return tokenizers.encode(self.tokenizer, texts, self.copy_slots, self.source_length - 1, unknown)

  def references(self, split: str | None = None) -> list[tuple[str, str]]:
    """(source, target) of the examples that `eval_batches` has, in that order; whole, where those are truncated."""
    return [pair for pair in self.texts(split or self.eval_split) if all(pair)]

  def corpus(self, split: str | None = None) -> Corpus:
    """The training split in tokens, or another one as evaluation has it."""
    if split is None:
      return _tokenise(self, self.train_split, self.too_long, train=True)
    return _tokenise(self, split, "truncate")

  def counts(self) -> dict[str, int]:
    """Of the training split: the pairs that are used, those that are empty, and those that are too long."""
    corpus = self.corpus()
    return {"pairs": len(corpus), "empty": corpus.empty, "too_long": corpus.too_long}

  @property
  def unit(self) -> str:
    """What the speed of training is counted in: rows of a batch, which are pairs unless they are packed."""
    return "rows" if self.batching == "pack" else "pairs"

  @functools.cached_property
  def _train_rows(self) -> Rows:
    corpus = self.corpus()
    if self.batching == "pack":
      return Rows(corpus, *pack(corpus.source.lengths, corpus.target.lengths, self.source_length, self.target_length))
    return Rows(corpus, np.arange(len(corpus)), np.arange(1, len(corpus) + 1))

  def examples(self, split: str | None = None) -> Rows:
    """Rows of a split, each of one pair; packed in training with `batching="pack"`."""
    if split is None:
      return self._train_rows
    corpus = self.corpus(split)
    return Rows(corpus, np.arange(len(corpus)), np.arange(1, len(corpus) + 1))

  @functools.cached_property
  def _buckets(self) -> tuple[list[tuple[int, int]], np.ndarray]:
    """The shapes (S, T) of batches, and which of them each row needs at least."""
    corpus, limits = self.corpus(), (self.source_length, self.target_length)
    if self.batching != "bucket":
      return [limits], np.zeros(len(self._train_rows), int)
    sizes = -(-max(limits) // LENGTH_MULTIPLE)
    shapes = np.array([[-(-limit * i // sizes) for limit in limits] for i in range(sizes + 1)])
    sides = zip((corpus.source, corpus.target), shapes.T, strict=True)
    need = np.maximum(*(np.searchsorted(lengths, side.lengths) for side, lengths in sides))
    edges = cheapest_edges(np.bincount(need, minlength=sizes + 1), self.buckets)
    return [(int(S), int(T)) for S, T in shapes[edges]], np.searchsorted(edges, need)

  @property
  def batch_shapes(self) -> list[tuple[int, int]]:
    """(S, T) of all batches that there are in training, the largest last."""
    return self._buckets[0]

  def about(self, batch_size: int, seed: int) -> str:
    """The pairs and their padding."""
    counts, share = self.counts(), self.padding_share(batch_size, seed)
    text = f"{counts['pairs']:,} pairs ({counts['empty']:,} empty and {counts['too_long']:,} too long ones not counted)"
    if self.too_long == "truncate":
      text = f"{counts['pairs']:,} pairs ({counts['empty']:,} empty ones not counted, {counts['too_long']:,} truncated)"
    return f"{text} in batches of {share:.1%} padding"

  def train_order(self, examples: Rows, batch_size: int, seed: int) -> Buckets:
    """Rows of similar length together, if `batching` is "bucket"."""
    del examples
    return Buckets(batch_size, self._buckets[1], self.batch_shapes, seed)

  def eval_order(self, examples: Rows, batch_size: int, end: int) -> InOrder:
    """All batches of full length."""
    return InOrder(batch_size, end, lambda begin, end: (self.source_length, self.target_length))

  def padding_share(self, batch_size: int, seed: int = 0, epoch: int = 0) -> float:
    """The share of padding in an epoch's batches, source and target."""
    corpus = self.corpus()
    _, shapes = Buckets(batch_size, self._buckets[1], self.batch_shapes, seed).epoch(epoch)
    slots = sum(batch_size * sum(self.batch_shapes[shape]) for shape in shapes)
    return float(1 - (corpus.source.lengths.sum() + corpus.target.lengths.sum()) / slots)

  def collate(self, rows: Sequence[list | None], numbers: np.ndarray, length: tuple[int, int]) -> Batch:
    """Arrays of the pairs in each row, padded to (source length, target length); see the top of this file."""
    del numbers
    batch = {}
    for side, (name, size) in enumerate(zip(("source", "target"), length, strict=True)):
      tokens, segments, positions = np.zeros((3, len(rows), size), np.int32)
      for i, row in enumerate(rows):
        start = 0
        for segment, pair in enumerate(row or (), 1):
          here = slice(start, start + len(pair[side]))
          tokens[i, here], segments[i, here], positions[i, here] = pair[side], segment, np.arange(len(pair[side]))
          start = here.stop
      batch |= {f"{name}_ids": tokens, f"{name}_segment_ids": segments, f"{name}_position_ids": positions}
    return batch


def pack(
  source_lengths: np.ndarray, target_lengths: np.ndarray, source_length: int, target_length: int
) -> tuple[np.ndarray, np.ndarray]:
  """Puts pairs into rows, each into the first row of those still open that has room for both of its sides.

  First fit (Johnson 1973) in two dimensions, over the `OPEN_ROWS` rows begun last. It depends on the
  lengths alone, so every epoch has the same rows, in another order.

  Returns:
    the pairs, row after row, and where each row ends.
  """
  rows: list[list[int]] = []
  room = np.zeros((OPEN_ROWS, 2), int)  # of row i, at i % OPEN_ROWS
  # Shuffled, since neighbouring texts have similar lengths, which fill a row badly.
  for pair in np.random.default_rng(0).permutation(len(source_lengths)).tolist():
    size = source_lengths[pair], target_lengths[pair]
    fits = np.flatnonzero((room >= size).all(1))
    if len(fits):
      oldest = len(rows) % OPEN_ROWS  # replaced next
      slot = fits[np.argmin((fits - oldest) % OPEN_ROWS)]
      row = len(rows) - OPEN_ROWS + (slot - oldest) % OPEN_ROWS
    else:
      row, slot = len(rows), len(rows) % OPEN_ROWS
      rows.append([])
      room[slot] = source_length, target_length
    rows[row].append(pair)
    room[slot] -= size
  return np.array(list(itertools.chain.from_iterable(rows))), np.cumsum([len(row) for row in rows])
