"""Questions whose answers are part of a text (SQuAD 1.1 and 2.0): windows over the text, and answers out of them."""

import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from train.data.text import tables
from train.data.text.labelled import Labelled, RowBuilder, Rows

COLUMNS = ("id", "question", "context", "answers/text", "answers/answer_start")
# An answer that is not where the file says is looked for so many letters before and after.
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
    ValueError: it is no such file; what is wrong is told, with the question.
  """
  where, questions = "", []
  try:
    for a, article in enumerate(json.loads(path.read_text(encoding="utf-8"))["data"]):
      for p, paragraph in enumerate(article["paragraphs"]):
        where = f", article {a}, paragraph {p}"
        context = paragraph["context"]
        for entry in paragraph["qas"]:
          where = f", question {entry['id']!r}"
          # 2.0 tells plausible answers of questions without one; those are elsewhere.
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
    place: where in the row it stands.
  """

  question: int
  first: int
  count: int
  place: int


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
  """Which window shows each token of a context best: with most tokens on the side that has fewer (`run_squad.py`).

  Args:
    spans: of `windows`.
    length: of the context.

  Returns:
    int [length], a number of a window
  """
  place = np.arange(length)
  left, right = (
    np.stack([side(first, count) for first, count in spans])
    for side in (lambda first, count: place - first, lambda first, count: first + count - 1 - place)
  )
  size = np.array([count for _, count in spans])[:, None]
  score = np.minimum(left, right) + 0.01 * size
  return np.where((left >= 0) & (right >= 0), score, -np.inf).argmax(0)


def find_answer(context: str, text: str, start: int) -> tuple[int, int] | None:
  """The first letter of an answer and the one after its last, which is at `start` or very near; None if it is not."""
  for shift in sorted(range(-NEAR, NEAR + 1), key=abs):
    if text and start + shift >= 0 and context.startswith(text, start + shift):
      return start + shift, start + shift + len(text)
  return None


@dataclasses.dataclass(frozen=True)
class QuestionAnswering(Labelled):
  """Questions about texts: what `config.data = dict(name="question_answering", ...)` makes.

  A row is "[CLS] question [SEP] window [SEP]". Besides the arrays of `train.data.text.labelled`, a batch has
  "start_positions" and "end_positions" int32 [B]: the positions of the first and the last token of the answer; 0, that
  of [CLS], where a window has none.

  Attributes:
    dataset: "squad/v1.1" or "squad/v2.0" of TFDS, or another with the same features; or the path of a folder of SQuAD's
      files, whose names are the splits: "train-v1.1", "dev-v1.1".
    vocabulary: its file or folder, or the work directory of the run that pretrained the model.
    train_split, eval_split: what to train and to evaluate on.
    data_dir: where prepared sets are; by default where TFDS keeps them.
    lowercase: whether the vocabulary is of lower-case text; None: as its file says.
    length: tokens in a row at most.
    stride: from a window to the next, in tokens.
    question_length: tokens of a question at most.
    buckets: how many lengths of batches there are; each is a program to compile.

  Raises:
    ValueError: any of the above is not what it should be, before anything is read.
  """

  dataset: str
  vocabulary: str = ""
  train_split: str = "train"
  eval_split: str = "validation"
  data_dir: str | None = None
  lowercase: bool | None = None
  length: int = 384
  stride: int = 128
  question_length: int = 64
  buckets: int = 2

  unit = "windows"
  head = "question_answering"
  row_labels: ClassVar = {"start_positions": np.int32, "end_positions": np.int32}

  def __post_init__(self):
    super().__post_init__()
    room = self.length - self.question_length - 3
    for key, most in dict(question_length=self.length - 4, stride=room).items():
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
    """The windows of a split in order, and for each question where its context's tokens are, letters [n, 2]."""
    return _windows(self, split or self.eval_split)

  def encoded(self, questions: Sequence[Question]) -> Iterator[tuple[list[int], "Context"]]:
    """The tokens of each question, cut, and of its context, which is encoded once for all of its questions."""
    unique = list(dict.fromkeys(question.context for question in questions))
    contexts = {}
    for begin in range(0, len(unique), 512):
      texts = unique[begin : begin + 512]
      for text, found in zip(texts, self.words.tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
        offsets = np.array(found.offsets, np.int32).reshape(-1, 2)
        contexts[text] = Context(np.array(found.ids, np.int32), offsets)
    encoded = self.words.encode([question.question for question in questions])
    for question, asked in zip(questions, encoded, strict=True):
      yield asked[: self.question_length], contexts[question.context]

  def spans(self, asked: Sequence[int], context: "Context") -> list[tuple[int, int]]:
    """The windows over the context of a question."""
    return windows(len(context.ids), self.length - len(asked) - 3, self.stride)

  def read(self, split: str, train: bool) -> Rows:
    """The windows of a split in tokens, with their answers; of several right answers, the first.

    Raises:
      ValueError: see `questions`.
    """
    builder, questions = RowBuilder(self.words, self.length), self.questions(split)
    places, lost = [], 0
    for question, (asked, context) in zip(questions, self.encoded(questions), strict=True):
      span = find_answer(question.context, *question.answers[0]) if question.answers else None
      tokens = None if span is None else context.tokens(*span)
      if question.answers and tokens is None:
        lost += 1
        if train:  # as published: not learned from
          continue
      for first, count in self.spans(asked, context):
        builder.add(asked, context.ids[first : first + count].tolist())
        inside = tokens is not None and first <= tokens[0] and tokens[1] < first + count
        shift = len(asked) + 2 - first
        places.append((tokens[0] + shift, tokens[1] + shift) if inside else (0, 0))
    note = f"of {len(questions):,} questions"
    note += f", {lost:,} answers are not where they should be" if lost else ""
    start, end = np.array(places, np.int32).reshape(-1, 2).T
    return builder.finish(labels={"start_positions": start, "end_positions": end}, note=note)


class Context(NamedTuple):
  """Tokens [n], and the letters that each stands for, from and to [n, 2]."""

  ids: np.ndarray
  offsets: np.ndarray

  def tokens(self, start: int, end: int) -> tuple[int, int] | None:
    """The first and last token that have any of these letters; None if none has."""
    inside = np.flatnonzero((self.offsets[:, 1] > start) & (self.offsets[:, 0] < end))
    return (int(inside[0]), int(inside[-1])) if len(inside) else None


@functools.lru_cache(maxsize=4)
def _questions(dataset: str, split: str, data_dir: str | None) -> list[Question]:
  if found := tables.local_files(dataset, (".json",)):
    read = functools.cache(read_squad)
    pieces = tables.part(dataset, split, found, lambda path: len(read(path)))
    return [read(path)[i] for path, here in pieces for i in here]
  rows = tables.read(dataset, split, data_dir, COLUMNS).rows
  return [Question(*rest, tuple(zip(texts, starts, strict=True))) for *rest, texts, starts in rows]


@functools.lru_cache(maxsize=2)
def _windows(data: QuestionAnswering, split: str) -> tuple[list[Window], list[np.ndarray]]:
  found, offsets = [], []
  for number, (asked, context) in enumerate(data.encoded(data.questions(split))):
    for first, count in data.spans(asked, context):
      found.append(Window(number, first, count, len(asked) + 2))
    offsets.append(context.offsets)
  return found, offsets


class Answer(NamedTuple):
  """An answer: its text, how good it is (the sum of two logits), and how much better it is that there is none."""

  text: str
  score: float
  null: float


def choose(
  logits: Sequence[np.ndarray],
  placed: Sequence[Window],
  offsets: np.ndarray,
  context: str,
  n_best: int = 20,
  longest: int = 30,
) -> Answer:
  """The best answer to one question out of all its windows (Devlin et al. 2019, 4.2 and 4.3; `run_squad.py`).

  Args:
    logits: of each window, beginning and end [T, 2].
    placed: the question's windows.
    offsets: letters of the context's tokens [n, 2].
    context: the text.
    n_best: how many beginnings and ends of each window are tried with each other.
    longest: tokens of an answer at most.
  """
  best = best_context([(w.first, w.count) for w in placed], len(offsets)) if len(offsets) else np.zeros(0, int)
  found, null = (-np.inf, 0, 0), np.inf
  for number, window in enumerate(placed):
    logits_T2 = logits[number]
    null = min(null, float(logits_T2[0].sum()))
    inside_T2 = logits_T2[window.place : window.place + window.count]
    start_P, end_P = (np.argsort(-side, kind="stable")[:n_best] for side in inside_T2.T)
    # A beginning counts in the window that shows it best.
    start_P = start_P[best[window.first + start_P] == number]
    if not len(start_P):
      continue
    size_PP = end_P[None] - start_P[:, None] + 1
    score_PP = inside_T2[start_P, 0][:, None] + inside_T2[end_P, 1][None]
    score_PP = np.where((size_PP >= 1) & (size_PP <= longest), score_PP, -np.inf)
    start, end = np.unravel_index(score_PP.argmax(), score_PP.shape)
    found = max(found, (float(score_PP[start, end]), window.first + start_P[start], window.first + end_P[end]))
  score, first, last = found
  if score == -np.inf:
    return Answer("", score, np.inf)
  return Answer(context[offsets[first][0] : offsets[last][1]].strip(), score, null - score)
