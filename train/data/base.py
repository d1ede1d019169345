"""`Dataset`: what all kinds of data share, from examples to batches.

A kind of data gives its examples (`examples`), makes one example (`example`, for instance decoded and augmented), and
puts examples together (`collate`). Sharding over processes, order and epochs, padding of the last batch, prefetching
and workers are here. Process p of P makes the rows [p*B/P, (p+1)*B/P) of every batch of B rows, and the batch of step s
is a pure function of the seed and s (`train.data.order`).

A batch is a dict of arrays. Every kind has "valid" bool [B], False for padding, and "id" int32 [B], the position in the
batch of all processes; the rest is documented by the kind.
"""

import abc
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Self

import grain
import jax
import numpy as np

from train.data.order import InOrder, Order, Stream
from train.data.pipeline import Batch, Batches, check_share, start_workers

# How many batches there may be: more than any training has steps.
ENDLESS = 2**62


class Dataset(abc.ABC):
  """One kind of data: a frozen dataclass whose fields are `config.data`.

  Attributes:
    dataset: the set's name, in errors too.
    train_split, eval_split: what to train and to evaluate on.
    unit: what a row of a batch is, in which the speed of training is counted.
    skip_corrupt: whether unreadable examples become rows with valid=False instead of errors.
    workers: processes that make batches; with 0, threads of this process do.
    chunk_size: rows that a thread or worker makes at a time, at most; 0 for all rows of this process.
  """

  dataset: str
  train_split: str
  eval_split: str
  unit = "examples"
  skip_corrupt = False
  workers = 0
  chunk_size = 0

  # What a kind of data gives.

  @abc.abstractmethod
  def examples(self, split: str | None = None) -> Sequence:
    """The examples of a split as evaluation has them; None: of the training split as training has them.

    Raises:
      ValueError: no such split; the nearest is named.
    """

  def example(self, examples: Sequence, index: int, seed: Sequence[int] | None) -> Any:
    """One example; `seed` is what random augmentation is made from, None in evaluation."""
    del seed
    return examples[index]

  @abc.abstractmethod
  def collate(self, rows: Sequence[Any], numbers: np.ndarray, length: Any) -> Batch:
    """Arrays of examples.

    Args:
      rows: examples; None for padding.
      numbers: of the examples in the split; of padding, those that would come next.
      length: that rows are padded to, as `train_order` and `eval_order` specify it.
    """

  @classmethod
  @abc.abstractmethod
  def shapes(cls, config: Mapping, model_config: Any, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of the largest batch that `config.data` makes, without reading the data.

    Args:
      config: `name` and the fields.
      model_config: of the model.
      batch_size: B.
    """

  @abc.abstractmethod
  def check_fit(self, model_config: Any, objective: object) -> None:
    """Raises ValueError where a model or an objective does not fit this data; all faults are named."""

  def about(self, batch_size: int, seed: int) -> str:
    """The training data in a line for the log; empty where there is none."""
    del batch_size, seed
    return ""

  # What a kind of data may change.

  def train_order(self, examples: Sequence, batch_size: int, seed: int) -> Order:
    """The order in training."""
    return Stream(batch_size, len(examples), seed)

  def eval_order(self, examples: Sequence, batch_size: int, end: int) -> Order:
    """The order in an evaluation of the first `end` examples."""
    del examples
    return InOrder(batch_size, end)

  def count_threads(self, examples: Sequence) -> int:
    """Threads that make chunks of batches."""
    del examples
    return 1

  def preload(self, examples: Sequence) -> None:
    """Reads what threads share, before several of them want it at once."""
    del examples

  # What all kinds of data have.

  @classmethod
  def from_config(cls, config: Mapping) -> Self:
    """From `config.data`, with its name."""
    return cls(**{key: tuple(v) if isinstance(v, list) else v for key, v in config.items() if key != "name"})

  @property
  def num_train(self) -> int:
    """Rows in an epoch of training."""
    return len(self.examples())

  def num_eval(self, split: str | None = None) -> int:
    """Examples in a split, by default `eval_split`. Raises ValueError where there is none of that name."""
    return len(self.examples(split or self.eval_split))

  def train_batches(
    self, batch_size: int, seed: int, first_step: int = 0, process_index: int = 0, process_count: int = 1
  ) -> Batches:
    """One process's share of an endless stream of batches.

    Args:
      batch_size: of all processes together.
      seed: of the order and of random augmentation.
      first_step: the step of the first batch.
      process_index: which process this is.
      process_count: of how many.

    Raises:
      ValueError: a batch size that the processes cannot share, or larger than the split; later, from `example`.
    """
    check_share(batch_size, process_index, process_count)
    examples = self.examples()
    if batch_size > len(examples):
      raise ValueError(
        f"batch_size={batch_size}, but {self.dataset!r} {self.train_split!r} has {len(examples)} {self.unit}"
      )
    order = self.train_order(examples, batch_size, seed)
    return _Share(self, examples, order, batch_size, process_index, process_count, seed).batches(first_step, ENDLESS)

  def eval_batches(
    self,
    batch_size: int,
    split: str | None = None,
    process_index: int = 0,
    process_count: int = 1,
    limit: int | None = None,
  ) -> Batches:
    """One process's share of batches that hold every example of a split once, in order; the last is padded.

    Args:
      batch_size: of all processes together; all get equally many batches.
      split: by default `eval_split`.
      process_index: which process this is.
      process_count: of how many.
      limit: only the first so many examples.

    Raises:
      ValueError: see `train_batches` and `examples`.
    """
    check_share(batch_size, process_index, process_count)
    examples = self.examples(split or self.eval_split)
    end = len(examples) if limit is None else min(limit, len(examples))
    order = self.eval_order(examples, batch_size, end)
    share = _Share(self, examples, order, batch_size, process_index, process_count, None)
    return share.batches(0, -(-end // batch_size))


@dataclasses.dataclass(frozen=True)
class _Share:
  """What one process makes of all batches, in chunks of work; a worker process gets a copy."""

  data: Dataset
  examples: Sequence
  order: Order
  batch_size: int
  process_index: int
  process_count: int
  seed: int | None  # None in evaluation

  @property
  def size(self) -> int:
    """Rows of this process in a batch."""
    return self.batch_size // self.process_count

  @functools.cached_property
  def chunk(self) -> int:
    """Rows in a chunk of work: a divisor of `size`."""
    most = min(self.size, self.data.chunk_size or self.size)
    return next(n for n in range(most, 0, -1) if self.size % n == 0)

  def __call__(self, number: int) -> Batch:
    """The chunk of work of that number."""
    step, chunk = divmod(number, self.size // self.chunk)
    first = self.process_index * self.size + chunk * self.chunk
    positions = step * self.batch_size + first + np.arange(self.chunk)
    numbers, length = self.order.take(step, first, self.chunk)
    rows = [self._example(*pair) for pair in zip(numbers.tolist(), positions.tolist(), strict=True)]
    batch = {"valid": numbers >= 0} | self.data.collate(rows, np.where(numbers < 0, positions, numbers), length)
    return batch | {"id": np.arange(first, first + self.chunk, dtype=np.int32)}

  def _example(self, number: int, position: int) -> Any:
    if number < 0:
      return None
    return self.data.example(self.examples, number, None if self.seed is None else (self.seed, position))

  def batches(self, first_step: int, end_step: int) -> Batches:
    """The batches of these steps, made by threads or worker processes ahead of time."""
    chunks, threads = self.size // self.chunk, self.data.count_threads(self.examples)
    if not self.data.workers:
      self.data.preload(self.examples)
    work = grain.MapDataset.range(first_step * chunks, min(end_step * chunks, ENDLESS)).map(self)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2, 2 * threads))
    work = work.to_iter_dataset(options)
    if self.data.workers:
      work = start_workers(work, self.data.workers)
    return Batches(work, chunks)
