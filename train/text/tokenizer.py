"""Text to subword tokens and back: byte-pair encoding or a unigram model over bytes, so that no text is unknown.

A text's tokens end with </s>. `decode(encode(text).ids)` is the text again, character by character, in Unicode's form
NFC: spaces are part of the tokens, as in SentencePiece (Kudo and Richardson 2018, arXiv:1808.06226, section 3.1), and
every byte is a token.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from unittest import mock

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from zoo.errors import nearest

# Their ids are their places, in every tokenizer.
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
PAD, UNK, BOS, EOS = range(4)
KINDS = ("bpe", "unigram")
FILE = "tokenizer.json"


def train_tokenizer(lines: Iterable[str], vocab_size: int, kind: str = "bpe") -> Tokenizer:
  """Trains a tokenizer; the same lines in the same order give the same one.

  Args:
    lines: texts, of all languages that are to share the vocabulary.
    vocab_size: tokens at most, special ones and the 256 bytes included.
    kind: "bpe" (Sennrich et al. 2016, arXiv:1508.07909, algorithm 1) or "unigram" (Kudo 2018, arXiv:1804.10959,
      section 3.2).

  Raises:
    ValueError: unknown kind, or a vocabulary that has no room for the bytes.
  """
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  if kind not in KINDS:
    raise ValueError(f"unknown tokenizer {kind!r}{nearest(str(kind), KINDS)}")
  if vocab_size <= (least := len(SPECIAL) + len(alphabet)):
    raise ValueError(f"vocab_size={vocab_size}; wanted more than {least}: {len(SPECIAL)} special tokens and the bytes")
  special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
  shared = dict(vocab_size=vocab_size, show_progress=False, special_tokens=special, initial_alphabet=alphabet)
  if kind == "bpe":
    tokenizer, trainer = Tokenizer(models.BPE()), trainers.BpeTrainer(**shared)
  else:
    tokenizer, trainer = Tokenizer(models.Unigram()), trainers.UnigramTrainer(unk_token=SPECIAL[UNK], **shared)
  # A space before the first word makes it the same token as elsewhere; the decoder takes it away.
  tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Prepend(" ")])
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
  # One thread: sums of floats depend on who adds what.
  with mock.patch.dict(os.environ, TOKENIZERS_PARALLELISM="false"):
    tokenizer.train_from_iterator(lines, trainer)
  if kind == "unigram":
    tokenizer.model = _in_order(tokenizer)
  tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[(SPECIAL[EOS], EOS)])
  return _checked(tokenizer, f"the trained {kind} tokenizer")


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
  except Exception as error:  # the library raises nothing more exact
    raise ValueError(f"{path} is no tokenizer: {error}") from error
  return _checked(tokenizer, str(path))


def digest(tokenizer: Tokenizer) -> str:
  """What the tokenizer is, in 16 hexadecimal digits: another vocabulary or other rules have another."""
  return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()[:16]


def _checked(tokenizer: Tokenizer, what: str) -> Tokenizer:
  found = [tokenizer.id_to_token(i) for i in range(len(SPECIAL))]
  if found != list(SPECIAL):
    raise ValueError(f"{what}: tokens 0 to 3 are {found}; wanted {list(SPECIAL)}")
  tokenizer.encode_special_tokens = True  # "</s>" in a text is four characters
  return tokenizer
