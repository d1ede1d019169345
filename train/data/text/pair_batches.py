"""Pairs of texts to batches of token pairs, source [B, S] and target [B, T]; a pure function of (seed, step).

An epoch is ceil(rows / B) batches that hold every row once, in an order made from (seed, epoch) alone; the last rows
may leave a batch that is not full. So, as with images, the position in the data *is* the step, and any number of
processes makes the same batches: process p of P has the rows [p*B/P, (p+1)*B/P) of each.

A batch is a dict of arrays, in which every sequence ends with </s> (no <s>: the objective that shifts the target adds
it): "source_ids" int32 [B, S] and "target_ids" int32 [B, T]; "source_segment_ids" and "target_segment_ids", which pair
of the row a token belongs to, 1, 2, ..., and 0 for padding; "source_position_ids" and "target_position_ids", which
start at 0 in each segment; "valid" bool [B], False for rows that hold nothing; "id" int32 [B], the place in the batch
of all processes.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from tokenizers import Tokenizer

from train.data import pipeline
from train.data.text import tokenizers as tokenizers
from zoo.errors import nearest

BATCHING = ("bucket", "pack", "pad")
TOO_LONG = ("drop", "cut")
# Packing looks for room in so many rows that were begun last: its time stays linear in the number of pairs.
OPEN_ROWS = 256
# Lengths of buckets are about multiples of it: the rows of a TPU's registers.
GRAIN = 8


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
    too_long: pairs with a side above the limit: left out or cut.
  """

  source: Side
  target: Side
  empty: int
  too_long: int

  def __len__(self) -> int:
    return len(self.source.lengths)


@functools.lru_cache(maxsize=4)
def _read(pairs: "TokenPairs", split: str, too_long: str, train: bool = False) -> Corpus:
  """Tokenises a split, once for all who ask; see `TokenPairs.train_texts` for `train`."""
  limits = pairs.source_length, pairs.target_length
  tokens, lengths, empty, long = ([], []), ([], []), 0, 0
  texts = pairs.train_texts() if train else pairs.texts(split)
  while chunk := list(itertools.islice(texts, 4096)):
    full = [pair for pair in chunk if all(pair)]
    empty += len(chunk) - len(full)
    sources, unknown = pairs.encode([source for source, _ in full])
    targets, _ = pairs.encode([target for _, target in full], unknown)
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
      f"{pairs.dataset!r} {split!r} has no pair to use: {empty} are empty on one side, {long} are longer than "
      f"data.source_length={limits[0]} or data.target_length={limits[1]} tokens"
    )
  source, target = (Side(np.concatenate(t), np.array(n)) for t, n in zip(tokens, lengths, strict=True))
  return Corpus(source, target, empty, long)


# Batches.


class TokenPairs:
  """Batches of pairs of texts, whatever the texts are: that is up to a subclass, a frozen dataclass.

  It has `dataset`, the name under which errors speak of it, `train_split` and `eval_split`, `source_length` and
  `target_length`, a `tokenizer`, and `texts`. It may have what is here by default, as fields; see `Translation`.
  """

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
  skip_corrupt = False  # a damaged file is an error: a text that cannot be read cannot be left out by itself

  def __post_init__(self):
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
  def shapes(cls, config: Mapping, model_config, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of the largest batch that `config.data` makes, without reading anything.

    Args:
      config: `name` and the fields above.
      model_config: of the model, which changes nothing here.
      batch_size: B.
    """
    del model_config
    fields = cls(**{key: value for key, value in config.items() if key != "name"})
    arrays = {"valid": jax.ShapeDtypeStruct((batch_size,), bool), "id": jax.ShapeDtypeStruct((batch_size,), np.int32)}
    for side, length in (("source", fields.source_length), ("target", fields.target_length)):
      for name in (f"{side}_ids", f"{side}_segment_ids", f"{side}_position_ids"):
        arrays[name] = jax.ShapeDtypeStruct((batch_size, length), np.int32)
    return arrays

  def check_fit(self, model_config, objective) -> None:
    """Raises ValueError where a model has not the words, the length or the special tokens of these texts.

    And where rows hold several pairs, and the objective wants one (its `one_pair_a_row`).
    """
    faults, slots = [], getattr(model_config, "copy_slots", 0)
    if self.batching == "pack" and getattr(objective, "one_pair_a_row", False):
      faults.append("data.batching='pack' puts several pairs into a row, the objective wants one: 'bucket' or 'pad'")
    if model_config.vocab_size < self.vocab_size:
      faults.append(
        f"the model has {model_config.vocab_size} words, the tokenizer {self.vocab_size}: "
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
        "--tokenizer word`, or set data.words"
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
    """What tells this tokenizer from any other."""
    return tokenizers.digest(self.tokenizer)

  @property
  def vocab_size(self) -> int:
    """Tokens: all are below it."""
    return self.tokenizer.get_vocab_size()

  def clean(self, text: str) -> str:
    """A text as the model has learned to read it."""
    return text

  def texts(self, split: str) -> Iterator[tuple[str, str]]:
    """(source, target) of every example of a split, in order; what has no text on one side is left out later."""
    raise NotImplementedError

  def train_texts(self) -> Iterator[tuple[str, str]]:
    """The same of the training split, with what is to be learned from it."""
    return self.texts(self.train_split)

  def encode(
    self, texts: Sequence[str], unknown: Sequence[list[str]] | None = None
  ) -> tuple[list[list[int]], list[list[str]]]:
    """Tokens of sources, and of each the words that tokens V, V + 1, ... stand for; or of targets, given those."""
    texts = [*map(self.clean, texts)]
    return tokenizers.encode(self.tokenizer, texts, self.copy_slots, self.source_length - 1, unknown)

  def references(self, split: str | None = None) -> list[tuple[str, str]]:
    """(source, target) of the examples that `eval_batches` has, in that order; whole, where those are cut."""
    return [pair for pair in self.texts(split or self.eval_split) if all(pair)]

  def corpus(self, split: str | None = None) -> Corpus:
    """The training split in tokens, or another one as evaluation has it."""
    if split is None:
      return _read(self, self.train_split, self.too_long, train=True)
    return _read(self, split, "cut")

  def counts(self) -> dict[str, int]:
    """Of the training split: the pairs that are used, those that are empty, and those that are too long."""
    corpus = self.corpus()
    return {"pairs": len(corpus), "empty": corpus.empty, "too_long": corpus.too_long}

  @property
  def unit(self) -> str:
    """What the speed of training is counted in: rows of a batch, which are pairs unless they are packed."""
    return "rows" if self.batching == "pack" else "pairs"

  @property
  def num_train(self) -> int:
    """Rows in an epoch: pairs, or, where they are packed, rows full of them."""
    return len(self._rows[1])

  def num_eval(self, split: str | None = None) -> int:
    """Pairs in a split, by default the evaluation split. Raises ValueError where there is none of that name."""
    return len(self.corpus(split or self.eval_split))

  @functools.cached_property
  def _rows(self) -> tuple[np.ndarray, np.ndarray]:
    """Pairs, row after row, and where each row ends."""
    corpus = self.corpus()
    if self.batching == "pack":
      return pack(corpus.source.lengths, corpus.target.lengths, self.source_length, self.target_length)
    return np.arange(len(corpus)), np.arange(1, len(corpus) + 1)

  @functools.cached_property
  def _buckets(self) -> tuple[list[tuple[int, int]], np.ndarray]:
    """The shapes (S, T) of batches, and which of them each row needs at least."""
    corpus, limits = self.corpus(), (self.source_length, self.target_length)
    if self.batching != "bucket":
      return [limits], np.zeros(self.num_train, int)
    sizes = -(-max(limits) // GRAIN)
    shapes = np.array([[-(-limit * i // sizes) for limit in limits] for i in range(sizes + 1)])
    sides = zip((corpus.source, corpus.target), shapes.T, strict=True)
    need = np.maximum(*(np.searchsorted(lengths, side.lengths) for side, lengths in sides))
    edges = cheapest_edges(np.bincount(need, minlength=sizes + 1), self.buckets)
    return [tuple(map(int, shapes[edge])) for edge in edges], np.searchsorted(edges, need)

  @property
  def batch_shapes(self) -> list[tuple[int, int]]:
    """(S, T) of all batches that there are in training, the largest last."""
    return self._buckets[0]

  def about(self, batch_size: int, seed: int) -> str:
    """What is trained on, in a line for the log."""
    counts, share = self.counts(), self.padding_share(batch_size, seed)
    text = f"{counts['pairs']:,} pairs ({counts['empty']:,} empty and {counts['too_long']:,} too long ones not counted)"
    if self.too_long == "cut":
      text = f"{counts['pairs']:,} pairs ({counts['empty']:,} empty ones not counted, {counts['too_long']:,} cut)"
    return f"{text} in batches of {share:.1%} padding"

  def _epochs(self, batch_size: int, seed: int) -> "Epochs":
    return Epochs(self._buckets[1], len(self.batch_shapes), batch_size, seed)

  def padding_share(self, batch_size: int, seed: int = 0, epoch: int = 0) -> float:
    """Which part of an epoch's batches, source and target, is padding."""
    corpus = self.corpus()
    _, shapes = self._epochs(batch_size, seed).epoch(epoch)
    slots = sum(batch_size * sum(self.batch_shapes[shape]) for shape in shapes)
    return float(1 - (corpus.source.lengths.sum() + corpus.target.lengths.sum()) / slots)

  def train_batches(
    self, batch_size: int, seed: int, first_step: int = 0, process_index: int = 0, process_count: int = 1
  ) -> pipeline.Batches:
    """The part of one process of an endless row of batches.

    Args:
      batch_size: rows of all processes together.
      seed: of the order.
      first_step: the step of the first batch.
      process_index: which process this is.
      process_count: of how many.

    Raises:
      ValueError: a batch size that the processes cannot share, or larger than the epoch.
    """
    pipeline.check_share(batch_size, process_index, process_count)
    if batch_size > self.num_train:
      raise ValueError(
        f"batch_size={batch_size}, but {self.dataset!r} {self.train_split!r} has {self.num_train} rows of pairs"
      )
    epochs, corpus, part = self._epochs(batch_size, seed), self.corpus(), batch_size // process_count
    pairs, ends = self._rows

    def make(step: int) -> pipeline.Batch:
      epoch, place = divmod(step, epochs.steps)
      batches, shapes = epochs.epoch(epoch)
      mine = batches[place, process_index * part :][:part]
      rows = [pairs[ends[row - 1] if row else 0 : ends[row]] if row >= 0 else () for row in mine]
      return collate(corpus, rows, *self.batch_shapes[shapes[place]], process_index * part)

    return pipeline.prefetch(make, first_step)

  def eval_batches(
    self,
    batch_size: int,
    split: str | None = None,
    process_index: int = 0,
    process_count: int = 1,
    limit: int | None = None,
  ) -> pipeline.Batches:
    """The part of one process of batches that hold every pair of a split once, one a row, in order.

    Args:
      batch_size: of all processes together; all get equally many batches, of rows of full length.
      split: by default `eval_split`.
      process_index: which process this is.
      process_count: of how many.
      limit: only so many pairs, the first ones.

    Raises:
      ValueError: see `train_batches`.
    """
    pipeline.check_share(batch_size, process_index, process_count)
    corpus, part = self.corpus(split or self.eval_split), batch_size // process_count
    end = len(corpus) if limit is None else min(limit, len(corpus))

    def make(step: int) -> pipeline.Batch:
      first = step * batch_size + process_index * part
      rows = [(i,) if i < end else () for i in range(first, first + part)]
      return collate(corpus, rows, self.source_length, self.target_length, process_index * part)

    return pipeline.prefetch(make, 0, -(-end // batch_size))


class Epochs:
  """Which rows are in which batch: the same for all processes.

  Args:
    row_shapes: the number of the smallest shape that a row fits in, for each row.
    count: how many shapes there are.
    batch_size: B.
    seed: of the order.
  """

  def __init__(self, row_shapes: np.ndarray, count: int, batch_size: int, seed: int):
    self.batch_size, self.seed = batch_size, seed
    self._row_shapes, self._count = row_shapes, count
    self.steps = -(-len(row_shapes) // batch_size)
    self.epoch = functools.lru_cache(maxsize=2)(self._epoch)

  def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of every batch [steps, B], -1 for none, and the number of its shape [steps]."""
    rng = np.random.default_rng((self.seed, epoch))
    order = rng.permutation(len(self._row_shapes))
    full, rest = [], []
    for shape in range(self._count):
      mine = order[self._row_shapes[order] == shape]
      even = len(mine) - len(mine) % self.batch_size
      full.append(mine[:even].reshape(-1, self.batch_size))
      rest.append(mine[even:])
    # What is left in the buckets shares batches with its neighbours, from short to long, and so the epoch is whole.
    rest = np.concatenate(rest)
    rest = np.pad(rest, (0, -len(rest) % self.batch_size), constant_values=-1).reshape(-1, self.batch_size)
    batches = np.concatenate([*full, rest])
    shapes = np.where(batches >= 0, self._row_shapes[batches], 0).max(1)
    mixed = rng.permutation(len(batches))
    return batches[mixed], shapes[mixed]


def cheapest_edges(counts: Sequence[int], buckets: int) -> list[int]:
  """The sizes of at most so many buckets that cost the least padding, the last of which is the largest size.

  Args:
    counts: how many rows need the sizes 0, 1, 2, ...
    buckets: how many there may be.

  Returns:
    sizes, rising. Each row goes into the smallest bucket that is not below its need.
  """
  below = np.cumsum(counts).tolist()

  @functools.cache
  def best(last: int, left: int) -> tuple[int, tuple[int, ...]]:
    """Cost and edges for the rows that need at most `last`."""
    options = [(below[last] * last, (last,))]
    for edge in range(1, last) if left > 1 else ():
      cost, edges = best(edge, left - 1)
      options.append((cost + (below[last] - below[edge]) * last, (*edges, last)))
    return min(options)

  return list(best(len(below) - 1, buckets)[1])


def pack(
  source_lengths: np.ndarray, target_lengths: np.ndarray, source_length: int, target_length: int
) -> tuple[np.ndarray, np.ndarray]:
  """Puts pairs into rows, each into the first row of those still open that has room for both of its sides.

  First fit (Johnson 1973) in two dimensions, over the `OPEN_ROWS` rows begun last. It depends on nothing but the
  lengths, so an epoch always has the same rows, and only their order changes.

  Returns:
    the pairs, row after row, and where each row ends.
  """
  rows: list[list[int]] = []
  room = np.zeros((OPEN_ROWS, 2), int)  # of row i, at i % OPEN_ROWS
  # Mixed, since texts that stand together have similar lengths, which fill a row badly.
  for pair in np.random.default_rng(0).permutation(len(source_lengths)).tolist():
    size = source_lengths[pair], target_lengths[pair]
    fits = np.flatnonzero((room >= size).all(1))
    if len(fits):
      oldest = len(rows) % OPEN_ROWS  # its place is taken next
      place = fits[np.argmin((fits - oldest) % OPEN_ROWS)]
      row = len(rows) - OPEN_ROWS + (place - oldest) % OPEN_ROWS
    else:
      row, place = len(rows), len(rows) % OPEN_ROWS
      rows.append([])
      room[place] = source_length, target_length
    rows[row].append(pair)
    room[place] -= size
  return np.array(list(itertools.chain.from_iterable(rows))), np.cumsum([len(row) for row in rows])


def collate(
  corpus: Corpus, rows: Sequence[Sequence[int]], source_length: int, target_length: int, first_id: int = 0
) -> pipeline.Batch:
  """Arrays of the pairs in each row; see the top of this file."""
  batch = {"valid": np.array([len(row) > 0 for row in rows]), "id": np.arange(len(rows), dtype=np.int32) + first_id}
  for name, side, length in (("source", corpus.source, source_length), ("target", corpus.target, target_length)):
    tokens, segments, positions = np.zeros((3, len(rows), length), np.int32)
    for i, row in enumerate(rows):
      start = 0
      for segment, pair in enumerate(row, 1):
        sequence = side[pair]
        here = slice(start, start + len(sequence))
        tokens[i, here], segments[i, here], positions[i, here] = sequence, segment, np.arange(len(sequence))
        start = here.stop
    batch |= {f"{name}_ids": tokens, f"{name}_segment_ids": segments, f"{name}_position_ids": positions}
  return batch
