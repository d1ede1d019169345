"""Texts of one's own in two languages: `zoo prepare parallel_text/en-es --data-dir DIR --source FOLDER`.

FOLDER holds, for each split, two files of which each line translates the line of that number in the other (`train.en`
and `train.es`), or one of which each line has both, with a tab between, in the order of the name (`train.tsv`; further
columns are not read). Of the splits "train" must be there; others are named as the files are, such as "val" and "test".
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from train.data.text.files import lines


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Every line is kept, in the order of the files, empty ones too: who reads it leaves those out and counts them."""

  name = "parallel_text"
  VERSION = tfds.core.Version("1.0.0")
  MANUAL_DOWNLOAD_INSTRUCTIONS = "Name the folder with train.en and train.es, or with train.tsv: --source FOLDER."

  def __init__(self, *, config: str | None = None, **kwargs: Any) -> None:
    self.languages = (config or "").split("-")
    if len(set(self.languages)) != 2 or not all(self.languages):
      raise ValueError(f"parallel_text wants two languages, such as parallel_text/en-es; these are {config!r}")
    super().__init__(config=tfds.core.BuilderConfig(name=config), **kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description="Texts of one's own in two languages.",
      features=tfds.features.Translation(languages=self.languages),
      supervised_keys=tuple(self.languages),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    folder = Path(dl_manager.manual_dir)
    splits = {file.stem: (file,) for file in sorted(folder.glob("*.tsv"))}
    for one in sorted(folder.glob(f"*.{self.languages[0]}")):
      other = one.with_suffix(f".{self.languages[1]}")
      if one.stem in splits:
        raise ValueError(f"{folder} has both {one.name} and {one.stem}.tsv: wanted one of them")
      splits[one.stem] = one, other
    if "train" not in splits:
      wanted = " and ".join(f"train.{language}" for language in self.languages)
      raise OSError(f"{folder} has neither {wanted} nor train.tsv; it has {sorted(p.name for p in folder.iterdir())}")
    return {split: self._generate_examples(*files) for split, files in splits.items()}

  def _generate_examples(self, *files: Path) -> Iterator[tuple[int, dict]]:
    pairs = _columns(*files) if len(files) == 1 else _aligned(*files)
    for i, pair in enumerate(pairs):
      yield i, dict(zip(self.languages, pair, strict=True))


def _aligned(one: Path, other: Path) -> Iterator[tuple[str, str]]:
  counts = {}
  for file in (one, other):
    with file.open("rb") as raw:
      counts[file.name] = sum(1 for _ in raw)
  if len(set(counts.values())) != 1:
    found = " and ".join(f"{name} has {count:,} lines" for name, count in counts.items())
    raise ValueError(f"{found}; wanted equally many, since each line translates the line of that number in the other")
  for pair in zip(lines(one), lines(other), strict=True):
    yield pair[0].strip(), pair[1].strip()


def _columns(file: Path) -> Iterator[tuple[str, str]]:
  for number, line in enumerate(lines(file), 1):
    columns = line.split("\t")
    if len(columns) < 2:
      raise ValueError(f"{file}, line {number}, has no tab; wanted a text, a tab and its translation: {line[:80]!r}")
    yield columns[0].strip(), columns[1].strip()
