"""Documents to the rows that BERT is pretrained on: sentence pairs, or full sentences, or several of them packed.

What BERT's preparation of pretraining data does by its description (Devlin et al. 2019, 3.1 and A.2), and RoBERTa's
FULL-SENTENCES (Liu et al. 2019, 4.2). All is a pure function of the documents and a random generator. A sequence is
known by where its parts A and B stand in the documents; only in the end are its tokens gathered.
"""

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from train.data.text.vocabulary import Vocabulary

# Words that an encoder remembers; then it forgets all.
REMEMBERED = 2**18
# Of a row's length, what a packed pair may be cut by so that it fits.
SLACK = 16
SHORTEST = 8  # tokens of a row: less has no room for a pair


@dataclass(frozen=True, eq=False)
class Documents:
  """Tokens [N] of all documents; where each sentence begins in them [S + 1], and each document in those [D + 1].

  No sentence and no document is empty. `empty` is how many documents were.
  """

  token_N: np.ndarray
  start_S: np.ndarray
  first_D: np.ndarray
  empty: int = 0

  def __len__(self) -> int:
    return len(self.first_D) - 1

  def part(self, chosen: Sequence[int]) -> "Documents":
    """Some of the documents, by their numbers."""
    chosen = np.asarray(chosen, np.int64)
    count = self.first_D[chosen + 1] - self.first_D[chosen]
    sentence = _ranges(self.first_D[chosen], count)
    begin, length = self.start_S[sentence], self.start_S[sentence + 1] - self.start_S[sentence]
    return Documents(self.token_N[_ranges(begin, length)], _ends(length), _ends(count))


@dataclass(frozen=True, eq=False)
class Rows:
  """Rows of training, one after the other.

  Attributes:
    token_N: of all rows.
    row_R: where each row begins in them [R + 1].
    end_Q: where each sequence ends, in tokens of its row.
    split_Q: where its B begins; its end, where there is none.
    next_Q: 1 if B follows A in the text, 0 if it is random, -1 if there is none.
    first_R: the first sequence of each row [R + 1].
  """

  token_N: np.ndarray
  row_R: np.ndarray
  end_Q: np.ndarray
  split_Q: np.ndarray
  next_Q: np.ndarray
  first_R: np.ndarray

  def __len__(self) -> int:
    return len(self.row_R) - 1

  def examples(self) -> Iterator[dict[str, np.ndarray]]:
    """Each row as it is stored: "input_ids" [n]; of its sequences "ends", "second_starts", "next_sentence_label"
    [k].
    """
    for i in range(len(self)):
      tokens, sequences = slice(*self.row_R[i : i + 2]), slice(*self.first_R[i : i + 2])
      yield {
        "input_ids": self.token_N[tokens],
        "ends": self.end_Q[sequences],
        "second_starts": self.split_Q[sequences],
        "next_sentence_label": self.next_Q[sequences],
      }


class _Sequences(NamedTuple):
  """Where A and B of each sequence begin and end in the tokens; B is empty where next is -1."""

  a_Q: np.ndarray
  a_end_Q: np.ndarray
  b_Q: np.ndarray
  b_end_Q: np.ndarray
  next_Q: np.ndarray


class Encoder:
  """Documents of sentences to tokens. It remembers the words it has seen: text repeats them, and a look costs less.

  Attributes:
    vocabulary: if no rule of it looks beyond a space, words are encoded one by one; else sentences are.
  """

  def __init__(self, vocabulary: Vocabulary):
    self.vocabulary = vocabulary
    self._forget()

  def _forget(self) -> None:
    self._words = _Numbers()
    self._token_N, self._length_V = np.zeros(0, np.int32), np.zeros(0, np.int64)

  def __call__(self, documents: Sequence[Sequence[str]]) -> Documents:
    """Encodes; the words of a sentence stand between single spaces (as `train.data.text.corpora` gives them)."""
    sentences = [*itertools.chain.from_iterable(documents)]
    if self.vocabulary.separable:
      token_N, length_S = self._by_words(sentences)
    else:
      ids = self.vocabulary.encode(sentences)
      length_S = np.fromiter(map(len, ids), np.int64, len(ids))
      token_N = np.fromiter(itertools.chain.from_iterable(ids), np.int32, length_S.sum())
    # Sentences without a token have no place in `start_S`, but none in the tokens either.
    document_S = np.repeat(np.arange(len(documents)), [*map(len, documents)])[length_S > 0]
    count_D = np.bincount(document_S, minlength=len(documents))
    return Documents(token_N, _ends(length_S[length_S > 0]), _ends(count_D[count_D > 0]), int((count_D == 0).sum()))

  def _by_words(self, sentences: list[str]) -> tuple[np.ndarray, np.ndarray]:
    if len(self._words) > REMEMBERED:
      self._forget()
    # A sentence's words and one word that is none, at which it ends.
    words = " \n ".join(sentences).split(" ") if sentences else []
    word_W = np.fromiter(map(self._words.__getitem__, words), np.int64, len(words))
    if new := [*itertools.islice(self._words, len(self._length_V), None)]:
      ids = self.vocabulary.encode(["" if word == "\n" else word for word in new])
      length_V = np.fromiter(map(len, ids), np.int64, len(ids))
      token_N = np.fromiter(itertools.chain.from_iterable(ids), np.int32, length_V.sum())
      self._token_N, self._length_V = np.append(self._token_N, token_N), np.append(self._length_V, length_V)
    length_W = self._length_V[word_W]
    token_N = self._token_N[_ranges(_ends(self._length_V)[word_W], length_W)]
    end_S = np.append(np.flatnonzero(word_W == self._words["\n"]), len(words)) if sentences else np.zeros(0, np.int64)
    return token_N, np.diff(_ends(length_W)[end_S], prepend=0)


class _Numbers(dict):
  """Words and their numbers, in the order in which they came."""

  def __missing__(self, word: str) -> int:
    self[word] = number = len(self)
    return number


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
  of another document; the others are then taken again. What is too long is cut at the ends of the longer of A and B,
  at a random side. Where a document has one sentence left, B is random. Where there is but one document, a random B
  begins at a sentence of it that is not in the row and not the next, if there is one; otherwise B follows, and where
  it cannot, there is none.

  Without `pairs` a row is [CLS] A [SEP], and A full sentences, as many as there is room for; they go on into the next
  document, with a [SEP] between. A sentence longer than that is cut into pieces. With `pack` A is a piece of one
  document instead, of which all but the last are as long as the row.

  With `pack` a row has as many sequences as fit: the longest first, each into the row where it leaves least
  (best-fit decreasing). Where they are pairs and a 16th of a row too long together, the longest is cut.

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
  if pairs:
    stream_N, make = documents.token_N, _pairs
  elif pack:
    stream_N, make = documents.token_N, _pieces
  else:
    stream_N, make = _joined(documents, vocabulary.sep), _full_sentences
  made = [make(documents, length, short_seq_prob, rng) for _ in range(dupe_factor)] if len(documents) else [_nothing()]
  sequences = _Sequences(*map(np.concatenate, zip(*made, strict=True)))
  if pack:
    # A pair was cut to be no longer than a row; that much more often, it is cut so that another one fits too.
    order_Q, count_R, over_Q = _fit(_lengths(sequences)[1], length, length // SLACK if pairs else 0)
    sequences = _shortened(sequences, over_Q, rng)
    sequences = _Sequences(*(x[order_Q] for x in sequences))
  else:
    count_R = np.ones(len(sequences.next_Q), np.int64)
  return _gather(stream_N, sequences, count_R, vocabulary)


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
  start, first = documents.start_S.tolist(), documents.first_D.tolist()
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
  a_Q, a_end_Q, b_Q, b_end_Q, next_Q = np.array(found, np.int64).T
  b_end_Q = np.where(next_Q < 0, b_Q, b_end_Q)
  over_Q = np.maximum(a_end_Q - a_Q + b_end_Q - b_Q - room, 0)
  return _shortened(_Sequences(a_Q, a_end_Q, b_Q, b_end_Q, next_Q), over_Q, rng)


def _shortened(sequences: _Sequences, over_Q: np.ndarray, rng: np.random.Generator) -> _Sequences:
  """A and B without so many tokens, as if one after the other were taken from the longer, or from B if none is."""
  a_Q, a_end_Q, b_Q, b_end_Q, next_Q = sequences
  more_Q = (a_end_Q - a_Q) - (b_end_Q - b_Q)
  alone_Q = np.minimum(np.abs(more_Q), over_Q)
  cut_a_Q = np.where(more_Q > 0, alone_Q, 0) + (over_Q - alone_Q) // 2
  cut_b_Q = over_Q - cut_a_Q
  front_a_Q, front_b_Q = rng.binomial(cut_a_Q, 0.5), rng.binomial(cut_b_Q, 0.5)
  return _Sequences(
    a_Q + front_a_Q, a_end_Q - (cut_a_Q - front_a_Q), b_Q + front_b_Q, b_end_Q - (cut_b_Q - front_b_Q), next_Q
  )


def _joined(documents: Documents, sep: int) -> np.ndarray:
  """All tokens, with a [SEP] behind each document."""
  return np.insert(documents.token_N, documents.start_S[documents.first_D[1:]], sep)


def _full_sentences(documents: Documents, length: int, short_seq_prob: float, rng: np.random.Generator) -> _Sequences:
  room, draw, found = length - 2, _uniform(rng), []
  # Each document is moved by the [SEP]s before it.
  begin_S = documents.start_S[:-1] + np.repeat(np.arange(len(documents)), np.diff(documents.first_D))
  start, end = (x.tolist() for x in _cut(begin_S, np.diff(documents.start_S), room))
  i = 0
  while i < len(start):
    wanted = 2 + int(draw() * (room - 1)) if short_seq_prob and draw() < short_seq_prob else room
    j = max(bisect_right(end, start[i] + wanted, i), i + 1)
    found.append((start[i], end[j - 1]))
    i = j
  return _without_b(*np.array(found, np.int64).T)


def _pieces(documents: Documents, length: int, short_seq_prob: float, rng: np.random.Generator) -> _Sequences:
  begin_D = documents.start_S[documents.first_D]
  return _without_b(*_cut(begin_D[:-1], np.diff(begin_D), length - 2))


def _cut(begin: np.ndarray, length: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
  """Where pieces of at most `room` begin and end; only the last of each range is shorter."""
  count = -(-length // room)
  piece = np.repeat(begin, count) + _ranges(np.zeros_like(begin), count) * room
  return piece, np.minimum(piece + room, np.repeat(begin + length, count))


def _without_b(a_Q: np.ndarray, a_end_Q: np.ndarray) -> _Sequences:
  return _Sequences(a_Q, a_end_Q, a_end_Q, a_end_Q, np.full_like(a_Q, -1))


def _lengths(sequences: _Sequences) -> tuple[np.ndarray, np.ndarray]:
  """In tokens: where B begins, and all of it, with the special tokens."""
  split_Q = sequences.a_end_Q - sequences.a_Q + 2
  return split_Q, split_Q + np.where(sequences.next_Q < 0, 0, sequences.b_end_Q - sequences.b_Q + 1)


def _gather(token_N: np.ndarray, sequences: _Sequences, count_R: np.ndarray, vocabulary: Vocabulary) -> Rows:
  """Rows of so many sequences each."""
  split_Q, length_Q = _lengths(sequences)
  has_b_Q = sequences.next_Q >= 0
  # [CLS] and [SEP] are two more tokens to gather.
  cls, sep = (np.full_like(split_Q, len(token_N) + i) for i in range(2))
  one = np.ones_like(split_Q)
  begin_Q5 = np.stack([cls, sequences.a_Q, sep, sequences.b_Q, sep], 1)
  length_Q5 = np.stack([one, split_Q - 2, one, length_Q - split_Q - has_b_Q, has_b_Q], 1)
  pool_N = np.append(token_N, np.array([vocabulary.cls, vocabulary.sep], token_N.dtype))
  end_Q, first_R = np.cumsum(length_Q), _ends(count_R)
  row_R = _ends(length_Q)[first_R]
  before_Q = np.repeat(row_R[:-1], count_R)
  return Rows(
    pool_N[_ranges(begin_Q5.ravel(), length_Q5.ravel())],
    row_R,
    (end_Q - before_Q).astype(np.int32),
    (end_Q - length_Q + split_Q - before_Q).astype(np.int32),
    sequences.next_Q.astype(np.int32),
    first_R,
  )


def _fit(length_Q: np.ndarray, room: int, slack: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Which sequences are in a row; rows are in the order of their first sequences.

  Args:
    length_Q: of each, in tokens.
    room: of a row.
    slack: a row may have so many more, if its longest sequence can be cut by them.

  Returns:
    the sequences' numbers, row by row; how many each row has; by how much each is to be cut.
  """
  row_Q, over_Q, rows = np.zeros(len(length_Q), np.int64), np.zeros(len(length_Q), np.int64), 0
  left = [[] for _ in range(room + slack + 1)]  # rows by what is left in them, slack included
  longest = []
  some = 0  # bit n is set if there are rows with n left
  lengths = length_Q.tolist()
  for i in np.argsort(-length_Q, kind="stable").tolist():
    wanted = lengths[i]
    least = wanted if wanted > 4 * slack + 4 else wanted + slack
    if fitting := some >> least:
      space = least + (fitting & -fitting).bit_length() - 1
      row = left[space].pop()
      if not left[space]:
        some ^= 1 << space
    else:
      space, row, rows = room + slack, rows, rows + 1
      longest.append(i)
    row_Q[i] = row
    left[space - wanted].append(row)
    some |= 1 << (space - wanted)
  for space, here in enumerate(left[:slack]):
    over_Q[[longest[row] for row in here]] = slack - space
  first_R = np.full(rows, len(length_Q))
  np.minimum.at(first_R, row_Q, np.arange(len(length_Q)))
  order_Q = np.argsort(first_R[row_Q], kind="stable")
  return order_Q, np.bincount(row_Q, minlength=rows)[np.argsort(first_R)], over_Q


def _ends(length: np.ndarray) -> np.ndarray:
  """Where each of ranges, one after the other, begins, and the last ends [n + 1]."""
  return np.concatenate([[0], np.cumsum(length)]).astype(np.int64)


def _ranges(begin: np.ndarray, length: np.ndarray) -> np.ndarray:
  """The numbers of ranges, one after the other."""
  ends = _ends(length)
  return np.repeat(begin - ends[:-1], length) + np.arange(ends[-1])
