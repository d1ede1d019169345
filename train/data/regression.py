"""Points (x, y) in a CSV file, to batches for regression from other points, by weights of their distances.

A batch (`train.data.base`) has "x" and "y" float32 [B], the points to predict; "keys" and "values" float32 [B, S], the
x and y of all S training points, the same in each row; "attention_mask" bool [B, S], which of them a point may use: it
is not among its own keys, so training and evaluation on the training points leave one out.
"""

import csv
import dataclasses
import functools
import inspect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from train import datasets
from train.data.base import Dataset
from train.data.order import Order, Permutations
from train.data.pipeline import Batch
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
      for number, row in enumerate(filter(None, lines)):
        numbers = [_number(cell) for cell in row]
        if number == 0 and numbers == [None, None]:
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
  x, y = np.array(rows, np.float64).reshape(-1, 2).T
  return Table(x, y, *heading)


def _number(cell: str) -> float | None:
  try:
    number = float(cell)
  except ValueError:
    return None
  return number if math.isfinite(number) else None


@dataclasses.dataclass(frozen=True)
class Regression(Dataset):
  """Points on a plane: what `config.data = dict(name="regression", ...)` makes.

  Attributes:
    dataset: "engel" (bundled), or the path of a CSV file of two columns, x and y.
    test_share: share of the points that is held out as the split "test", drawn at random.
    split_seed: of that draw.

  Raises:
    ValueError: any of the above is not what it should be, before anything is read; later, see `read_csv`.
  """

  dataset: str
  test_share: float = 0.2
  split_seed: int = 0

  unit = "points"
  train_split, eval_split = "train", "test"

  def __post_init__(self) -> None:
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

  def examples(self, split: str | None = None) -> np.ndarray:
    """The rows of the table that a split has, rising; by default the training split.

    Raises:
      ValueError: no such split.
    """
    split = split or self.train_split
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
    rows = self.examples(name)
    return self.table.x[rows], self.table.y[rows]

  @functools.cached_property
  def origin(self) -> float:
    """Subtracted from every x, so that float32 separates them: only differences of them matter."""
    return float(self.split("train")[0].mean())

  @classmethod
  def shapes(cls, config: Mapping, model_config: Any, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a batch; reads the file, since only that determines how many points there are."""
    del model_config
    batch = next(cls.from_config(config).eval_batches(1, limit=1))
    return {name: jax.ShapeDtypeStruct((batch_size, *a.shape[1:]), a.dtype) for name, a in batch.items()}

  def check_fit(self, model_config: Any, objective: object) -> None:
    """Raises ValueError where a model is not for points."""
    del objective
    family: Any = inspect.getmodule(type(model_config))
    found = [(len(shape.shape), shape.dtype) for shape in family.inputs(model_config, 1)]
    if found != [(2, np.float32)] * 3:
      raise ValueError(
        f"{family.__name__} is no model for points: wanted one that is called with x [B, T], keys [B, S] and values "
        "[B, S], such as kernel_regression/learned"
      )

  def train_order(self, examples: np.ndarray, batch_size: int, seed: int) -> Order:
    """Every epoch a permutation."""
    return Permutations(batch_size, len(examples), seed)

  def collate(self, rows: Sequence[int | None], numbers: np.ndarray, length: None) -> Batch:
    """Arrays of the points in these rows of the table."""
    del numbers, length
    keys = self.examples()
    which = np.array([0 if row is None else row for row in rows])
    x, y = (self.table.x - self.origin).astype(np.float32), self.table.y.astype(np.float32)
    return {
      "x": x[which],
      "y": y[which],
      "keys": np.tile(x[keys], (len(rows), 1)),
      "values": np.tile(y[keys], (len(rows), 1)),
      "attention_mask": keys != which[:, None],
    }
