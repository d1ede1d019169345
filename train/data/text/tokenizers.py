"""Text to tokens and back: byte-pair encoding or a unigram model over bytes, so that no text is unknown; or words.

A text's tokens end with </s>. `decode(encode(text).ids)` is the text again, character by character, in Unicode's form
NFC: spaces are part of the tokens, as in SentencePiece (Kudo and Richardson 2018, arXiv:1808.06226, section 3.1), and
every byte is a token. Of words, too, but for those that are unknown: a model may copy them (`encode`, `decode`).
"""

import contextlib
import hashlib
import json
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from zoo.errors import nearest

# Their ids are their positions, in every tokenizer.
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
PAD, UNK, BOS, EOS = range(4)
KINDS = ("bpe", "unigram", "word")
FILE = "tokenizer.json"


def train_tokenizer(lines: Iterable[str], vocab_size: int, kind: str = "bpe") -> Tokenizer:
  """Trains a tokenizer; the same lines in the same order give the same one.

  Args:
    lines: texts, of all languages that are to share the vocabulary.
    vocab_size: tokens at most, special ones and the 256 bytes included.
    kind: "bpe" (Sennrich et al. 2016, arXiv:1508.07909, algorithm 1) or "unigram" (Kudo 2018, arXiv:1804.10959,
      section 3.2), over bytes; or "word", the words that are most frequent.

  Raises:
    ValueError: unknown kind, or a vocabulary that has no room for the bytes.
  """
  check(vocab_size, kind)
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  if kind == "word":
    tokenizer = word_tokenizer()
    trainer = trainers.WordLevelTrainer(vocab_size=vocab_size - len(SPECIAL), show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    found = tokenizer.get_vocab(with_added_tokens=False)
    return word_tokenizer(sorted(found, key=found.__getitem__))
  special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
  shared: dict[str, Any] = dict(
    vocab_size=vocab_size, show_progress=False, special_tokens=special, initial_alphabet=alphabet
  )
  if kind == "bpe":
    tokenizer, trainer = Tokenizer(models.BPE()), trainers.BpeTrainer(**shared)
  else:
    tokenizer, trainer = Tokenizer(models.Unigram()), trainers.UnigramTrainer(unk_token=SPECIAL[UNK], **shared)
  # A space before the first word makes it the same token as elsewhere; the decoder takes it away.
  tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Prepend(" ")])
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
  # One thread: sums of floats depend on the order of additions.
  with single_threaded():
    tokenizer.train_from_iterator(lines, trainer)
  if kind == "unigram":
    tokenizer.model = _in_order(tokenizer)
  return _finished(tokenizer, f"the trained {kind} tokenizer")


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
  """Within it, the library uses one thread."""
  name = "TOKENIZERS_PARALLELISM"
  before, os.environ[name] = os.environ.get(name), "false"
  try:
    yield
  finally:
    if before is None:
      del os.environ[name]
    else:
      os.environ[name] = before


def check(vocab_size: int, kind: str) -> None:
  """Raises ValueError for an unknown kind, or a vocabulary that has no room for what each has."""
  if kind not in KINDS:
    raise ValueError(f"unknown tokenizer {kind!r}{nearest(str(kind), KINDS)}")
  if kind == "word" and vocab_size <= len(SPECIAL):
    raise ValueError(f"vocab_size={vocab_size}; wanted more than {len(SPECIAL)}, the special tokens")
  least = len(SPECIAL) + len(pre_tokenizers.ByteLevel.alphabet())
  if kind != "word" and vocab_size <= least:
    raise ValueError(f"vocab_size={vocab_size}; wanted more than {least}: {len(SPECIAL)} special tokens and the bytes")


def word_tokenizer(words: Iterable[str] = ()) -> Tokenizer:
  """A tokenizer of these words, in this order; all others are <unk>.

  Letters, digits and underscores make words, and everything between two words is one token too, spaces included;
  but a single space is none: it is what belongs between two words.
  """
  ids = {word: i for i, word in enumerate([*SPECIAL, *words])}
  tokenizer = Tokenizer(models.WordLevel(ids, unk_token=SPECIAL[UNK]))
  # Not <unk>, which a text is to show.
  tokenizer.add_special_tokens([AddedToken(SPECIAL[i], special=True, normalized=False) for i in (PAD, BOS, EOS)])
  tokenizer.normalizer = normalizers.NFC()
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex(r"(?<=\w) (?=\w)"), "removed"),
      pre_tokenizers.Split(Regex(r"\w+"), "isolated"),
    ]
  )
  # Every word gets a mark on both sides. Where two marks meet, two words do: there the space belongs.
  mark = "\0"
  tokenizer.decoder = decoders.Sequence(
    [
      decoders.Replace(Regex(r"\b"), mark),
      decoders.Replace(f"<{mark}unk{mark}>", f"{mark}<unk>{mark}"),
      decoders.Fuse(),
      decoders.Replace(mark * 2, " "),
      decoders.Replace(mark, ""),
    ]
  )
  return _finished(tokenizer, "the word-level tokenizer")


def is_word_level(tokenizer: Tokenizer) -> bool:
  """Whether there are words that it does not know."""
  return isinstance(tokenizer.model, models.WordLevel)


def encode(
  tokenizer: Tokenizer,
  texts: Sequence[str],
  slots: int = 0,
  limit: int | None = None,
  unknown: Sequence[list[str]] | None = None,
) -> tuple[list[list[int]], list[list[str]]]:
  """Tokens of texts, where words outside the vocabulary V may be V, V + 1, ... (See et al. 2017, 2.2).

  Args:
    tokenizer: whose <unk> is one word.
    texts: to encode.
    slots: how many unknown words of a text get a number, the first ones; the others stay <unk>.
    limit: only words among so many tokens of a text, the first ones, get one.
    unknown: for each text the words that have a number, where its source determines them.

  Returns:
    tokens, and for each text the words of V, V + 1, ...
  """
  if not slots:
    return [e.ids for e in tokenizer.encode_batch_fast(texts)], [[] for _ in texts]
  size, ids, words = tokenizer.get_vocab_size(), [], []
  texts = [unicodedata.normalize("NFC", text) for text in texts]  # else an accent of its own is in no offset
  for text, found, given in zip(texts, tokenizer.encode_batch(texts), unknown or [None] * len(texts), strict=True):
    here = [text[slice(*span)] if token == UNK else "" for token, span in zip(found.ids, found.offsets, strict=True)]
    words.append([*dict.fromkeys(filter(None, here[:limit]))][:slots] if given is None else given)
    number = {word: size + slot for slot, word in enumerate(words[-1])}
    ids.append([number.get(word, token) for word, token in zip(here, found.ids, strict=True)])
  return ids, words


def decode(tokenizer: Tokenizer, tokens: Sequence[int], unknown: Sequence[str] = ()) -> str:
  """The text of tokens, of which V, V + 1, ... are these words."""
  if not unknown:
    return tokenizer.decode(tokens)
  size = tokenizer.get_vocab_size()
  known = [i for i in tokens if i not in (PAD, BOS, EOS) and i < size + len(unknown)]
  return tokenizer.decoder.decode([tokenizer.id_to_token(i) if i < size else unknown[i - size] for i in known])


def _in_order(tokenizer: Tokenizer) -> models.Unigram:
  """The unigram model without what a hash table's order did to it, which is another one in every process.

  The trainer gives the bytes that no line has the lowest score, and each of the next 0.0001 more. And it adds up the
  probabilities in any order, so that their last digits differ.
  """
  model = json.loads(tokenizer.to_str())["model"]
  special, rest = model["vocab"][: len(SPECIAL)], model["vocab"][len(SPECIAL) :]
  lowest = min(score for _, score in rest)
  unseen = lowest + 256 * 1e-4
  rest = [(piece, round(lowest if len(piece) == 1 and score < unseen else score, 6)) for piece, score in rest]
  return models.Unigram([*map(tuple, special), *sorted(rest, key=lambda entry: (-entry[1], entry[0]))], model["unk_id"])


def save(tokenizer: Tokenizer, folder: str | Path) -> Path:
  """Writes `folder/tokenizer.json`."""
  path = Path(folder) / FILE
  path.write_text(tokenizer.to_str(), encoding="utf-8")
  return path


def load(path: str | Path) -> Tokenizer:
  """Reads a tokenizer that `save` wrote, or any other whose special tokens have our ids.

  Raises:
    ValueError: no such file, no tokenizer, or other special tokens; the file is named.
  """
  path = Path(path)
  try:
    tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
  except Exception as error:  # the library raises no subclass
    raise ValueError(f"{path} is no tokenizer: {error}") from error
  return _checked(tokenizer, str(path))


def digest(tokenizer: Tokenizer) -> str:
  """What the tokenizer is, in 16 hexadecimal digits: another vocabulary or other rules have another."""
  return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()[:16]


def _finished(tokenizer: Tokenizer, what: str) -> Tokenizer:
  tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[(SPECIAL[EOS], EOS)])
  return _checked(tokenizer, what)


def _checked(tokenizer: Tokenizer, what: str) -> Tokenizer:
  found = [tokenizer.id_to_token(i) for i in range(len(SPECIAL))]
  if found != list(SPECIAL):
    raise ValueError(f"{what}: tokens 0 to 3 are {found}; wanted {list(SPECIAL)}")
  tokenizer.encode_special_tokens = True  # "</s>" in a text is four characters
  return tokenizer
