"""Text to the tokens of BERT and back: WordPiece or byte-level BPE, trained here or published.

`train/data/text/tokenizers.py` is for translation; here the special tokens may have any ids, and words are separable.
"""

import functools
import hashlib
import json
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from train.data.text.files import lines as read_lines

# What the special tokens are called: by BERT (Devlin et al. 2019, 3), and by RoBERTa (Liu et al. 2019, 4).
SPECIAL = {
  "pad": ("[PAD]", "<pad>"),
  "unk": ("[UNK]", "<unk>"),
  "cls": ("[CLS]", "<s>"),
  "sep": ("[SEP]", "</s>"),
  "mask": ("[MASK]", "<mask>"),
}
KINDS = ("wordpiece", "bpe")
FILES = ("tokenizer.json", "vocab.txt")
CONTINUES = "##"
# Characters that a WordPiece vocabulary learns; a text with any other character has [UNK] for that word.
ALPHABET = 1000
# What byte-level BPE makes of a space, and SentencePiece.
SPACES = ("Ġ", "▁")


@dataclass(frozen=True, eq=False)
class Vocabulary:
  """Tokens and their ids.

  Attributes:
    tokenizer: as the library has it; without special tokens around a text.
    source: where it is from, for errors.
    pad, unk, cls, sep, mask: ids of the special tokens.
    size: V, one more than the largest id.
    begins_word: bool [V], whether a token begins a word: WordPiece's without "##"; of byte-level BPE those with the
      mark of a space. Special tokens do.
    separable: whether words between spaces can be encoded one by one.

  Raises:
    ValueError: a special token is missing; all that are missing are named.
  """

  tokenizer: Tokenizer
  source: str = "the vocabulary"
  pad: int = field(init=False)
  unk: int = field(init=False)
  cls: int = field(init=False)
  sep: int = field(init=False)
  mask: int = field(init=False)

  def __post_init__(self) -> None:
    ids = {
      name: [i for i in map(self.tokenizer.token_to_id, texts) if i is not None] for name, texts in SPECIAL.items()
    }
    if missing := [SPECIAL[name][0] for name, found in ids.items() if not found]:
      raise ValueError(
        f"{self.source} has no {', '.join(missing)}; wanted each of {', '.join(t for t, _ in SPECIAL.values())} (or "
        f"{', '.join(t for _, t in SPECIAL.values())}), anywhere among the tokens"
      )
    for name, found in ids.items():
      object.__setattr__(self, name, found[0])
    # Special tokens are put around a text where a row is made of it, and rows are truncated and padded there.
    self.tokenizer.post_processor = None
    self.tokenizer.no_truncation()
    self.tokenizer.no_padding()
    # Where a space is part of the next word's token, the one before [MASK] is part of what is masked.
    spaced = self.mask if isinstance(self.tokenizer.model, models.BPE) else None
    self.tokenizer.add_special_tokens(
      [AddedToken(self.tokenizer.id_to_token(i), lstrip=i == spaced, normalized=False) for i in self.special]
    )
    self.tokenizer.encode_special_tokens = True  # "[SEP]" in a text is five characters

  @property
  def special(self) -> tuple[int, ...]:
    """Ids of the five special tokens."""
    return self.pad, self.unk, self.cls, self.sep, self.mask

  @functools.cached_property
  def size(self) -> int:
    """V: a published list may have a token twice, and then fewer tokens than rows in the table of embeddings."""
    return max(self.tokenizer.get_vocab().values()) + 1

  @functools.cached_property
  def begins_word(self) -> np.ndarray:
    """Bool [V]."""
    begins = np.zeros(self.size, bool)
    if isinstance(self.tokenizer.model, models.WordPiece):
      prefix = self.tokenizer.model.continuing_subword_prefix
      for token, i in self.tokenizer.get_vocab().items():
        begins[i] = not token.startswith(prefix)
    else:
      for token, i in self.tokenizer.get_vocab().items():
        begins[i] = token.startswith(SPACES)
    begins[[*self.special]] = True
    begins.flags.writeable = False
    return begins

  @functools.cached_property
  def separable(self) -> bool:
    """Whether a text's tokens are those of its words, split at single spaces: no rule crosses a space."""
    parts = json.loads(self.tokenizer.to_str())
    normalizer, splitter = parts["normalizer"] or {"type": None}, parts["pre_tokenizer"] or {"type": None}
    if splitter["type"] == "BertPreTokenizer":
      return normalizer["type"] in (None, "BertNormalizer", "Lowercase")
    known = splitter["type"] == "ByteLevel" and splitter["add_prefix_space"] and splitter["use_regex"]
    return bool(known) and normalizer["type"] in (None, "Lowercase")

  def encode(self, texts: Sequence[str], special: bool = False) -> list[list[int]]:
    """Ids of each text, without [CLS] and [SEP]; `special`: "[MASK]" in a text is that token."""
    self.tokenizer.encode_special_tokens = not special
    try:
      return [e.ids for e in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    finally:
      self.tokenizer.encode_special_tokens = True

  def encode_words(self, texts: Sequence[Sequence[str]]) -> list[list[list[int]]]:
    """Ids of each word of each text; a word without a token, such as a control character, is [UNK]."""
    mark = " " if isinstance(self.tokenizer.model, models.BPE) else ""
    flat = [mark + word if i else word for words in texts for i, word in enumerate(words)]
    ids = iter(self.encode(flat))
    return [[next(ids) or [self.unk] for _ in words] for words in texts]

  def decode(self, ids: Sequence[int], special: bool = False) -> str:
    """The text of tokens, with or without the special ones."""
    return self.tokenizer.decode([*map(int, ids)], skip_special_tokens=not special)

  @functools.cached_property
  def digest(self) -> str:
    """What the vocabulary is, in 16 hexadecimal digits: other tokens or other rules have another."""
    return hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest()[:16]

  def save(self, folder: str | Path) -> Path:
    """Writes `folder/tokenizer.json`."""
    path = Path(folder) / FILES[0]
    path.write_text(self.tokenizer.to_str(), encoding="utf-8")
    return path


def load_vocabulary(path: str | Path, lowercase: bool | None = None) -> Vocabulary:
  """Reads a vocabulary.

  Args:
    path: `vocab.txt`, as published: a WordPiece token a line, its id is the number of the line from 0; or
      `tokenizer.json`, ours or another of the library; or a folder with one of them.
    lowercase: of a `vocab.txt`, whether texts are made lower-case and lose their accents (an "uncased" model).
      None: as a `tokenizer_config.json` beside it specifies, else whether no token has an upper-case letter.

  Raises:
    ValueError: no such file, no vocabulary, a special token is missing; `lowercase` of a `tokenizer.json`.
  """
  path = Path(path)
  if path.is_dir():
    found = [path / name for name in FILES if (path / name).exists()]
    if not found:
      raise ValueError(f"{path} has no vocabulary; wanted {' or '.join(FILES)} in it")
    # `lowercase` is an option of the list alone.
    path = found[0] if lowercase is None else found[-1]
  if path.suffix != ".json":
    return _from_list(path, lowercase)
  if lowercase is not None:
    raise ValueError(f"lowercase={lowercase} is for a vocab.txt; {path} has its own normalizer")
  try:
    tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
  except Exception as error:  # the library raises no subclass
    raise ValueError(f"{path} is no tokenizer: {error}") from error
  return Vocabulary(tokenizer, str(path))


def _from_list(path: Path, lowercase: bool | None) -> Vocabulary:
  try:
    tokens = [*read_lines(path)]
  except OSError as error:
    raise ValueError(f"cannot read the vocabulary {path}: {error.strerror}") from error
  config = path.with_name("tokenizer_config.json")
  if lowercase is None and config.exists():
    options = json.loads(config.read_text(encoding="utf-8"))
    if "do_lower_case" in options:
      lowercase = options["do_lower_case"]
  if lowercase is None:
    lowercase = not any(token != token.lower() for token in tokens if not token.startswith(("[", "<")))
  # Of a token that is listed twice the last id counts, as in the released code.
  return Vocabulary(_wordpiece({token: i for i, token in enumerate(tokens)}, lowercase), str(path))


def _wordpiece(ids: dict[str, int], lowercase: bool) -> Tokenizer:
  tokenizer = Tokenizer(models.WordPiece(ids, unk_token=SPECIAL["unk"][0], continuing_subword_prefix=CONTINUES))
  tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)  # which then strips accents too
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  tokenizer.decoder = decoders.WordPiece(CONTINUES)
  return tokenizer


def train_vocabulary(
  lines: Iterable[str], size: int, kind: str = "wordpiece", lowercase: bool | None = None
) -> Vocabulary:
  """Trains a vocabulary; the same lines give the same one, in any order.

  Args:
    lines: texts. Those that can be gone through twice are not held in memory.
    size: tokens at most, special ones and characters included.
    kind: "wordpiece" as BERT's (Schuster and Nakajima 2012; merges by frequency, as in BPE, since how the published
      ones were chosen is not), or "bpe" over bytes, as RoBERTa's (Radford et al. 2019, 2.2), where no text is unknown.
    lowercase: whether texts are made lower-case, and for WordPiece lose their accents. None: WordPiece's are.

  Raises:
    ValueError: unknown kind; no room for the characters.
  """
  check(size, kind)
  special = [text for text, _ in SPECIAL.values()]
  if kind == "bpe":
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    _check_size(size, len(special) + len(alphabet), "the special tokens and the bytes")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase() if lowercase else None
    # A space before the first word makes it the same token as elsewhere; the decoder takes it away.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    shared: dict = dict(vocab_size=size, show_progress=False, special_tokens=special)
    tokenizer.train_from_iterator(lines, trainers.BpeTrainer(initial_alphabet=alphabet, **shared))
    return Vocabulary(tokenizer, "the trained vocabulary")
  lines = [*lines] if iter(lines) is lines else lines
  tokenizer = _wordpiece({special[1]: 0}, lowercase is not False)
  alphabet = _alphabet(tokenizer, lines)
  # The trainer numbers "##x" as a hash table gives it words, and of pairs as frequent the one of lower numbers is
  # merged: numbered beforehand, like the special tokens, they are the same every time.
  split, clean = tokenizer.pre_tokenizer.pre_tokenize_str, tokenizer.normalizer.normalize_str
  inside = [CONTINUES + c for c in alphabet if len(split(clean("a" + c))) == 1]
  _check_size(size, len(special) + len(alphabet) + len(inside), "the special tokens and the characters")
  trainer = trainers.WordPieceTrainer(
    vocab_size=size,
    show_progress=False,
    special_tokens=special + inside,
    initial_alphabet=alphabet,
    limit_alphabet=len(alphabet),
    continuing_subword_prefix=CONTINUES,
  )
  tokenizer.train_from_iterator(lines, trainer)
  ids = tokenizer.get_vocab(with_added_tokens=False)
  return Vocabulary(_wordpiece(ids, lowercase is not False), "the trained vocabulary")


def check(size: int, kind: str) -> None:
  """Raises ValueError for an unknown kind, or no room for anything but special tokens."""
  if kind not in KINDS:
    from zoo.errors import nearest  # imports JAX, which worker processes do not need

    raise ValueError(f"unknown kind of vocabulary {kind!r}{nearest(str(kind), KINDS)}")
  _check_size(size, len(SPECIAL), "the special tokens")


def _check_size(size: int, least: int, what: str) -> None:
  if size <= least:
    raise ValueError(f"a vocabulary of {size} tokens; wanted more than {least}: {what}")


def _alphabet(tokenizer: Tokenizer, lines: Iterable[str]) -> list[str]:
  """ASCII's characters and the most frequent of texts, in Unicode's order; of those as frequent, the first in it."""
  counts, part, held = Counter(), [], 0

  def count() -> None:
    text = tokenizer.normalizer.normalize_str("\n".join(part))
    found = np.bincount(np.frombuffer(text.encode("utf-32-le"), np.uint32))
    counts.update({int(c): int(found[c]) for c in np.flatnonzero(found)})

  for line in lines:
    part.append(line)
    held += len(line)
    if held > 2**20:
      count()
      part, held = [], 0
  count()
  best = map(chr, sorted(counts, key=lambda c: (-counts[c], c)))
  ascii = tokenizer.normalizer.normalize_str(string.printable)  # a small corpus may have no "]", but its readers do
  return sorted({*[c for c in best if not c.isspace()][:ALPHABET], *"".join(ascii.split())})
