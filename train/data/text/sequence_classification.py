"""Texts and pairs of texts with a class, a number or one of several choices as label; GLUE's tasks by name."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from train.data.text import tables
from train.data.text.labelled import LabelledText, RowBuilder, Rows
from zoo.errors import nearest


class Task(NamedTuple):
  """A task of GLUE (Wang et al. 2019, table 1): the columns of its texts, and its metrics."""

  texts: tuple[str, ...]
  scores: tuple[str, ...] = ("accuracy",)


# By the names of their features in TFDS; that of the label is "label".
GLUE = {
  "cola": Task(("sentence",), ("matthews_correlation", "accuracy")),
  "sst2": Task(("sentence",)),
  "mrpc": Task(("sentence1", "sentence2"), ("f1", "accuracy")),
  "stsb": Task(("sentence1", "sentence2"), ("pearson", "spearmanr")),
  "qqp": Task(("question1", "question2"), ("f1", "accuracy")),
  **{name: Task(("premise", "hypothesis")) for name in ("mnli", "mnli_matched", "mnli_mismatched")},
  "qnli": Task(("question", "sentence")),
  "rte": Task(("sentence1", "sentence2")),
  "wnli": Task(("sentence1", "sentence2")),
  "ax": Task(("premise", "hypothesis"), ("matthews_correlation", "accuracy")),
}


def glue_task(dataset: str) -> Task | None:
  """The task that "glue/NAME" is; None for any other set.

  Raises:
    ValueError: GLUE has no such task.
  """
  base, _, rest = dataset.partition("/")
  task = rest.partition(":")[0].partition("/")[0]
  if base.partition(":")[0] != "glue":
    return None
  if task not in GLUE:
    raise ValueError(f"data.dataset is {dataset!r}; GLUE has no task {task!r}{nearest(task, GLUE)}")
  return GLUE[task]


@dataclasses.dataclass(frozen=True)
class SequenceClassification(LabelledText):
  """Texts, or pairs of them, with a label each: what `config.data = dict(name="sequence_classification", ...)` makes.

  Besides the arrays of `train.data.text.labelled`, a batch has "label": int32 [B], a class or the correct choice, and
  -1 where it is unknown; or float32 [B], a number, and NaN. Of pairs that are too long, the longer text is truncated.

  Attributes:
    dataset: any set of TFDS, such as "glue/mnli" or "imdb_reviews"; or the path of a folder with `train.tsv`, .csv or
      .jsonl, and others for other splits.
    vocab_file: the vocabulary's file or folder, or the work directory of the run that pretrained the model.
    text: the column of the text (a feature of TFDS); numbers from 0 for files without a header. Those of GLUE are built
      in.
    text_pair: that of the second text, "" if there is none.
    label: that of the label.
    choices: columns of the texts of which one is correct; the label is its number, from 0. "a/0" is the first of
      several that column a has. Each is the second text of a pair, after `text_pair` if there is one.
    classes: names of the classes, in their order, where labels are words; TFDS has its own.
    regression: whether the label is a number, predicted by a model with num_classes=1.
    train_split, eval_split: what to train and to evaluate on.
    data_dir: where prepared sets are; by default where TFDS keeps them.
    lowercase: whether the vocabulary is uncased; None: as its file specifies.
    length: tokens in a row at most, [CLS] and [SEP] included.
    buckets: how many lengths of batches there are; each is a program to compile.

  Raises:
    ValueError: any of the above is not what it should be, before anything is read.
  """

  dataset: str
  vocab_file: str = ""
  text: str = ""
  text_pair: str = ""
  label: str = "label"
  choices: tuple[str, ...] = ()
  classes: tuple[str, ...] = ()
  regression: bool = False
  train_split: str = "train"
  eval_split: str = "validation"
  data_dir: str | None = None
  lowercase: bool | None = None
  length: int = 128
  buckets: int = 4

  def __post_init__(self) -> None:
    super().__post_init__()
    task = glue_task(self.dataset)
    if task and not self.text:
      texts = dict(zip(("text", "text_pair"), task.texts, strict=False))
      for key, value in (texts | {"regression": "pearson" in task.scores}).items():
        object.__setattr__(self, key, value)
    faults = [] if self.text else ["data.text is empty; wanted the column of the text"]
    if len(self.choices) == 1:
      faults.append(f"data.choices is {self.choices}; wanted at least two columns")
    if self.regression and (self.choices or self.classes):
      faults.append("data.regression is for labels that are numbers, which have neither data.choices nor data.classes")
    if self.choices and self.classes:
      faults.append("data.classes names classes, but data.choices has others for each example: wanted one of them")
    if len(set(self.classes)) < len(self.classes):
      faults.append(f"data.classes has a name twice: {', '.join(self.classes)}")
    if faults:
      raise ValueError("\n".join(faults))

  @property
  def row_labels(self) -> Mapping[str, type]:
    """The type of the label."""
    return {"label": np.float32 if self.regression else np.int32}

  @property
  def head(self) -> str:
    """Of the model."""
    return "multiple_choice" if self.choices else "sequence_classification"

  @property
  def type_vocab_size(self) -> int:
    """Kinds of segments: two if there are pairs."""
    return 2 if self.text_pair or self.choices else 1

  @property
  def scores(self) -> tuple[str, ...]:
    """Metrics of these labels, by their names in `train.evaluation.text_metrics.LABEL_SCORES`."""
    if task := glue_task(self.dataset):
      return task.scores
    return ("pearson", "spearmanr") if self.regression else ("accuracy",)

  @functools.cached_property
  def class_names(self) -> list[str]:
    """Names of the classes, in their order; empty where labels are numbers, or no names are known."""
    return [*self.classes] or self._table(self.train_split).class_names.get(self.label, [])

  def _table(self, split: str) -> tables.Table:
    columns = [c for c in (self.text, self.text_pair) if c] + [*self.choices, self.label]
    return _table(self.dataset, split, self.data_dir, tuple(columns))

  def read(self, split: str, train: bool) -> Rows:
    """A split in tokens.

    Raises:
      ValueError: see `tables.read`; and a label that cannot be, by its file and line.
    """
    table = self._table(split)
    labels = np.array([self._label(values[-1], table, i, train) for i, values in enumerate(table.rows)])
    builder, iterator = RowBuilder(self.vocabulary, self.length), iter(enumerate(table.rows))
    while chunk := list(itertools.islice(iterator, 4096)):
      texts = [[*map(self._text, values[:-1], itertools.repeat(table), itertools.repeat(i))] for i, values in chunk]
      every = iter(self.vocabulary.encode([text for row in texts for text in self._rows_of(row)]))
      for row in texts:
        # The first text of choices is encoded once.
        one, *others = itertools.islice(every, len(self._rows_of(row)))
        for two in others or [None]:
          builder.add(one, two)
    name = next(iter(self.row_labels))
    return builder.finish(labels={name: labels.astype(self.row_labels[name])}, choices=len(self.choices) or 1)

  def _rows_of(self, texts: Sequence[str]) -> list[str]:
    """The first text, and what follows it in each row."""
    if not self.choices:
      return list(texts)
    begin = texts[1] + " " if self.text_pair else ""
    return [texts[0], *(begin + choice for choice in texts[-len(self.choices) :])]

  @staticmethod
  def _text(value, table: tables.Table, index: int) -> str:
    if not isinstance(value, str):
      raise ValueError(f"{table.where(index)}: {value!r} is no text")
    return value

  def _label(self, value: tables.Value, table: tables.Table, index: int, train: bool) -> int | float:
    """A label as the model predicts it."""
    names = self.classes or table.class_names.get(self.label, ())
    known, missing = len(self.choices) or len(names), False
    if not known and not train and not self.regression:  # the classes are those of the training split
      known = self.num_classes
    if isinstance(value, str) and value in names:
      return names.index(value)
    try:
      found = float(value) if self.regression else int(value)
    except (TypeError, ValueError):
      if self.regression:
        what = "is no number"
      elif names:
        what = f"is none of the classes{nearest(str(value), names)}"
      else:
        what = "is no class by number; names of classes go into data.classes"
      raise ValueError(f"{table.where(index)}: label {value!r} {what}") from None
    if self.regression:
      # The similarities of STS-B are 0 to 5.
      missing = not np.isfinite(found) or (glue_task(self.dataset) is not None and found < 0)
    else:
      missing = found == -1
      if found != value and not isinstance(value, str):
        raise ValueError(
          f"{table.where(index)}: label {value!r} is no whole number; data.regression=True predicts numbers"
        )
      if (isinstance(value, str) and self.classes) or found < -1 or (known and found >= known):
        wanted = f"0 to {known - 1}" if known else "0, 1, ..."
        wanted = f"one of {', '.join(names)}" if names else wanted
        raise ValueError(f"{table.where(index)}: label {value!r}; wanted {wanted}")
    if missing and train:
      raise ValueError(f"{table.where(index)}: label {value!r} is no label to train on")
    return float("nan") if missing and self.regression else found

  def num_eval(self, split: str | None = None) -> int:
    """Examples in a split. Raises ValueError where there is none of that name, or where all labels are unknown."""
    labels = self.examples(split or self.eval_split).labels["label"]
    if not has_label(labels).any():
      raise ValueError(
        f"{self.dataset!r} {split or self.eval_split!r} has no labels, like GLUE's test splits; wanted one with labels"
      )
    return len(labels)

  @property
  def num_classes(self) -> int:
    """Labels of the training split are below it; 1 for numbers and choices, each of which the model gives a number."""
    if self.regression or self.choices:
      return 1
    return len(self.class_names) or int(self.examples().labels["label"].max()) + 1

  def faults(self, model_config: Any) -> list[str]:
    """A model with another number of classes."""
    given = model_config.num_classes
    if self.choices:
      return []
    if self.regression:
      return [] if given == 1 else [f"the model has {given} classes, the labels are numbers: set model.num_classes=1"]
    if given >= self.num_classes:
      return []
    faults = [
      f"the model has {given} classes, the data has labels up to {self.num_classes - 1}: set "
      f"model.num_classes={self.num_classes}"
    ]
    if not self.class_names:
      labels = self.examples().labels["label"]
      first = int(np.argmax(labels >= given))
      where = self._table(self.train_split).where(first)
      faults.append(f"the first label above the model's classes: {where}: {labels[first]}")
    return faults


def has_label(labels: np.ndarray) -> np.ndarray:
  """Which labels are known."""
  return np.isfinite(labels) if np.issubdtype(labels.dtype, np.floating) else labels >= 0


@functools.lru_cache(maxsize=4)
def _table(dataset: str, split: str, data_dir: str | None, columns: tuple[str, ...]) -> tables.Table:
  return tables.read(dataset, split, data_dir, columns)
