"""Documents to the rows that BERT is pretrained on: sentence pairs, or full sentences, or several of them packed.

What BERT's preparation of pretraining data does by its description (Devlin et al. 2019, 3.1 and A.2), and RoBERTa's
FULL-SENTENCES (Liu et al. 2019, 4.2). All is a pure function of the documents and a random generator. A sequence is
represented by the ranges of its parts A and B in the documents; its tokens are gathered at the end.
"""

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from train.data.text.documents import Documents, ranges, starts_of
from train.data.text.vocabulary import Vocabulary

# Of a row's length, what a packed pair may be truncated by so that it fits.
SLACK = 16
SHORTEST = 8  # tokens of a row: less has no room for a pair


@dataclass(frozen=True, eq=False)
class Rows:
  """Rows of training, one after the other.

  Attributes:
    tokens: of all rows.
    row_starts: where each row begins in them [R + 1].
    ends: where each sequence ends, in tokens of its row.
    second_starts: where its B begins; its end, where there is none.
    next_sentence_label: 1 if B follows A in the text, 0 if it is random, -1 if there is none.
    first_sequences: the first sequence of each row [R + 1].
  """

  tokens: np.ndarray
  row_starts: np.ndarray
  ends: np.ndarray
  second_starts: np.ndarray
  next_sentence_label: np.ndarray
  first_sequences: np.ndarray

  def __len__(self) -> int:
    return len(self.row_starts) - 1

  def examples(self) -> Iterator[dict[str, np.ndarray]]:
    """Each row as it is stored: "input_ids" [n]; of its sequences "ends", "second_starts", "next_sentence_label"
    [k].
    """
    for i in range(len(self)):
      row, sequences = slice(*self.row_starts[i : i + 2]), slice(*self.first_sequences[i : i + 2])
      yield {
        "input_ids": self.tokens[row],
        "ends": self.ends[sequences],
        "second_starts": self.second_starts[sequences],
        "next_sentence_label": self.next_sentence_label[sequences],
      }


class _Sequences(NamedTuple):
  """Where A and B of each sequence begin and end in the tokens; B is empty where next is -1."""

  a_start: np.ndarray
  a_end: np.ndarray
  b_start: np.ndarray
  b_end: np.ndarray
  next_sentence_label: np.ndarray


def make_rows(
  documents: Documents,
  vocabulary: Vocabulary,
  rng: np.random.Generator,
  *,
  length: int = 128,
  pairs: bool = True,
  short_seq_prob: float | None = None,
  pack: bool = False,
  dupe_factor: int = 1,
) -> Rows:
  """Rows of documents.

  With `pairs` a row is [CLS] A [SEP] B [SEP]. Sentences of a document are taken until they have the wanted length; A
  is the first few of them, as many as is drawn. B is the others, or, for half of the rows, begins at a random sentence
  of another document; the others are then taken again. What is too long is truncated at the ends of the longer of A
  and B, at a random side. Where a document has one sentence left, B is random. Where there is but one document, a
  random B begins at a sentence of it that is not in the row and not the next, if there is one; otherwise B follows;
  where it cannot, there is none.

  Without `pairs` a row is [CLS] A [SEP], and A full sentences, as many as there is room for; they go on into the next
  document, with a [SEP] between. A sentence longer than that is split into pieces. With `pack` A is a piece of one
  document instead, of which all but the last are as long as the row.

  With `pack` a row has as many sequences as fit: the longest first, each into the row where it leaves least
  (best-fit decreasing). Where they are pairs and a 16th of a row too long together, the longest is truncated.

  Args:
    documents: of one chunk.
    vocabulary: its [CLS] and [SEP].
    rng: draws everything.
    length: of a row, in tokens, at most.
    pairs: see above.
    short_seq_prob: share of sequences whose wanted length is drawn from 2 to `length - 3`, so that training covers
      short texts. It is drawn for each sequence (BERT's preparation did it for each document). None: 0.1 with `pairs`,
      else 0.
    pack: see above.
    dupe_factor: how often the documents are gone through, with other draws each time.

  Raises:
    ValueError: a length without room, a share that is none, less than one copy.
  """
  check(length, pairs, short_seq_prob, pack, dupe_factor)
  if short_seq_prob is None:
    short_seq_prob = 0.1 if pairs else 0.0
  make = _pairs if pairs else _pieces if pack else _full_sentences
  stream = _concatenated(documents, vocabulary.sep) if make is _full_sentences else documents.tokens
  made = [make(documents, length, short_seq_prob, rng) for _ in range(dupe_factor)] if len(documents) else [_nothing()]
  sequences = _Sequences(*map(np.concatenate, zip(*made, strict=True)))
  if pack:
    # A pair was truncated to be no longer than a row; by a little more, if another one then fits too.
    order, counts, excess = _fit(_lengths(sequences)[1], length, length // SLACK if pairs else 0)
    sequences = _shortened(sequences, excess, rng)
    sequences = _Sequences(*(x[order] for x in sequences))
  else:
    counts = np.ones(len(sequences.next_sentence_label), np.int64)
  return _gather(stream, sequences, counts, vocabulary)


def check(length: int, pairs: bool, short_seq_prob: float | None, pack: bool, dupe_factor: int) -> None:
  """Raises ValueError for arguments that `make_rows` cannot do; all are named."""
  faults = [f"length is {length}; wanted at least {SHORTEST} tokens"] * (length < SHORTEST)
  faults += [f"short_seq_prob is {short_seq_prob}; wanted a share, 0 to 1"] * (not 0 <= (short_seq_prob or 0) <= 1)
  faults += [f"dupe_factor is {dupe_factor}; wanted at least 1"] * (dupe_factor < 1)
  if pack and not pairs and short_seq_prob:
    faults.append(
      f"short_seq_prob is {short_seq_prob}, but pieces of documents that fill rows are as short as documents are: "
      "leave it out"
    )
  if faults:
    raise ValueError("\n".join(faults))


def _uniform(rng: np.random.Generator) -> Callable[[], float]:
  """Numbers in [0, 1), one a call: many drawn at a time, since a draw costs more than a number."""
  return itertools.chain.from_iterable(iter(lambda: rng.random(4096).tolist(), None)).__next__


def _nothing() -> _Sequences:
  return _Sequences(*np.zeros((5, 0), np.int64))


def _pairs(documents: Documents, length: int, short_seq_prob: float, rng: np.random.Generator) -> _Sequences:
  room, draw, found = length - 3, _uniform(rng), []
  start, first = documents.sentence_starts.tolist(), documents.document_starts.tolist()
  others = len(documents) - 1
  for document in range(len(documents)):
    begin, end = first[document], first[document + 1]
    i = begin
    while i < end:
      wanted = 2 + int(draw() * (room - 1)) if draw() < short_seq_prob else room
      j = bisect_left(start, start[i] + wanted, i + 1, end)
      middle = i + 1 + int(draw() * (j - i - 1))  # A is sentences i to middle
      b, b_end, follows = middle, j, 1
      if j - i == 1 or draw() < 0.5:
        low, high = begin, end
        if others:
          other = int(draw() * others)
          other += other >= document
          low, high = first[other], first[other + 1]
          b, follows = low + int(draw() * (high - low)), 0
        elif (choices := (i - low) + max(high - j - 1, 0)) > 0:
          b, follows = low + int(draw() * choices), 0
          if b >= i:
            b += j + 1 - i
          else:
            high = i
        elif j < end and j - i == 1:
          j = b_end = j + 1
        elif j - i == 1:
          follows = -1
        if not follows:
          b_end = bisect_left(start, start[b] + max(wanted - (start[middle] - start[i]), 1), b + 1, high)
      found.append((start[i], start[middle], start[b], start[b_end], follows))
      i = j if follows else middle
  a_start, a_end, b_start, b_end, next_sentence_label = np.array(found, np.int64).T
  b_end = np.where(next_sentence_label < 0, b_start, b_end)
  excess = np.maximum(a_end - a_start + b_end - b_start - room, 0)
  return _shortened(_Sequences(a_start, a_end, b_start, b_end, next_sentence_label), excess, rng)


def _shortened(sequences: _Sequences, excess: np.ndarray, rng: np.random.Generator) -> _Sequences:
  """A and B without so many tokens, as if one after the other were taken from the longer, or from B if none is."""
  a_start, a_end, b_start, b_end, next_sentence_label = sequences
  longer_by = (a_end - a_start) - (b_end - b_start)
  alone = np.minimum(np.abs(longer_by), excess)
  excess_a = np.where(longer_by > 0, alone, 0) + (excess - alone) // 2
  excess_b = excess - excess_a
  front_a, front_b = rng.binomial(excess_a, 0.5), rng.binomial(excess_b, 0.5)
  a_end, b_end = a_end - (excess_a - front_a), b_end - (excess_b - front_b)
  return _Sequences(a_start + front_a, a_end, b_start + front_b, b_end, next_sentence_label)


def _concatenated(documents: Documents, sep: int) -> np.ndarray:
  """All tokens, with a [SEP] behind each document."""
  return np.insert(documents.tokens, documents.sentence_starts[documents.document_starts[1:]], sep)


def _full_sentences(documents: Documents, length: int, short_seq_prob: float, rng: np.random.Generator) -> _Sequences:
  room, draw, found = length - 2, _uniform(rng), []
  # Each document is moved by the [SEP]s before it.
  starts = documents.sentence_starts[:-1] + np.repeat(np.arange(len(documents)), np.diff(documents.document_starts))
  start, end = (x.tolist() for x in _split(starts, np.diff(documents.sentence_starts), room))
  i = 0
  while i < len(start):
    wanted = 2 + int(draw() * (room - 1)) if short_seq_prob and draw() < short_seq_prob else room
    j = max(bisect_right(end, start[i] + wanted, i), i + 1)
    found.append((start[i], end[j - 1]))
    i = j
  return _without_b(*np.array(found, np.int64).T)


def _pieces(documents: Documents, length: int, short_seq_prob: float, rng: np.random.Generator) -> _Sequences:
  starts = documents.sentence_starts[documents.document_starts]
  return _without_b(*_split(starts[:-1], np.diff(starts), length - 2))


def _split(begin: np.ndarray, length: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
  """Where pieces of at most `room` begin and end; only the last of each range is shorter."""
  count = -(-length // room)
  piece = np.repeat(begin, count) + ranges(np.zeros_like(begin), count) * room
  return piece, np.minimum(piece + room, np.repeat(begin + length, count))


def _without_b(a_start: np.ndarray, a_end: np.ndarray) -> _Sequences:
  return _Sequences(a_start, a_end, a_end, a_end, np.full_like(a_start, -1))


def _lengths(sequences: _Sequences) -> tuple[np.ndarray, np.ndarray]:
  """In tokens: where B begins, and all of it, with the special tokens."""
  second_starts = sequences.a_end - sequences.a_start + 2
  return second_starts, second_starts + np.where(
    sequences.next_sentence_label < 0, 0, sequences.b_end - sequences.b_start + 1
  )


def _gather(tokens: np.ndarray, sequences: _Sequences, counts: np.ndarray, vocabulary: Vocabulary) -> Rows:
  """Rows of so many sequences each."""
  second_starts, lengths = _lengths(sequences)
  has_second = sequences.next_sentence_label >= 0
  # [CLS] and [SEP] are two more tokens to gather.
  cls, sep = (np.full_like(second_starts, len(tokens) + i) for i in range(2))
  one = np.ones_like(second_starts)
  part_starts = np.stack([cls, sequences.a_start, sep, sequences.b_start, sep], 1)
  part_lengths = np.stack([one, second_starts - 2, one, lengths - second_starts - has_second, has_second], 1)
  pool = np.append(tokens, np.array([vocabulary.cls, vocabulary.sep], tokens.dtype))
  ends, first_sequences = np.cumsum(lengths), starts_of(counts)
  row_starts = starts_of(lengths)[first_sequences]
  before = np.repeat(row_starts[:-1], counts)
  return Rows(
    pool[ranges(part_starts.ravel(), part_lengths.ravel())],
    row_starts,
    (ends - before).astype(np.int32),
    (ends - lengths + second_starts - before).astype(np.int32),
    sequences.next_sentence_label.astype(np.int32),
    first_sequences,
  )


def _fit(lengths: np.ndarray, room: int, slack: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Which sequences are in a row; rows are in the order of their first sequences.

  Args:
    lengths: of each, in tokens.
    room: of a row.
    slack: a row may have so many more, if its longest sequence can be truncated by them.

  Returns:
    the sequences' numbers, row by row; how many each row has; by how much each is to be truncated.
  """
  row_of, excess, rows = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64), 0
  left = [[] for _ in range(room + slack + 1)]  # rows by what is left in them, slack included
  longest = []
  some = 0  # bit n is set if there are rows with n left
  sizes = lengths.tolist()
  for i in np.argsort(-lengths, kind="stable").tolist():
    wanted = sizes[i]
    least = wanted if wanted > 4 * slack + 4 else wanted + slack
    if fitting := some >> least:
      space = least + (fitting & -fitting).bit_length() - 1
      row = left[space].pop()
      if not left[space]:
        some ^= 1 << space
    else:
      space, row, rows = room + slack, rows, rows + 1
      longest.append(i)
    row_of[i] = row
    left[space - wanted].append(row)
    some |= 1 << (space - wanted)
  for space, here in enumerate(left[:slack]):
    excess[[longest[row] for row in here]] = slack - space
  first_sequences = np.full(rows, len(lengths))
  np.minimum.at(first_sequences, row_of, np.arange(len(lengths)))
  order = np.argsort(first_sequences[row_of], kind="stable")
  return order, np.bincount(row_of, minlength=rows)[np.argsort(first_sequences)], excess
