"""Tables of texts and labels: files of one's own (TSV, CSV, JSON Lines), or any set of TFDS, example by example.

Of a folder of files a split is a file, by its name: `train.tsv`, `val.tsv`. A part of it is as in TFDS: "train[:90%]".
"""

import collections
import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import tensorflow_datasets as tfds

from train.data import array_record
from train.data.text import files
from zoo.errors import nearest

ENDINGS = (".tsv", ".csv", ".jsonl")
# A label or text of an example: what a file has as text, TFDS may have as a number.
Value = str | int | float


class Table(NamedTuple):
  """Some columns of a split.

  Attributes:
    rows: a tuple of values for each example; a column that holds several has a list.
    where: from the number of an example to its file and line, for error messages.
    class_names: of the columns that are TFDS's class labels, by the columns' names.
  """

  rows: list[tuple]
  where: Callable[[int], str]
  class_names: dict[str, list[str]]


def read(dataset: str, split: str, data_dir: str | None, columns: Sequence[str]) -> Table:
  """Columns of a split, by name.

  Args:
    dataset: the path of a folder of files, or a name in TFDS.
    split: as in TFDS, also for files.
    data_dir: where prepared sets are.
    columns: which. Of files without a heading, numbers from 0, or from -1 backwards. "a/b" is column b within a;
      "a/0" the first of several values.

  Raises:
    ValueError: no such set, split or column (the nearest is named), or a line that cannot be read (file and line).
  """
  if found := local_files(dataset, ENDINGS):
    return _from_files(dataset, split, found, columns)
  records = Fields(dataset, split, data_dir, array_record.open_builder(dataset, data_dir), columns)
  return Table(list(records), records.where, records.class_names)


def local_files(dataset: str, endings: Sequence[str]) -> dict[str, Path]:
  """The files of a folder that are its splits, by name; none if it is no folder, and so a set of TFDS."""
  folder = Path(dataset)
  paths = sorted(p for p in folder.iterdir() if p.suffix in endings) if folder.is_dir() else []
  names = collections.Counter(path.stem for path in paths)
  if twice := [name for name, count in names.items() if count > 1]:
    both = " and ".join(path.name for path in paths if path.stem == twice[0])
    raise ValueError(f"{folder} has {both}, both of which would be the split {twice[0]!r}: wanted one of them")
  return {path.stem: path for path in paths}


def part(dataset: str, split: str, found: Mapping[str, Path], count: Callable[[Path], int]) -> list[tuple[Path, range]]:
  """Which examples of which files a split is, such as "train[:90%]" or "train+val".

  Raises:
    ValueError: there is no such file; the nearest is named.
  """
  sizes: dict[str, int] = {}
  for name in re.split(r"\s*\+\s*", split):
    base = name.partition("[")[0]
    if base not in found:
      raise ValueError(f"{dataset} has no split {base!r}, which would be a file of that name{nearest(base, found)}")
    sizes[base] = count(found[base])
  infos = {name: tfds.core.SplitInfo(name=name, shard_lengths=[size], num_bytes=0) for name, size in sizes.items()}
  try:
    pieces = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
  except (AssertionError, ValueError) as error:
    raise ValueError(f"{dataset} has no split {split!r}: {error}") from error
  return [(found[p.splitname], range(sizes[p.splitname])[p.from_ : p.to]) for p in pieces]


class Fields(array_record.Records):
  """Features of a split in TFDS: `fields[i]` is a tuple of texts and numbers; a sequence is a list.

  Attributes: `class_names`, of those that are class labels.
  """

  def __init__(
    self, dataset: str, split: str, data_dir: str | None, builder: tfds.core.DatasetBuilder, columns: Sequence[str]
  ) -> None:
    known = _flat(builder.info.features)
    self._columns = []
    for column in columns:
      name, index = column, None
      if column not in known and (match := re.fullmatch(r"(.+)/(\d+)", column)):
        name, index = match[1], int(match[2])
      if name not in known:
        raise ValueError(f"{dataset!r} has no feature {column!r}{nearest(column, known)}")
      self._columns.append((name, index))
    self._several = {name for name, feature in known.items() if isinstance(feature, tfds.features.Sequence)}
    inner = {name: getattr(feature, "feature", feature) for name, feature in known.items()}
    labels = {n: f for n, f in inner.items() if isinstance(f, tfds.features.ClassLabel)}
    self.class_names = {name: list(feature.names or ()) for name, feature in labels.items()}
    super().__init__(dataset, split, data_dir, builder)

  def parse(self, values: Mapping) -> tuple:
    """An example's values."""
    return tuple(self._value(values, *column) for column in self._columns)

  def _value(self, values: Mapping, name: str, index: int | None):
    kind = values[name].WhichOneof("kind")
    found = list(getattr(values[name], kind).value) if kind else []
    if kind == "bytes_list":
      found = [value.decode() for value in found]
    if index is not None:
      if index >= len(found):
        raise ValueError(f"{name!r} has {len(found)} values; {name}/{index} needs more")
      return found[index]
    return found if name in self._several else found[0]


def _flat(features: tfds.features.FeaturesDict, prefix: str = "") -> dict[str, tfds.features.FeatureConnector]:
  """The features by the names under which TFDS stores them; one of a sequence of dicts is a sequence."""
  found = {}
  for name, feature in features.items():
    inner = feature.feature if isinstance(feature, tfds.features.Sequence) else feature
    if isinstance(inner, tfds.features.FeaturesDict):
      below = _flat(inner, f"{prefix}{name}/")
      found |= {n: tfds.features.Sequence(f) for n, f in below.items()} if inner is not feature else below
    else:
      found[prefix + name] = feature
  return found


def _from_files(dataset: str, split: str, found: Mapping[str, Path], columns: Sequence[str]) -> Table:
  tables: dict[Path, list] = {}

  def load(path: Path) -> list:
    if path not in tables:
      tables[path] = [*(_json_lines if path.suffix == ".jsonl" else _delimited)(path, columns)]
    return tables[path]

  pieces = part(dataset, split, found, lambda path: len(load(path)))
  rows = [(path, *tables[path][i]) for path, here in pieces for i in here]
  return Table([values for _, _, values in rows], lambda i: f"{rows[i][0]}, line {rows[i][1]}", {})


def _delimited(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, tuple]]:
  """Line number and values of every line; what is empty is passed over."""
  numbered = all(re.fullmatch(r"-?\d+", column) for column in columns)
  # In a TSV file as GLUE's a quotation mark is one; in a CSV file it holds together what has commas or line feeds.
  options = dict(delimiter="\t", quoting=csv.QUOTE_NONE) if path.suffix == ".tsv" else dict(delimiter=",")
  csv.field_size_limit(2**31 - 1)
  reader, indices, width = csv.reader((line + "\n" for line in files.lines(path)), **options), None, 0
  if numbered:
    indices = [int(column) for column in columns]
  try:
    for row in filter(any, reader):
      if indices is None:
        if missing := [column for column in columns if column not in row]:
          raise ValueError(
            f"{path}, line {reader.line_num}, is a heading without {missing[0]!r}{nearest(missing[0], row)}"
          )
        indices, width = [row.index(column) for column in columns], len(row)
        continue
      if (width and len(row) != width) or not all(-len(row) <= index < len(row) for index in indices):
        wanted = width or max(index + 1 if index >= 0 else -index for index in indices)
        raise ValueError(f"{path}, line {reader.line_num}, has {len(row)} columns; wanted {wanted}: {str(row)[:80]}")
      yield reader.line_num, tuple(row[index] for index in indices)
  except csv.Error as error:
    raise ValueError(f"{path}, line {reader.line_num}, cannot be read: {error}") from error


def _json_lines(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, tuple]]:
  for number, line in enumerate(files.lines(path), 1):
    if not line.strip():
      continue
    try:
      record = json.loads(line)
    except json.JSONDecodeError as error:
      raise ValueError(f"{path}, line {number}, is no JSON: {error}") from error
    if not isinstance(record, dict):
      raise ValueError(f"{path}, line {number}, is no object with names: {line[:80]!r}")
    values = []
    for column in columns:
      value = record
      for key in column.split("/"):
        known = {str(i): v for i, v in enumerate(value)} if isinstance(value, list) else value
        if not isinstance(known, dict) or key not in known:
          raise ValueError(f"{path}, line {number}, has no {column!r}{nearest(key, record)}")
        value = known[key]
      values.append(value)
    yield number, tuple(values)
