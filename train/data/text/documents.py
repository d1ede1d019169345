"""Documents of sentences to tokens, in flat arrays: where sentences and documents begin is in arrays of their own."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from train.data.text.vocabulary import Vocabulary

# Words in an encoder's cache, which is then emptied.
CACHED_WORDS = 2**18


@dataclass(frozen=True, eq=False)
class Documents:
  """Tokens [N] of all documents; where each sentence begins in them [S + 1], and each document in those [D + 1].

  No sentence and no document is empty. `empty` is how many documents were.
  """

  tokens: np.ndarray
  sentence_starts: np.ndarray
  document_starts: np.ndarray
  empty: int = 0

  def __len__(self) -> int:
    return len(self.document_starts) - 1

  def part(self, chosen: Sequence[int] | np.ndarray) -> "Documents":
    """Some of the documents, by their numbers."""
    numbers = np.asarray(chosen, np.int64)
    count = self.document_starts[numbers + 1] - self.document_starts[numbers]
    sentence = ranges(self.document_starts[numbers], count)
    begin, length = self.sentence_starts[sentence], self.sentence_starts[sentence + 1] - self.sentence_starts[sentence]
    return Documents(self.tokens[ranges(begin, length)], starts_of(length), starts_of(count))


class Encoder:
  """Documents of sentences to tokens, with a cache of words: text repeats them.

  Attributes:
    vocabulary: if it is separable at spaces, words are encoded one by one; else sentences are.
  """

  def __init__(self, vocabulary: Vocabulary) -> None:
    self.vocabulary = vocabulary
    self._clear()

  def _clear(self) -> None:
    self._words = _Numbers()
    self._tokens, self._word_lengths = np.zeros(0, np.int32), np.zeros(0, np.int64)

  def __call__(self, documents: Sequence[Sequence[str]]) -> Documents:
    """Encodes; words are separated by single spaces (as `train.data.text.corpora` gives them)."""
    sentences = [*itertools.chain.from_iterable(documents)]
    if self.vocabulary.separable:
      tokens, lengths = self._by_words(sentences)
    else:
      ids = self.vocabulary.encode(sentences)
      lengths = np.fromiter(map(len, ids), np.int64, len(ids))
      tokens = np.fromiter(itertools.chain.from_iterable(ids), np.int32, lengths.sum())
    # Sentences without a token are in neither `sentence_starts` nor the tokens.
    document = np.repeat(np.arange(len(documents)), [*map(len, documents)])[lengths > 0]
    counts = np.bincount(document, minlength=len(documents))
    return Documents(tokens, starts_of(lengths[lengths > 0]), starts_of(counts[counts > 0]), int((counts == 0).sum()))

  def _by_words(self, sentences: list[str]) -> tuple[np.ndarray, np.ndarray]:
    if len(self._words) > CACHED_WORDS:
      self._clear()
    # The words of the sentences, each of which ends with the word "\n".
    words = " \n ".join(sentences).split(" ") if sentences else []
    word_numbers = np.fromiter(map(self._words.__getitem__, words), np.int64, len(words))
    if new := [*itertools.islice(self._words, len(self._word_lengths), None)]:
      ids = self.vocabulary.encode(["" if word == "\n" else word for word in new])
      word_lengths = np.fromiter(map(len, ids), np.int64, len(ids))
      tokens = np.fromiter(itertools.chain.from_iterable(ids), np.int32, word_lengths.sum())
      self._tokens, self._word_lengths = np.append(self._tokens, tokens), np.append(self._word_lengths, word_lengths)
    lengths = self._word_lengths[word_numbers]
    tokens = self._tokens[ranges(starts_of(self._word_lengths)[word_numbers], lengths)]
    ends = (
      np.append(np.flatnonzero(word_numbers == self._words["\n"]), len(words)) if sentences else np.zeros(0, np.int64)
    )
    return tokens, np.diff(starts_of(lengths)[ends], prepend=0)


class _Numbers(dict):
  """Words and their numbers, in the order in which they came."""

  def __missing__(self, word: str) -> int:
    self[word] = number = len(self)
    return number


def starts_of(length: np.ndarray) -> np.ndarray:
  """Where each of ranges, one after the other, begins, and the last ends [n + 1]."""
  return np.concatenate([[0], np.cumsum(length)]).astype(np.int64)


def ranges(begin: np.ndarray, length: np.ndarray) -> np.ndarray:
  """The numbers of ranges, one after the other."""
  ends = starts_of(length)
  return np.repeat(begin - ends[:-1], length) + np.arange(ends[-1])
