"""Points (x, y) in a CSV file to batches for regression by neighbours, whose order is a function of (seed, step).

The batch of step s is the points [s*B, (s+1)*B) of one endless stream: those to train on, shuffled anew every epoch.
So, as with images, the position in the data *is* the step, and process p of P has the points [p*B/P, (p+1)*B/P) of each
batch.

A batch is a dict of arrays: "x" and "y" float32 [B], the points in question; "keys" and "values" float32 [B, S], the x
and y of all S points to train on, the same in each row; "seen" bool [B, S], which of them may be used: a point is not
among its own keys, so training and evaluation on these points leave one out; "valid" bool [B], False for padding; "id"
int32 [B], the place in the batch of all processes.
"""

import csv
import dataclasses
import functools
import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from train import datasets
from train.data import pipeline
from zoo.errors import nearest

# So many bad lines are named; a file that is no table has as many as lines.
FAULTS = 10


class Table(NamedTuple):
  """Two columns: their numbers, float64 [N], and their names."""

  x: np.ndarray
  y: np.ndarray
  names: tuple[str, str] = ("x", "y")


def bundled() -> dict[str, Path]:
  """The files that travel with the code, by name."""
  return {path.stem: path for path in sorted(Path(datasets.__path__[0]).glob("*/*.csv"))}


@functools.lru_cache(maxsize=4)
def read_csv(path: Path) -> Table:
  """Reads a file of two columns of numbers, with a heading or without; empty lines are passed over.

  Raises:
    ValueError: no such file, no text, or lines that are not two finite numbers, each by its number.
  """
  rows, heading, faults = [], (), []
  try:
    with path.open(newline="", encoding="utf-8-sig") as file:
      lines = csv.reader(file, skipinitialspace=True)
      for place, row in enumerate(filter(None, lines)):
        numbers = [_number(cell) for cell in row]
        if place == 0 and numbers == [None, None]:
          heading = (tuple(row),)
        elif len(row) == 2 and None not in numbers:
          rows.append(numbers)
        else:
          faults.append(f"{path}, line {lines.line_num}, is no point: {','.join(row)[:80]!r}")
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise ValueError(f"cannot read {path}: {error}") from error
  if faults:
    more = [f"and {len(faults) - FAULTS} lines more"] if len(faults) > FAULTS else []
    raise ValueError("\n".join([*faults[:FAULTS], *more, "wanted two numbers a line, with a comma between: x,y"]))
  return Table(*np.array(rows, np.float64).reshape(-1, 2).T, *heading)


def _number(cell: str) -> float | None:
  try:
    number = float(cell)
  except ValueError:
    return None
  return number if math.isfinite(number) else None


@dataclasses.dataclass(frozen=True)
class Regression:
  """Points on a plane: what `config.data = dict(name="regression", ...)` makes.

  Attributes:
    dataset: "engel" (bundled), or the path of a CSV file of two columns, x and y.
    test_share: which part of the points is not trained on but kept for the split "test"; it is drawn at random.
    split_seed: of that draw.

  Raises:
    ValueError: any of the above is not what it should be, before anything is read; later, see `read_csv`.
  """

  dataset: str
  test_share: float = 0.2
  split_seed: int = 0

  unit = "points"  # what the speed of training is counted in
  skip_corrupt = False  # a line that cannot be read is an error

  def __post_init__(self):
    if not 0 < self.test_share < 1:
      raise ValueError(f"data.test_share is {self.test_share}; wanted 0 < test_share < 1")

  @functools.cached_property
  def table(self) -> Table:
    """All points, in the order of the file."""
    path = bundled().get(self.dataset, Path(self.dataset))
    if not path.suffix and not path.exists():
      raise ValueError(
        f"there are no points {self.dataset!r}, neither a CSV file nor bundled{nearest(self.dataset, bundled())}"
      )
    table = read_csv(path)
    if not 2 <= len(table.x) - self._count_test(len(table.x)) < len(table.x):
      raise ValueError(
        f"{path} has {len(table.x)} points, of which data.test_share={self.test_share} are "
        f"{self._count_test(len(table.x))}; wanted at least 1 to test and 2 to train on"
      )
    return table

  def _count_test(self, points: int) -> int:
    return math.floor(self.test_share * points)

  def rows(self, split: str) -> np.ndarray:
    """Which points of the table a split has, rising.

    Raises:
      ValueError: no such split.
    """
    if split not in self._splits:
      raise ValueError(f"points have no split {split!r}{nearest(split, self._splits)}")
    return self._splits[split]

  @functools.cached_property
  def _splits(self) -> dict[str, np.ndarray]:
    count = len(self.table.x)
    order, held_out = np.random.default_rng(self.split_seed).permutation(count), self._count_test(count)
    return {"train": np.sort(order[held_out:]), "test": np.sort(order[:held_out])}

  def split(self, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The points of a split, x and y, as the file has them."""
    rows = self.rows(name)
    return self.table.x[rows], self.table.y[rows]

  @functools.cached_property
  def origin(self) -> float:
    """What is taken from every x, so that float32 tells them apart: only differences of them matter."""
    return float(self.split("train")[0].mean())

  @property
  def num_train(self) -> int:
    """Points to train on."""
    return len(self.rows("train"))

  def num_eval(self, split: str | None = None) -> int:
    """Points in a split, by default the test's. Raises ValueError where there is none of that name."""
    return len(self.rows(split or "test"))

  @staticmethod
  def shapes(config: Mapping, model_config, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a batch; reads the file, since nothing else says how many points it has.

    Args:
      config: `name` and the fields above.
      model_config: of the model, which changes nothing here.
      batch_size: B.
    """
    del model_config
    points = Regression(**{key: value for key, value in config.items() if key != "name"})
    row = points.collate("train", np.zeros(1, int))
    return {name: jax.ShapeDtypeStruct((batch_size, *a.shape[1:]), a.dtype) for name, a in row.items()}

  def check_fit(self, model_config, objective) -> None:
    """Raises ValueError where a model is not for points."""
    del objective
    family = inspect.getmodule(type(model_config))
    found = [(len(shape.shape), shape.dtype) for shape in family.inputs(model_config, 1)]
    if found != [(2, np.float32)] * 3:
      raise ValueError(
        f"{family.__name__} is no model for points: wanted one that is called with x [B, T], keys [B, S] and values "
        "[B, S], such as kernel_regression/learned"
      )

  def collate(self, split: str, places: np.ndarray, first_id: int = 0) -> pipeline.Batch:
    """Arrays of the points at these places of a split; -1 is padding. See the top of this file."""
    keys, rows, valid = self.rows("train"), self.rows(split)[places], places >= 0
    x, y = (self.table.x - self.origin).astype(np.float32), self.table.y.astype(np.float32)
    return {
      "x": x[rows],
      "y": y[rows],
      "keys": np.tile(x[keys], (len(rows), 1)),
      "values": np.tile(y[keys], (len(rows), 1)),
      "seen": keys != rows[:, None],
      "valid": valid,
      "id": np.arange(len(rows), dtype=np.int32) + first_id,
    }

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
    count, part = self.num_train, batch_size // process_count
    if batch_size > count:
      raise ValueError(f"batch_size={batch_size}, but {self.dataset!r} has {count} points to train on")
    order = functools.lru_cache(maxsize=2)(lambda epoch: np.random.default_rng((seed, epoch)).permutation(count))

    def make(step: int) -> pipeline.Batch:
      first = step * batch_size + process_index * part
      places = [order(place // count)[place % count] for place in range(first, first + part)]
      return self.collate("train", np.array(places), process_index * part)

    return pipeline.prefetch(make, first_step)

  def eval_batches(
    self,
    batch_size: int,
    split: str | None = None,
    process_index: int = 0,
    process_count: int = 1,
    limit: int | None = None,
  ) -> pipeline.Batches:
    """The part of one process of batches that hold every point of a split once, in the order of the file.

    Args:
      batch_size: of all processes together; all get equally many batches, the last of which is padded.
      split: "test", or "train" for what is left out one by one; by default "test".
      process_index: which process this is.
      process_count: of how many.
      limit: only so many points, the first.

    Raises:
      ValueError: see `train_batches` and `rows`.
    """
    pipeline.check_share(batch_size, process_index, process_count)
    split = split or "test"
    count, part = len(self.rows(split)), batch_size // process_count
    end = count if limit is None else min(limit, count)

    def make(step: int) -> pipeline.Batch:
      places = np.arange(part) + step * batch_size + process_index * part
      return self.collate(split, np.where(places < end, places, -1), process_index * part)

    return pipeline.prefetch(make, 0, -(-end // batch_size))
