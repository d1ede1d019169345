"""The order of examples: step -> which examples are in the batch, as a pure function of the seed and the step.

So the position in the data *is* the step: nothing needs saving to resume, and no number of processes, workers or
threads changes the order.
"""

import abc
import functools
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np


class Order(abc.ABC):
  """Which examples each batch holds. `length` is the length that its rows are padded to, where that varies."""

  @abc.abstractmethod
  def take(self, step: int, first: int, count: int) -> tuple[np.ndarray, Any]:
    """The numbers of the examples [first, first + count) of a batch, -1 for padding; and the batch's length."""


class InOrder(Order):
  """Every example once, in order; the last batch is padded. For evaluation.

  Args:
    batch_size: of all processes together.
    end: how many examples there are.
    length: from the range of a batch's examples to its length.
  """

  def __init__(self, batch_size: int, end: int, length: Callable[[int, int], Any] | None = None) -> None:
    self.batch_size, self.end, self._length = batch_size, end, length

  def take(self, step: int, first: int, count: int) -> tuple[np.ndarray, Any]:
    begin = step * self.batch_size
    positions = begin + first + np.arange(count)
    length = self._length and self._length(begin, min(begin + self.batch_size, self.end))
    return np.where(positions < self.end, positions, -1), length


class Stream(Order):
  """One endless stream: all examples, shuffled again every epoch, which takes no memory; batches cross epochs."""

  def __init__(self, batch_size: int, count: int, seed: int) -> None:
    self.batch_size = batch_size
    self._count, self._seed = count, seed

  @functools.cached_property
  def _order(self) -> grain.MapDataset:
    # Grain adds the epoch to its seed, so the seeds 0, 1, 2, ... themselves would share their epochs.
    seed = int(np.random.SeedSequence(self._seed).generate_state(1)[0])
    return grain.MapDataset.range(self._count).shuffle(seed=seed).repeat()

  def take(self, step: int, first: int, count: int) -> tuple[np.ndarray, Any]:
    begin = step * self.batch_size + first
    return np.array([self._order[position] for position in range(begin, begin + count)]), None


class Permutations(Order):
  """An endless stream as well; each epoch is a permutation in memory, made from (seed, epoch)."""

  def __init__(self, batch_size: int, count: int, seed: int) -> None:
    self.batch_size, self._count = batch_size, count
    self._epoch = functools.lru_cache(maxsize=2)(lambda epoch: np.random.default_rng((seed, epoch)).permutation(count))

  def take(self, step: int, first: int, count: int) -> tuple[np.ndarray, Any]:
    begin = step * self.batch_size + first
    positions = (divmod(position, self._count) for position in range(begin, begin + count))
    return np.array([self._epoch(epoch)[position] for epoch, position in positions]), None


class Buckets(Order):
  """Batches of rows of similar length. An epoch holds every row once, in an order made from (seed, epoch) alone.

  An epoch has ceil(rows / B) batches. What a bucket leaves over shares batches with its neighbours, so that at most one
  batch of an epoch is padded.

  Args:
    batch_size: B.
    row_buckets: for each row the number of the smallest bucket it fits in.
    lengths: of the buckets, rising.
    seed: of the order.
  """

  def __init__(self, batch_size: int, row_buckets: np.ndarray, lengths: Sequence, seed: int) -> None:
    self.batch_size, self.lengths, self.steps = batch_size, lengths, -(-len(row_buckets) // batch_size)
    self._row_buckets, self._seed = row_buckets, seed
    self.epoch = functools.lru_cache(maxsize=2)(self._epoch)

  def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of every batch [steps, B], -1 for none, and the number of its bucket [steps]."""
    rng = np.random.default_rng((self._seed, epoch))
    order = rng.permutation(len(self._row_buckets))
    full, rest = [], []
    for bucket in range(len(self.lengths)):
      rows = order[self._row_buckets[order] == bucket]
      even = len(rows) - len(rows) % self.batch_size
      full.append(rows[:even].reshape(-1, self.batch_size))
      rest.append(rows[even:])
    rest = np.concatenate(rest)
    rest = np.pad(rest, (0, -len(rest) % self.batch_size), constant_values=-1).reshape(-1, self.batch_size)
    batches = np.concatenate([*full, rest])
    buckets = np.where(batches >= 0, self._row_buckets[batches], 0).max(1)
    mixed = rng.permutation(len(batches))
    return batches[mixed], buckets[mixed]

  def take(self, step: int, first: int, count: int) -> tuple[np.ndarray, Any]:
    epoch, position = divmod(step, self.steps)
    batches, buckets = self.epoch(epoch)
    return batches[position, first : first + count], self.lengths[buckets[position]]


def cheapest_edges(counts: Sequence[int] | np.ndarray, buckets: int) -> list[int]:
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
    options: list[tuple[int, tuple[int, ...]]] = [(below[last] * last, (last,))]
    for edge in range(1, last) if left > 1 else ():
      cost, edges = best(edge, left - 1)
      options.append((cost + (below[last] - below[edge]) * last, (*edges, last)))
    return min(options)

  return list(best(len(below) - 1, buckets)[1])
