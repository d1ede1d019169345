"""Sentences with a tag for each word: files in CoNLL's format, or sets of TFDS that have tokens and tags."""

import dataclasses
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from train.data.text import files, tables
from train.data.text.labelled import LabelledText, RowBuilder, Rows
from zoo.errors import nearest

ENDINGS = (".txt", ".conll", ".bio", ".iob", ".tsv", ".train", ".testa", ".testb")
START = "-DOCSTART-"


class Sentence(NamedTuple):
  """Words, their tags, and where they are, for error messages."""

  words: list[str]
  tags: list[str]
  where: list[str]


def read_conll(path: Path, token: int, tag: int) -> Iterator[Sentence]:
  """The sentences of a file of a word a line, with its tags in columns, and empty lines between sentences.

  Args:
    path: of the file, UTF-8.
    token, tag: numbers of the columns, from 0; from -1 backwards. Tabs part them, or, without any, spaces.

  Raises:
    ValueError: a line that has not these columns; file and line are named.
  """
  words, tags, locations = [], [], []
  for number, line in enumerate(files.lines(path), 1):
    where = f"{path}, line {number}"
    columns = line.split("\t") if "\t" in line else line.split()
    if not line.strip() or columns[0] == START:
      if words:
        yield Sentence(words, tags, locations)
      words, tags, locations = [], [], []
      continue
    least = max(index + 1 if index >= 0 else -index for index in (token, tag))
    # With one column alone, a word would be its own tag.
    if len(columns) < max(least, 2) or not columns[token].strip() or not columns[tag].strip():
      raise ValueError(
        f"{where}, has {len(columns)} columns; wanted a word in column {token} and a tag in column {tag} "
        f"(data.token, data.tag): {line[:80]!r}"
      )
    words.append(columns[token].strip())
    tags.append(columns[tag].strip())
    locations.append(where)
  if words:
    yield Sentence(words, tags, locations)


@dataclasses.dataclass(frozen=True)
class TokenClassification(LabelledText):
  """Words with a tag each: what `config.data = dict(name="token_classification", ...)` makes.

  Besides the arrays of `train.data.text.labelled`, a batch has "label" int32 [B, T]: the tag of a word at its first
  piece, and -1 elsewhere (Devlin et al. 2019, 5.3).

  Attributes:
    dataset: the path of a folder of CoNLL files (`train.txt`, ...), whose names are the splits; or a set of TFDS, such
      as "conll2003".
    vocab_file: the vocabulary's file or folder, or the work directory of the run that pretrained the model.
    token, tag: the columns of words and tags: numbers of a file's, from 0, or from -1 backwards; names of features
      of TFDS, such as "tokens" and "ner".
    tags: all tags, in the order of the classes; () for those of the training split, in alphabetical order. TFDS may
      know its own.
    train_split, eval_split: what to train and to evaluate on.
    data_dir: where prepared sets are; by default where TFDS keeps them.
    lowercase: whether the vocabulary is uncased; None: as its file specifies.
    length: tokens in a row at most. The words beyond it are not trained on, and count as "O" in evaluation.
    buckets: how many lengths of batches there are; each is a program to compile.

  Raises:
    ValueError: any of the above is not what it should be, before anything is read.
  """

  dataset: str
  vocab_file: str = ""
  token: int | str = "0"
  tag: int | str = "-1"
  tags: tuple[str, ...] = ()
  train_split: str = "train"
  eval_split: str = "dev"
  data_dir: str | None = None
  lowercase: bool | None = None
  length: int = 128
  buckets: int = 4

  unit = "sentences"
  head = "token_classification"
  token_labels = ("label",)
  type_vocab_size = 1

  def __post_init__(self) -> None:
    super().__post_init__()
    # On the command line a number is no text.
    for key in ("token", "tag"):
      object.__setattr__(self, key, str(getattr(self, key)))
    if len(set(self.tags)) < len(self.tags):
      raise ValueError(f"data.tags has a name twice: {', '.join(self.tags)}")

  def sentences(self, split: str) -> list[Sentence]:
    """Words and tags of a split, in order.

    Raises:
      ValueError: no such split or columns; a line without its columns; file and line are named.
    """
    return _sentences(self.dataset, split, self.data_dir, self.token, self.tag)

  @functools.cached_property
  def class_names(self) -> list[str]:
    """The tags, in the order of the classes."""
    if self.tags:
      return [*self.tags]
    if not tables.local_files(self.dataset, ENDINGS) and (names := self._names(self.train_split)):
      return names
    return sorted({tag for sentence in self.sentences(self.train_split) for tag in sentence.tags})

  def _names(self, split: str) -> list[str]:
    return _table(self.dataset, split, self.data_dir, (self.token, self.tag)).class_names.get(str(self.tag), [])

  @property
  def num_classes(self) -> int:
    """How many tags there are."""
    return len(self.class_names)

  def read(self, split: str, train: bool) -> Rows:
    """A split in tokens.

    Raises:
      ValueError: see `sentences`; a tag that is not among `class_names`, by its file and line.
    """
    del train
    number = {tag: i for i, tag in enumerate(self.class_names)}
    sentences, builder, labels = self.sentences(split), RowBuilder(self.vocabulary, self.length), []
    faults = [
      f"{where}: tag {tag!r} is none of data.tags{nearest(tag, number)}"
      for sentence in sentences
      for tag, where in zip(sentence.tags, sentence.where, strict=True)
      if tag not in number
    ]
    if faults:
      raise ValueError("\n".join(faults[:10]))
    pieces_of = self.vocabulary.encode_words([sentence.words for sentence in sentences])
    for sentence, pieces in zip(sentences, pieces_of, strict=True):
      kept, _ = builder.add([piece for word in pieces for piece in word])
      tags = [[number[tag], *[-1] * (len(word) - 1)] for word, tag in zip(pieces, sentence.tags, strict=True)]
      labels.append(np.array([-1, *[n for word in tags for n in word][:kept], -1], np.int32))
    return builder.finish(token_labels={"label": np.concatenate(labels)} if labels else {})

  def faults(self, model_config: Any) -> list[str]:
    """A model with fewer classes than tags."""
    given = model_config.num_classes
    if given >= self.num_classes:
      return []
    return [
      f"the model has {given} classes, the data has {self.num_classes} tags ({', '.join(self.class_names)}): set "
      f"model.num_classes={self.num_classes}"
    ]


@functools.lru_cache(maxsize=4)
def _sentences(dataset: str, split: str, data_dir: str | None, token: str, tag: str) -> list[Sentence]:
  if found := tables.local_files(dataset, ENDINGS):
    if not all(re.fullmatch(r"-?\d+", column) for column in (token, tag)):
      raise ValueError(f"data.token and data.tag are {token!r} and {tag!r}; of files wanted numbers of columns")
    # One file may be several parts: it is read once.
    read = functools.cache(lambda path: list(read_conll(path, int(token), int(tag))))
    pieces = tables.part(dataset, split, found, lambda path: len(read(path)))
    return [read(path)[i] for path, here in pieces for i in here]
  table, sentences = _table(dataset, split, data_dir, (token, tag)), []
  names = table.class_names.get(tag)
  for i, (words, tags) in enumerate(table.rows):
    where = table.where(i)
    if len(words) != len(tags) or not words:
      raise ValueError(f"{where} has {len(words)} words and {len(tags)} tags; wanted a tag for each word")
    sentences.append(Sentence(words, [names[t] if names else str(t) for t in tags], [where] * len(words)))
  return sentences


@functools.lru_cache(maxsize=4)
def _table(dataset: str, split: str, data_dir: str | None, columns: tuple[str, ...]) -> tables.Table:
  try:
    return tables.read(dataset, split, data_dir, columns)
  except ValueError as error:
    if columns == ("0", "-1") and "has no feature" in str(error):
      raise ValueError(f"{error}. Set data.token and data.tag") from error
    raise
