"""Decoding inverts encoding; invalid tokenizers are errors."""

import json
import re
from collections import Counter

import pytest
from support import raises
from tokenizers import Tokenizer, models

from train import data
from train.data.text import tokenizers as tokenizers

STRANGE = (
  "",
  "Hello, world!",
  "  two  spaces ",
  "a\nb\t",
  "日本語 👍🏽 ﷽",
  "</s> <s> <pad><unk>",
  "▁Ġ",
  "\x00",
  "Ñandú, ¿fué?",
)


@pytest.fixture(scope="module")
def lines():
  return [text for pair in data.make("translation", dataset="verses_en_es").references("val[:300]") for text in pair]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_decoding_inverts_encoding(kind, lines, tmp_path):
  tokenizer = tokenizers.train_tokenizer(lines, 600, kind)
  assert tokenizer.get_vocab_size() <= 600
  loaded = tokenizers.load(tokenizers.save(tokenizer, tmp_path))
  assert tokenizers.digest(loaded) == tokenizers.digest(tokenizer)
  for one in (tokenizer, loaded):
    assert [one.token_to_id(token) for token in ("<pad>", "<unk>", "<s>", "</s>")] == [0, 1, 2, 3]
    for text in [*STRANGE, *lines[:50]]:
      ids = one.encode(text).ids
      assert ids[-1] == 3 and min(ids[:-1], default=4) > 3  # nothing is unknown, and no text makes a special token
      assert one.decode(ids) == text
  assert tokenizer.encode("cafe\u0301").ids == tokenizer.encode("café").ids
  said = tokenizer.encode("said").ids  # a word is the same at the beginning of a text and later
  assert tokenizer.encode("He said").ids[-len(said) :] == said
  # Far fewer tokens than bytes: merges were learned.
  assert sum(len(tokenizer.encode(line).ids) for line in lines) < 0.6 * sum(len(line.encode()) for line in lines)


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_training_a_tokenizer_is_deterministic(kind, lines):
  digests = {tokenizers.digest(tokenizers.train_tokenizer(lines, 500, kind)) for _ in range(3)}
  assert len(digests) == 1
  assert digests != {tokenizers.digest(tokenizers.train_tokenizer(lines[:-1], 500, kind))}


def test_words_are_decoded_and_others_are_unknown_or_copied(lines, tmp_path):
  whole = tokenizers.train_tokenizer(lines, 10**6, "word")
  assert all(whole.decode(whole.encode(line).ids) == line for line in lines)  # spaces and all
  some = tokenizers.load(tokenizers.save(tokenizers.train_tokenizer(lines, 300, "word"), tmp_path))
  assert [some.token_to_id(token) for token in tokenizers.SPECIAL] == [0, 1, 2, 3] and some.get_vocab_size() == 300
  counts = Counter(re.findall(r"\w+", " ".join(lines)))
  rare, frequent = ([n for word, n in counts.items() if (some.encode(word).ids[0] == 1) == r] for r in (True, False))
  assert 200 < len(frequent) < 300 and min(frequent) >= max(rare)
  text = "and Ñandú, and Quxe\u0301 zzz Ñandú; and zzz"
  assert some.decode(some.encode(text).ids) == "and <unk>, and <unk> <unk> <unk>; and <unk>"
  (ids,), (unknown,) = tokenizers.encode(some, [text], 2)
  assert unknown == ["Ñandú", "Quxé"] and max(ids) == 301
  assert tokenizers.decode(some, ids, unknown) == "and Ñandú, and Quxé <unk> Ñandú; and <unk>"
  for text in [*STRANGE, *lines[:50]]:
    (ids,), (unknown,) = tokenizers.encode(some, [text], 99)
    assert ids[-1] == 3 and min(ids[:-1], default=4) > 3
    assert tokenizers.decode(some, ids, unknown) == text.replace("\0", "")  # its mark of word ends


def test_invalid_tokenizers_are_errors(tmp_path):
  with raises(ValueError, "'bep'", "'bpe'"):
    tokenizers.train_tokenizer(["a"], 1000, "bep")
  with raises(ValueError, "vocab_size", 260):
    tokenizers.train_tokenizer(["a"], 260)
  with raises(ValueError, "vocab_size", 4):
    tokenizers.train_tokenizer(["a"], 4, "word")
  path = tmp_path / "tokenizer.json"
  with raises(ValueError, path):
    tokenizers.load(path)
  path.write_text(json.dumps({"version": "9"}))
  with raises(ValueError, path):
    tokenizers.load(path)
  path.write_text(Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, "<unk>")).to_str())
  with raises(ValueError, path, ["a", "<unk>", None, None], ["<pad>", "<unk>", "<s>", "</s>"]):
    tokenizers.load(path)
