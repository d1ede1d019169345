"""The bundled parallel verses: small, aligned, split by chapters; and the tokenizer that they make."""

import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from train import data
from train.data.text import tokenizers as tokenizers
from train.datasets import make_verses_en_es as script

FOLDER = Path(script.__file__).with_name("verses_en_es")


@pytest.fixture(scope="module")
def verses():
  """{split: [(reference, English, Spanish)]}, as TFDS reads them."""
  builder = tfds.builder_from_directory(FOLDER / "1.0.0")
  return {
    split: [
      (v["reference"].decode(), v["translation"]["en"].decode(), v["translation"]["es"].decode())
      for v in builder.as_data_source(split).__getitems__(range(builder.info.splits[split].num_examples))
    ]
    for split in builder.info.splits
  }


def test_the_bundled_set_is_small_free_and_split_by_chapters(verses):
  assert {split: len(rows) for split, rows in verses.items()} == {"train": 28_790, "val": 941, "test": 1_059}
  assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 3_000_000
  origin = (FOLDER / "ORIGIN.md").read_text()
  assert "public domain" in origin and all(module in origin for module in script.MODULES.values())
  chapters = {split: {v[0].partition(":")[0] for v in rows} for split, rows in verses.items()}
  assert not any(chapters[a] & chapters[b] for a, b in (("train", "val"), ("train", "test"), ("val", "test")))
  books = {split: {c.partition(" ")[0] for c in found} for split, found in chapters.items()}
  assert len(books["train"]) == 66 and len(books["val"]) > 25 and len(books["test"]) > 25
  # ORIGIN.md documents the verses that are in two splits.
  known = {english for _, english, _ in verses["train"]}
  assert [sum(english in known for _, english, _ in verses[split]) for split in ("test", "val")] == [4, 11]


def test_verses_of_the_same_number_are_aligned(verses):
  for rows in verses.values():
    lengths = np.array([(len(english), len(spanish)) for _, english, spanish in rows])
    assert np.corrcoef(lengths.T)[0, 1] > 0.94  # of neighbours it is 0.1
    assert (lengths.max(1) <= script.RATIO * lengths.min(1)).all()
  rows = [row for part in verses.values() for row in part]
  for name in ("David", "Joab", "Job", "Daniel", "Abraham"):  # spelt alike
    here = np.array([[name in re.findall(r"\w+", text) for text in row[1:]] for row in rows])
    assert here.all(1).sum() > 0.9 * here.any(1).sum()
  # In a chapter that is numbered differently the lengths correlate better with those of the neighbours.
  chapters = {}
  for reference, *texts in rows:
    chapters.setdefault(reference.partition(":")[0], []).append([np.log(len(text)) for text in texts])
  shifted = []
  for chapter, lengths in chapters.items():
    if len(lengths) >= 12:
      en, es = np.array(lengths).T
      spread = [np.std(en[1:-1] - es[i : len(es) - 2 + i]) for i in range(3)]
      shifted += [chapter] if min(spread) < spread[1] else []
  assert shifted == ["Lam 5"]  # a poem of lines of one length; checked by reading, it is aligned
  for _, english, spanish in rows:
    for text in (english, spanish):
      assert text == " ".join(text.split()) and not re.search(r"[<>{}&\[\]]| [,.;:?!]", text), text


def test_markup_is_removed_from_a_verse():
  osis = (
    '<speaker>Beloved</speaker><l level="1"><w lemma="strong:H1">In</w> the\n beginning, <q who="x">“God</q>'
    '<note placement="foot"><reference>1:1 </reference>or, <w>gods</w></note><w>made</w>'
    '<note>x</note>, it was</l><l level="2">goo<transChange type="added">d</transChange> &amp; cafe\u0301.</l><lb/>”'
    '<div type="glossary"/>Abaddon is ...'
  )
  assert script.plain(osis) == "In the beginning, “God made, it was good & café.”"


def test_misaligned_chapters_and_verses_are_left_out():
  en = {(("Gen", 1), 1): "a b c", (("Gen", 1), 2): "a", (("Gen", 1), 3): "x", (("Num", 13), 1): "n"}
  es = {(("Gen", 1), 1): "d e f", (("Gen", 1), 2): "a b c", (("Num", 13), 1): "n", (("Num", 13), 2): "n"}
  assert script.align(en, es) == {("Gen", 1): [("Gen 1:1", {"en": "a b c", "es": "d e f"})]}
  chapters = [(f"book{i // 20}", i) for i in range(310)]
  parts = script.split(chapters)
  assert sorted(c for part in parts.values() for c in part) == sorted(chapters)
  assert len(parts["val"]) == len(parts["test"]) == 10 and parts == script.split(chapters)
  for part in ("val", "test"):  # one of each 31
    assert [chapters.index(c) // 31 for c in parts[part]] == list(range(10))


def test_the_bundled_tokenizer_is_reproduced_from_its_texts(verses):
  texts = (text for _, *pair in verses["train"] for text in pair)
  trained = tokenizers.train_tokenizer(texts, script.VOCABULARY)
  pairs = data.make("translation", dataset="verses_en_es")
  assert tokenizers.digest(trained) == pairs.tokenizer_digest
  assert pairs.vocab_size == 4_000
