"""Algorithmic tasks: to copy, reverse or sort a sequence of symbols."""

import dataclasses
import functools
import itertools
import string
from collections.abc import Iterator

import numpy as np
from tokenizers import Tokenizer

from train.data.text import tokenizers as tokenizers
from train.data.text.seq2seq import Seq2Seq
from zoo.errors import nearest

TASKS = {"copy": list, "reverse": lambda symbols: symbols[::-1], "sort": sorted}


@dataclasses.dataclass(frozen=True)
class Algorithmic(Seq2Seq):
  """Random sequences of symbols: what `config.data = dict(name="algorithmic", ...)` makes.

  All are different, and those of the split "eval" are not in the split "train". A text is the symbols with spaces
  between, such as "c a b"; they are letters, or words of several letters where there are more of them.

  Attributes:
    task: what becomes of a sequence, one of `TASKS`.
    symbols: how many there are in the vocabulary.
    unseen: how many symbols are not in the vocabulary: a model can only copy them.
    min_length, max_length: symbols in a sequence; every length is as frequent.
    train_size, eval_size: sequences in a split.
    sequence_seed: of the sequences; their order depends on the run's seed.
    copy_slots: see `train.data.text.translation.Translation`.

  Raises:
    ValueError: any of the above is not what it should be.
  """

  task: str
  symbols: int = 20
  unseen: int = 0
  min_length: int = 3
  max_length: int = 10
  train_size: int = 50_000
  eval_size: int = 500
  sequence_seed: int = 0
  copy_slots: int = 0

  train_split, eval_split = "train", "eval"

  def __post_init__(self) -> None:
    if self.task not in TASKS:
      raise ValueError(f"data.task: unknown name {self.task!r}{nearest(str(self.task), TASKS)}")
    self._check_numbers(dict(symbols=1, unseen=0, min_length=1, train_size=1, eval_size=1, sequence_seed=0))
    self._check_numbers(dict(max_length=self.min_length))
    if self.task == "sort" and self.unseen:
      raise ValueError(f"data.unseen is {self.unseen}, but sorting needs all symbols in the vocabulary: wanted 0")
    # Half of all at most, or drawing new ones would take long.
    possible = sum((self.symbols + self.unseen) ** n for n in range(self.min_length, self.max_length + 1)) // 2
    if (wanted := self.train_size + self.eval_size) > possible:
      raise ValueError(
        f"data.train_size and data.eval_size are {wanted:,} sequences together; wanted at most {possible:,}, half of "
        f"all of {self.min_length} to {self.max_length} out of {self.symbols + self.unseen} symbols"
      )
    super().__post_init__()

  @property
  def dataset(self) -> str:
    """What errors call it."""
    return f"sequences to {self.task}"

  @property
  def source_length(self) -> int:
    """Tokens in a row of sources, with </s>."""
    return self.max_length + 1

  @property
  def target_length(self) -> int:
    """Tokens in a row of targets, with </s>."""
    return self.source_length

  @property
  def unit(self) -> str:
    """What the speed of training is counted in."""
    return "sequences"

  @functools.cached_property
  def names(self) -> list[str]:
    """The symbols in their order, those that the vocabulary has not at the end."""
    count = self.symbols + self.unseen
    width = len(np.base_repr(count - 1, len(string.ascii_lowercase)))
    return ["".join(w) for w in itertools.islice(itertools.product(string.ascii_lowercase, repeat=width), count)]

  @functools.cached_property
  def tokenizer(self) -> Tokenizer:
    """A token for each symbol of the vocabulary."""
    return tokenizers.word_tokenizer(self.names[: self.symbols])

  def texts(self, split: str) -> Iterator[tuple[str, str]]:
    """(source, target) of every sequence of a split.

    Raises:
      ValueError: an unknown split.
    """
    ends = dict(eval=(0, self.eval_size), train=(self.eval_size, self.eval_size + self.train_size))
    if split not in ends:
      raise ValueError(f"{self.dataset!r} has no split {split!r}{nearest(split, ends)}")
    for sequence in self._sequences[slice(*ends[split])]:
      source = [self.names[symbol] for symbol in sequence]
      yield " ".join(source), " ".join(TASKS[self.task](source))

  @functools.cached_property
  def _sequences(self) -> list[tuple[int, ...]]:
    """As many different ones as there are to be, in the order they were drawn: the first ones are for evaluation."""
    rng, found = np.random.default_rng(self.sequence_seed), {}
    while len(found) < self.train_size + self.eval_size:
      lengths = rng.integers(self.min_length, self.max_length + 1, 4096)
      drawn = rng.integers(self.symbols + self.unseen, size=(4096, self.max_length)).tolist()
      found |= dict.fromkeys(tuple(row[:length]) for row, length in zip(drawn, lengths, strict=True))
    return [*found][: self.train_size + self.eval_size]
