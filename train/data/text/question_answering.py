"""Questions whose answers are part of a text (SQuAD 1.1 and 2.0): windows over the text, and answers out of them."""

import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from train.data.text import tables
from train.data.text.labelled import LabelledText, RowBuilder, Rows

COLUMNS = ("id", "question", "context", "answers/text", "answers/answer_start")
# An answer that is not at its position is searched so many characters before and after.
NEAR = 2


class Question(NamedTuple):
  """A question. answers: their texts, and where in the context each begins; none where there is no answer."""

  id: str
  question: str
  context: str
  answers: tuple[tuple[str, int], ...]


def read_squad(path: Path) -> list[Question]:
  """The questions of a file in SQuAD's format (1.1 or 2.0), in order.

  Raises:
    ValueError: it is no such file; the question and what is wrong are named.
  """
  where, questions = "", []
  try:
    for a, article in enumerate(json.loads(path.read_text(encoding="utf-8"))["data"]):
      for p, paragraph in enumerate(article["paragraphs"]):
        where = f", article {a}, paragraph {p}"
        context = paragraph["context"]
        for entry in paragraph["qas"]:
          where = f", question {entry['id']!r}"
          # The plausible answers of 2.0 to questions without one are elsewhere.
          given = [(answer["text"], int(answer["answer_start"])) for answer in entry["answers"]]
          questions.append(Question(str(entry["id"]), entry["question"], context, tuple(given)))
  except (OSError, ValueError, KeyError, TypeError) as error:
    what = f"{error} is missing" if isinstance(error, KeyError) else error
    raise ValueError(f"{path}{where}: no questions in SQuAD's format: {what}") from error
  return questions


class Window(NamedTuple):
  """The part of a context in a row.

  Attributes:
    question: number of the question.
    first: which of the context's tokens is the window's first. count: how many there are.
    position: of its first token in the row.
  """

  question: int
  first: int
  count: int
  position: int


def windows(length: int, room: int, stride: int) -> list[tuple[int, int]]:
  """First token and number of tokens of the windows over a context of so many tokens (released code, `run_squad.py`).

  Each begins `stride` after the one before, until one reaches the end.
  """
  found = [(0, min(length, room))]
  while sum(found[-1]) < length:
    first = found[-1][0] + stride
    found.append((first, min(length - first, room)))
  return found


def best_context(spans: Sequence[tuple[int, int]], length: int) -> np.ndarray:
  """The window in which each token of a context has most context on the shorter side (`run_squad.py`).

  Args:
    spans: of `windows`.
    length: of the context.

  Returns:
    int [length], a number of a window
  """
  token = np.arange(length)
  left, right = (
    np.stack([side(first, count) for first, count in spans])
    for side in (lambda first, count: token - first, lambda first, count: first + count - 1 - token)
  )
  size = np.array([count for _, count in spans])[:, None]
  score = np.minimum(left, right) + 0.01 * size
  return np.where((left >= 0) & (right >= 0), score, -np.inf).argmax(0)


def find_answer(context: str, text: str, start: int) -> tuple[int, int] | None:
  """From which character to which an answer is, at `start` or very near; None if it is not there."""
  for shift in sorted(range(-NEAR, NEAR + 1), key=abs):
    if text and start + shift >= 0 and context.startswith(text, start + shift):
      return start + shift, start + shift + len(text)
  return None


@dataclasses.dataclass(frozen=True)
class QuestionAnswering(LabelledText):
  """Questions about texts: what `config.data = dict(name="question_answering", ...)` makes.

  A row is "[CLS] question [SEP] window [SEP]". Besides the arrays of `train.data.text.labelled`, a batch has
  "start_positions" and "end_positions" int32 [B]: the positions of the first and the last token of the answer; 0, that
  of [CLS], where a window has none.

  Attributes:
    dataset: "squad/v1.1" or "squad/v2.0" of TFDS, or another with the same features; or the path of a folder of SQuAD's
      files, whose names are the splits: "train-v1.1", "dev-v1.1".
    vocab_file: the vocabulary's file or folder, or the work directory of the run that pretrained the model.
    train_split, eval_split: what to train and to evaluate on.
    data_dir: where prepared sets are; by default where TFDS keeps them.
    lowercase: whether the vocabulary is uncased; None: as its file specifies.
    length: tokens in a row at most.
    doc_stride: from a window to the next, in tokens.
    max_query_length: tokens of a question at most.
    buckets: how many lengths of batches there are; each is a program to compile.

  Raises:
    ValueError: any of the above is not what it should be, before anything is read.
  """

  dataset: str
  vocab_file: str = ""
  train_split: str = "train"
  eval_split: str = "validation"
  data_dir: str | None = None
  lowercase: bool | None = None
  length: int = 384
  doc_stride: int = 128
  max_query_length: int = 64
  buckets: int = 2

  unit = "windows"
  head = "question_answering"
  row_labels: ClassVar = {"start_positions": np.int32, "end_positions": np.int32}

  def __post_init__(self) -> None:
    super().__post_init__()
    room = self.length - self.max_query_length - 3
    for key, most in dict(max_query_length=self.length - 4, doc_stride=room).items():
      value = getattr(self, key)
      if not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(
          f"data.{key} is {value!r}; wanted 1 to {most}, so that windows of {self.length} tokens (data.length) leave "
          "no gap"
        )

  def questions(self, split: str | None = None) -> list[Question]:
    """The questions of a split, by default the evaluation split, in order."""
    return _questions(self.dataset, split or self.eval_split, self.data_dir)

  def windows(self, split: str | None = None) -> tuple[list[Window], list[np.ndarray]]:
    """The windows of a split in order, and for each question the characters of its context's tokens [n, 2]."""
    return _windows(self, split or self.eval_split)

  def encoded(self, questions: Sequence[Question]) -> Iterator[tuple[list[int], "Context"]]:
    """The tokens of each question, truncated, and of its context, which is encoded once for all of its questions."""
    unique = list(dict.fromkeys(question.context for question in questions))
    contexts = {}
    for begin in range(0, len(unique), 512):
      texts = unique[begin : begin + 512]
      for text, found in zip(
        texts, self.vocabulary.tokenizer.encode_batch(texts, add_special_tokens=False), strict=True
      ):
        offsets = np.array(found.offsets, np.int32).reshape(-1, 2)
        contexts[text] = Context(np.array(found.ids, np.int32), offsets)
    encoded = self.vocabulary.encode([question.question for question in questions])
    for question, query in zip(questions, encoded, strict=True):
      yield query[: self.max_query_length], contexts[question.context]

  def spans(self, query: Sequence[int], context: "Context") -> list[tuple[int, int]]:
    """The windows over the context of a question."""
    return windows(len(context.ids), self.length - len(query) - 3, self.doc_stride)

  def read(self, split: str, train: bool) -> Rows:
    """The windows of a split in tokens, with their answers; of several correct answers, the first.

    Raises:
      ValueError: see `questions`.
    """
    builder, questions = RowBuilder(self.vocabulary, self.length), self.questions(split)
    positions, lost = [], 0
    for question, (query, context) in zip(questions, self.encoded(questions), strict=True):
      span = find_answer(question.context, *question.answers[0]) if question.answers else None
      tokens = None if span is None else context.tokens(*span)
      if question.answers and tokens is None:
        lost += 1
        if train:  # as published: not trained on
          continue
      for first, count in self.spans(query, context):
        builder.add(query, context.ids[first : first + count].tolist())
        shift, position = len(query) + 2 - first, (0, 0)
        if tokens is not None and first <= tokens[0] and tokens[1] < first + count:
          position = tokens[0] + shift, tokens[1] + shift
        positions.append(position)
    note = f"of {len(questions):,} questions"
    note += f", {lost:,} answers are not at their positions" if lost else ""
    start, end = np.array(positions, np.int32).reshape(-1, 2).T
    return builder.finish(labels={"start_positions": start, "end_positions": end}, note=note)


class Context(NamedTuple):
  """Tokens [n], and the characters of each, from and to [n, 2]."""

  ids: np.ndarray
  offsets: np.ndarray

  def tokens(self, start: int, end: int) -> tuple[int, int] | None:
    """The first and last token that overlap these characters; None if none does."""
    inside = np.flatnonzero((self.offsets[:, 1] > start) & (self.offsets[:, 0] < end))
    return (int(inside[0]), int(inside[-1])) if len(inside) else None


@functools.lru_cache(maxsize=4)
def _questions(dataset: str, split: str, data_dir: str | None) -> list[Question]:
  if found := tables.local_files(dataset, (".json",)):
    read = functools.cache(read_squad)
    pieces = tables.part(dataset, split, found, lambda path: len(read(path)))
    return [read(path)[i] for path, here in pieces for i in here]
  rows = tables.read(dataset, split, data_dir, COLUMNS).rows
  return [
    Question(name, question, context, tuple(zip(texts, starts, strict=True)))
    for name, question, context, texts, starts in rows
  ]


@functools.lru_cache(maxsize=2)
def _windows(data: QuestionAnswering, split: str) -> tuple[list[Window], list[np.ndarray]]:
  found, offsets = [], []
  for number, (query, context) in enumerate(data.encoded(data.questions(split))):
    for first, count in data.spans(query, context):
      found.append(Window(number, first, count, len(query) + 2))
    offsets.append(context.offsets)
  return found, offsets


class Answer(NamedTuple):
  """An answer: its text, its score (the sum of two logits), and how much better the score of no answer is."""

  text: str
  score: float
  null: float


def choose(
  logits: Sequence[np.ndarray],
  placed: Sequence[Window],
  offsets: np.ndarray,
  context: str,
  n_best_size: int = 20,
  max_answer_length: int = 30,
) -> Answer:
  """The best answer to one question out of all its windows (Devlin et al. 2019, 4.2 and 4.3; `run_squad.py`).

  Args:
    logits: of each window, beginning and end [T, 2].
    placed: the question's windows.
    offsets: characters of the context's tokens [n, 2].
    context: the text.
    n_best_size: how many beginnings and ends of each window are tried with each other.
    max_answer_length: tokens of an answer at most.
  """
  best = best_context([(w.first, w.count) for w in placed], len(offsets)) if len(offsets) else np.zeros(0, int)
  found, null = (-np.inf, 0, 0), np.inf
  for number, window in enumerate(placed):
    row = logits[number]
    null = min(null, float(row[0].sum()))
    inside = row[window.position : window.position + window.count]
    starts, ends = (np.argsort(-side, kind="stable")[:n_best_size] for side in inside.T)
    # A start counts in the window with most context around it.
    starts = starts[best[window.first + starts] == number]
    if not len(starts):
      continue
    sizes = ends[None] - starts[:, None] + 1
    scores = inside[starts, 0][:, None] + inside[ends, 1][None]
    scores = np.where((sizes >= 1) & (sizes <= max_answer_length), scores, -np.inf)
    start, end = np.unravel_index(scores.argmax(), scores.shape)
    found = max(found, (float(scores[start, end]), window.first + starts[start], window.first + ends[end]))
  score, first, last = found
  if score == -np.inf:
    return Answer("", score, np.inf)
  return Answer(context[offsets[first][0] : offsets[last][1]].strip(), score, null - score)
