"""Vocabularies are complete, rows have all of the text, and labels of sentence pairs are right."""

import dataclasses
import itertools
import json
import types
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from support import STRANGE, raises
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from train.data.text import documents as documents_to_tokens
from train.data.text import masked_lm_rows
from train.data.text.documents import Documents, Encoder
from train.data.text.masked_lm_rows import make_rows
from train.data.text.vocabulary import SPECIAL, Vocabulary, load_vocabulary, train_vocabulary

MARKS = types.SimpleNamespace(cls=-1, sep=-2)


@pytest.fixture(scope="module")
def words(chapters):
  return train_vocabulary([verse for chapter in chapters[::5] for verse in chapter], 3000)


@pytest.fixture(scope="module")
def numbered(chapters, words):
  """The chapters with a distinct number for each token, which identifies its origin."""
  encoded = Encoder(words)(chapters)
  return dataclasses.replace(encoded, tokens=np.arange(len(encoded.tokens)))


def rows(documents, seed=0, **kwargs):
  return [*make_rows(documents, MARKS, np.random.default_rng(seed), **kwargs).examples()]


def sequences(row):
  """(A, B, next) of each sequence of a row; checks its special tokens."""
  begin, found = 0, []
  for end, split, follows in zip(row["ends"], row["second_starts"], row["next_sentence_label"], strict=True):
    token = row["input_ids"][begin:end]
    assert token[0] == MARKS.cls and token[-1] == MARKS.sep and token[split - begin - 1] == MARKS.sep
    a, b = token[1 : split - begin - 1], token[split - begin : -1]
    assert len(a) and bool(len(b)) == (follows >= 0) == (split < end)
    for part in (a, b):
      assert (np.diff(part[part >= 0]) == 1).all() or follows < 0
    found.append((a, b, follows))
    begin = end
  assert begin == len(row["input_ids"])
  return found


def every(made):
  return [sequence for row in made for sequence in sequences(row)]


def sentence_of(documents, token):
  return np.searchsorted(documents.sentence_starts, token, "right") - 1


def document_of(documents, token):
  return np.searchsorted(documents.sentence_starts[documents.document_starts], token, "right") - 1


def lengths(*counts):
  """Documents of sentences of these lengths, all tokens different."""
  flat = [*itertools.chain(*counts)]
  ends = [np.concatenate([[0], np.cumsum(x)]).astype(np.int64) for x in (flat, [len(c) for c in counts])]
  return Documents(np.arange(sum(flat)), *ends)


# The vocabulary.


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_training_a_vocabulary_is_deterministic(chapters, kind):
  lines = [verse for chapter in chapters[:60] for verse in chapter]
  made = [train_vocabulary(texts, 2000, kind) for texts in (lines, lines[::-1], iter(lines))]
  assert len({v.tokenizer.to_str() for v in made}) == 1 and made[0].size == 2000
  # No ordinary text is unknown, even where the corpus lacks it.
  assert made[0].unk not in made[0].encode(['The [quick] {fox} @ "home" costs $5~'])[0]
  assert made[0].digest != train_vocabulary(lines, 2000, kind, lowercase=kind == "bpe").digest


def test_rare_characters_leave_room_for_words(monkeypatch):
  monkeypatch.setattr("train.data.text.vocabulary.ALPHABET", 3)
  found = train_vocabulary(["bbb aa aa 丁 丙 乙 乙"] * 3, 170).tokenizer.get_vocab()
  assert "乙" in found and "丁" not in found and "丙" not in found
  assert "##a" in found and "##," not in found and "##乙" not in found  # tokens that cannot occur


@pytest.mark.parametrize("kind, lowercase", [("wordpiece", True), ("wordpiece", False), ("bpe", None), ("bpe", True)])
def test_encoding_word_by_word_equals_encoding_the_text(chapters, kind, lowercase, monkeypatch):
  words = train_vocabulary([verse for chapter in chapters[:60] for verse in chapter], 1500, kind, lowercase)
  assert words.separable
  documents = [*chapters[:30], [" ".join(text.split(" ")) for text in STRANGE]]
  encoder = Encoder(words)
  for _ in range(2):  # the second time all words are known
    found = encoder(documents)
    wanted = [words.encode(document) for document in documents]
    assert found.tokens.tolist() == [i for document in wanted for ids in document for i in ids]
    assert np.diff(found.sentence_starts).tolist() == [len(ids) for document in wanted for ids in document if ids]
    assert np.diff(found.document_starts).tolist() == [sum(map(bool, document)) for document in wanted]
  # A full cache is emptied.
  known = len(encoder._words)
  monkeypatch.setattr(documents_to_tokens, "CACHED_WORDS", 100)
  again = encoder(documents[::-1][:3]), encoder(documents[:1])
  assert len(encoder._words) < known / 2
  assert again[1].tokens.tolist() == [i for ids in words.encode(documents[0]) for i in ids]


def test_another_tokenizer_encodes_whole_sentences(tmp_path):
  tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate([*(s for s, _ in SPECIAL.values()), "a b", "c"])}))
  tokenizer.pre_tokenizer = pre_tokenizers.Split(",", "removed")
  tokenizer.normalizer = normalizers.NFKC()
  tokenizer.model.unk_token = "[UNK]"
  words = Vocabulary(tokenizer)
  assert not words.separable
  assert Encoder(words)([["a b,c", "c"], [], [","]]).tokens.tolist() == [5, 6, 6]


def test_special_tokens_have_any_id_and_none_may_be_missing(tmp_path):
  path = tmp_path / "vocab.txt"
  path.write_text("[MASK]\nthe\n[SEP]\n##s\n[unused0]\n[PAD]\n[UNK]\ncat\n[CLS]\n", encoding="utf-8")
  words = load_vocabulary(path)
  assert (words.pad, words.unk, words.cls, words.sep, words.mask, words.size) == (5, 6, 8, 2, 0, 9)
  assert words.encode(["The cats [MASK]", "dog"]) == [[1, 7, 3, 6, 6, 6], [6]]
  assert words.encode(["The cats [MASK]."], special=True) == [[1, 7, 3, 0, 6]]
  assert words.decode([8, 1, 7, 3, 2]) == "the cats" and words.decode([8, 1, 2], special=True) == "[CLS] the [SEP]"
  assert np.flatnonzero(~words.begins_word).tolist() == [3]
  words.save(tmp_path)
  again = load_vocabulary(tmp_path)
  assert again.digest == words.digest and again.mask == 0
  path.write_text("[PAD]\n[UNK]\n[CLS]\nthe\n")
  with raises(ValueError, path, "[SEP]", "[MASK]"):
    load_vocabulary(path)


def test_casing_is_inferred_from_the_vocabulary(tmp_path):
  special = [text for text, _ in SPECIAL.values()]
  for tokens, lowercase, wanted in (
    (["the", "The"], None, ["[UNK]", "The"]),
    (["the", "fue"], None, ["fue", "the"]),
    (["the", "The"], True, ["[UNK]", "the"]),
  ):
    (tmp_path / "vocab.txt").write_text("\n".join([*special, *tokens]) + "\n")
    words = load_vocabulary(tmp_path, lowercase)
    assert [words.tokenizer.id_to_token(i) for i in words.encode(["Fué The"])[0]] == wanted
  for lowercase, wanted in ((False, 6), (True, 5)):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(dict(do_lower_case=lowercase)))
    assert load_vocabulary(tmp_path).encode(["The"]) == [[wanted]]


def test_whole_words(chapters):
  lines = chapters[0]
  wordpiece, bpe = (train_vocabulary(lines, 500, kind) for kind in ("wordpiece", "bpe"))
  for ids, line in zip(wordpiece.encode(lines), lines, strict=True):
    assert wordpiece.begins_word[ids].sum() == len(wordpiece.tokenizer.pre_tokenizer.pre_tokenize_str(line))
  for ids, line in zip(bpe.encode(lines), lines, strict=True):
    assert bpe.begins_word[ids].sum() == len(line.split()) and bpe.decode(ids) == line
  for words in (wordpiece, bpe):
    assert words.begins_word[list(words.special)].all() and words.begins_word.shape == (words.size,)
    given = [["In", "the", "beginnings"], [], ["\x00", "God"]]
    found = words.encode_words(given)
    assert [len(ids) for ids in found] == [3, 0, 2] and all(itertools.chain(*found))
    assert [i for ids in found[0] for i in ids] == words.encode(["In the beginnings"])[0]
  assert wordpiece.encode_words([["\x00"]]) == [[[wordpiece.unk]]]


def test_invalid_vocabularies_are_errors(tmp_path):
  (tmp_path / "tokenizer.json").write_text("{}")
  for path, named in (
    (tmp_path, (tmp_path / "tokenizer.json",)),
    (tmp_path / "none.txt", (tmp_path / "none.txt",)),
    (Path("/"), ("/", "vocab.txt", "tokenizer.json")),
  ):
    with raises(ValueError, *named):
      load_vocabulary(path)
  with raises(ValueError, "lowercase", True):
    load_vocabulary(tmp_path / "tokenizer.json", True)
  with raises(ValueError, "'bpee'", "'bpe'"):
    train_vocabulary([], 1000, "bpee")
  for kind in ("wordpiece", "bpe"):
    with raises(ValueError, "100 tokens"):
      train_vocabulary(["a"], 100, kind)


# Rows.


def test_sentence_pairs_of_real_text_are_as_published(numbered):
  made = rows(numbered)
  assert max(len(row["input_ids"]) for row in made) == 128
  assert len(made) > 8000 and 0.5 < np.mean([row["next_sentence_label"][0] == 0 for row in made]) < 0.58
  for a, b, follows in every(made):
    documents = {*document_of(numbered, a[[0, -1]])}, {*document_of(numbered, b[[0, -1]])}
    assert len(documents[0]) == len(documents[1]) == 1
    assert (documents[0] == documents[1]) == follows
    if follows:
      assert 0 < b[0] - a[-1] < 128  # what was truncated is between
  # A is truncated equally often at both ends.
  starts = numbered.sentence_starts
  truncated = [(a[0] not in starts, a[-1] + 1 not in starts) for a, _, _ in every(made)]
  front, behind = np.mean(truncated, 0)
  assert 0.2 < front < 0.8 and abs(front - behind) < 0.05


def test_sentences_of_one_token_are_never_truncated():
  documents = lengths(*[[1] * n for n in (20_000, 1, 3000, 2, 7000)])
  made = every(rows(documents, length=64))
  followed = [b for _, b, follows in made if follows]
  assert all(b[0] == a[-1] + 1 for a, b, follows in made if follows)
  # Every sentence once: those that a random B replaced are used later.
  used = np.concatenate([*(a for a, _, _ in made), *followed])
  assert np.array_equal(np.sort(used), documents.tokens)
  assert 0.45 < 1 - len(followed) / len(made) < 0.55
  # One in ten is shorter than the row, of any length.
  total = np.array([len(a) + len(b) for a, b, follows in made if follows])
  assert total.max() == 61 and 0.06 < np.mean(total < 61) < 0.14 and 20 < np.mean(total[total < 61]) < 40
  # A is any part of it.
  share = [len(a) / (len(a) + len(b)) for a, b, follows in made if follows and len(a) + len(b) == 61]
  assert np.allclose(np.quantile(share, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.08)
  assert (total[total < 61] > 1).all()
  assert all(
    len(row["input_ids"]) == 64 for row in rows(lengths([1] * 600, [1] * 600), length=64, short_seq_prob=0)[:5]
  )


def test_a_random_second_segment_is_of_any_other_document():
  made = every(rows(lengths(*[[5] * 4] * 6), dupe_factor=2000))
  counts = Counter((a[0] // 20, b[0] // 20, b[0] % 20) for a, b, follows in made if not follows)
  assert len(counts) == 6 * 5 * 4 and min(counts.values()) > 0.5 * max(counts.values())


def test_documents_of_one_sentence_and_chunks_of_one_document():
  made = every(rows(lengths([4], [3], [2]), dupe_factor=20))
  assert len(made) == 60 and {follows for _, _, follows in made} == {0}
  # A single document: a random B is elsewhere in it, and not the next sentence.
  for size, least, most in ((10, 0.4, 0.6), (70, 1, 1)):  # of the longer a row has but one
    documents = lengths([size] * 40)
    made = every(rows(documents, length=64, dupe_factor=20))
    assert least <= np.mean([follows == 0 for _, _, follows in made]) <= most
    for a, b, follows in made:
      first, last = sentence_of(documents, a[[0, -1]])
      assert follows or sentence_of(documents, b[0]) not in range(first, last + 2)
      assert follows or sentence_of(documents, b[-1]) not in range(first, last + 1)
  ((a, b, follows),) = every(rows(lengths([4])))
  assert (a.tolist(), b.tolist(), follows) == ([0, 1, 2, 3], [], -1)
  assert {follows for _, _, follows in every(rows(lengths([4, 2]), dupe_factor=9))} == {1}
  assert len(make_rows(lengths(), MARKS, np.random.default_rng(0))) == 0


def test_the_longer_segment_is_truncated_and_none_becomes_empty():
  for length in (8, 9, 16, 40):
    for a, b, _ in every(rows(lengths([1, 300, 2], [90, 1], [3] * 30), length=length, dupe_factor=30)):
      assert len(a) + len(b) <= length - 3
  assert len(every(rows(lengths(*[[1]] * 50), length=64, pack=True))) == 50  # 13 are 65 tokens: not one to spare
  made = every(rows(lengths([300, 300]), length=43, dupe_factor=30))
  assert {(len(a), len(b), follows) for a, b, follows in made} == {(20, 20, 1)}


@pytest.mark.parametrize("pack", [False, True])
def test_without_pairs_every_token_is_used_once(numbered, pack):
  made = rows(numbered, pairs=False, pack=pack)
  used = np.concatenate([a for a, _, _ in every(made)])
  assert {follows for _, _, follows in every(made)} == {-1}
  assert np.array_equal(np.sort(used[used >= 0]), numbered.tokens)
  assert max(len(row["input_ids"]) for row in made) == 128


def test_full_sentences_continue_into_the_next_document():
  documents = lengths([5, 5], [5, 5, 30, 1], [1])
  made = [a.tolist() for a, _, _ in every(rows(documents, pairs=False, length=22))]
  part = [*range(10), MARKS.sep, *range(10, 15)]
  assert made[:2] == [part, [*range(15, 20)]]  # a sentence longer than a row begins one, and is split
  assert made[2:] == [[*range(20, 40)], [*range(40, 51), MARKS.sep, 51]]


def test_pieces_are_of_one_document_each():
  made = every(rows(lengths([25, 20], [7], [40, 2]), pairs=False, pack=True, length=22))
  assert sorted((a[0], len(a)) for a, _, _ in made) == [
    (0, 20),
    (20, 20),
    (40, 5),
    (45, 7),
    (52, 20),
    (72, 20),
    (92, 2),
  ]


@pytest.mark.parametrize("kwargs", [dict(), dict(length=512), dict(pairs=False), dict(pairs=False, length=512)])
def test_packed_rows_are_full(numbered, kwargs):
  made = rows(numbered, pack=True, **kwargs)
  room = (dict(length=128) | kwargs)["length"]
  used = [len(row["input_ids"]) for row in made]
  assert max(used) <= room and 1 - sum(used) / (room * len(used)) < 0.02
  assert max(len(row["ends"]) for row in made) > 1


def test_packing_keeps_the_sequences(numbered, monkeypatch):
  def used(made):
    return Counter((tuple(a), tuple(b), follows) for a, b, follows in every(made))

  alone, packed = used(rows(numbered)), used(rows(numbered, pack=True))
  assert (alone & packed).total() > 0.93 * alone.total() == 0.93 * packed.total()
  monkeypatch.setattr(masked_lm_rows, "SLACK", 1000)  # nothing may be truncated
  assert used(rows(numbered, pack=True)) == alone


def test_rows_are_a_function_of_the_seed(numbered):
  part = numbered.part(range(10, 40))
  assert np.array_equal(part.tokens, numbered.tokens[np.isin(document_of(numbered, numbered.tokens), range(10, 40))])
  first, again, other = (make_rows(part, MARKS, np.random.default_rng(seed), pack=True) for seed in (3, 3, 4))
  assert all(np.array_equal(x, vars(again)[name]) for name, x in vars(first).items())
  assert not np.array_equal(first.tokens, other.tokens)
  once, twice = (every(rows(part, dupe_factor=copies)) for copies in (1, 2))
  assert all(map(np.array_equal, once[0], twice[0])) and 1.8 < len(twice) / len(once) < 2.2
  assert not np.array_equal(twice[0][0], twice[len(once)][0]) or not np.array_equal(twice[0][1], twice[len(once)][1])


def test_invalid_arguments_of_rows_are_errors(numbered):
  with raises(ValueError, "length is 7", "short_seq_prob is 2", "dupe_factor is 0"):
    rows(numbered, length=7, short_seq_prob=2, dupe_factor=0)
  with raises(ValueError, "short_seq_prob", 0.1):
    rows(numbered, pairs=False, pack=True, short_seq_prob=0.1)
