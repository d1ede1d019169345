"""Every pair is in every epoch once, whole, and beside its translation; texts of one's own are prepared."""

import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tokenizers import Tokenizer, models

from train import cli, data, loop
from train import config as configuration
from train.data import image_classification, order, prepare
from train.data.text import seq2seq
from train.data.text import tokenizers as tokenizers
from train.data.text import translation as text_pairs
from train.data.text.translation import Translation
from train.datasets import make_verses_en_es as script
from zoo.weights.sources import read

pytestmark = pytest.mark.usefixtures("one_device")

LANGUAGES = ("en", "es")
FOLDER = Path(script.__file__).with_name("verses_en_es")


def small(**kwargs):
  """A part of the bundled set."""
  return data.make(
    "translation", **dict(dataset="verses_en_es", train_split="train[:700]", eval_split="val[:90]") | kwargs
  )


def take(batches, count):
  result = [next(batches) for _ in range(count)]
  batches.close()
  return result


def equal(first, second):
  assert first.keys() == second.keys()
  for key in first:
    np.testing.assert_array_equal(first[key], second[key], err_msg=key)
    assert first[key].dtype == second[key].dtype


def sequences(batch, side):
  """The tokens of every segment of every row, {(row, segment): tokens}; positions are checked on the way."""
  found = {}
  for i, (tokens, segments, positions) in enumerate(
    zip(batch[f"{side}_ids"], batch[f"{side}_segment_ids"], batch[f"{side}_position_ids"], strict=True)
  ):
    used = np.flatnonzero(segments)
    # One after the other from the left, numbered 1, 2, ...: so none overlaps another; the rest is padding.
    assert used.tolist() == list(range(len(used))) and (np.diff(segments[used]) >= 0).all()
    assert sorted(set(segments[used])) == list(range(1, segments.max() + 1))
    assert not tokens[len(used) :].any() and not positions[len(used) :].any()
    assert bool(len(used)) == batch["valid"][i]
    for segment in range(1, segments.max() + 1):
      here = segments == segment
      assert positions[here].tolist() == list(range(here.sum()))
      found[i, segment] = tuple(tokens[here].tolist())
  return found


def batch_pairs(batch):
  """The pairs of a batch, (source tokens, target tokens)."""
  source, target = sequences(batch, "source"), sequences(batch, "target")
  assert source.keys() == target.keys()
  return [(source[key], target[key]) for key in source]


def corpus_pairs(corpus):
  return [(tuple(corpus.source[i].tolist()), tuple(corpus.target[i].tolist())) for i in range(len(corpus))]


# The bundled set.


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
  # What ORIGIN.md says of verses that are in two splits.
  known = {english for _, english, _ in verses["train"]}
  assert [sum(english in known for _, english, _ in verses[split]) for split in ("test", "val")] == [4, 11]


def test_verses_of_one_number_translate_each_other(verses):
  for rows in verses.values():
    lengths = np.array([(len(english), len(spanish)) for _, english, spanish in rows])
    assert np.corrcoef(lengths.T)[0, 1] > 0.94  # of neighbours it is 0.1
    assert (lengths.max(1) <= script.RATIO * lengths.min(1)).all()
  rows = [row for part in verses.values() for row in part]
  for name in ("David", "Joab", "Job", "Daniel", "Abraham"):  # spelt alike
    here = np.array([[name in re.findall(r"\w+", text) for text in row[1:]] for row in rows])
    assert here.all(1).sum() > 0.9 * here.any(1).sum()
  # In a chapter that is counted otherwise the lengths agree better with those of the neighbours.
  chapters = {}
  for reference, *texts in rows:
    chapters.setdefault(reference.partition(":")[0], []).append([np.log(len(text)) for text in texts])
  shifted = []
  for chapter, lengths in chapters.items():
    if len(lengths) >= 12:
      en, es = np.array(lengths).T
      spread = [np.std(en[1:-1] - es[i : len(es) - 2 + i]) for i in range(3)]
      shifted += [chapter] if min(spread) < spread[1] else []
  assert shifted == ["Lam 5"]  # a poem of lines of one length; read, it is aligned
  for _, english, spanish in rows:
    for text in (english, spanish):
      assert text == " ".join(text.split()) and not re.search(r"[<>{}&\[\]]| [,.;:?!]", text), text


def test_markup_is_taken_out_of_a_verse():
  osis = (
    '<speaker>Beloved</speaker><l level="1"><w lemma="strong:H1">In</w> the\n beginning, <q who="x">“God</q>'
    '<note placement="foot"><reference>1:1 </reference>or, <w>gods</w></note><w>made</w>'
    '<note>x</note>, it was</l><l level="2">goo<transChange type="added">d</transChange> &amp; cafe\u0301.</l><lb/>”'
    '<div type="glossary"/>Abaddon is ...'
  )
  assert script.plain(osis) == "In the beginning, “God made, it was good & café.”"


def test_chapters_that_are_counted_otherwise_and_verses_with_more_are_left_out():
  en = {(("Gen", 1), 1): "a b c", (("Gen", 1), 2): "a", (("Gen", 1), 3): "x", (("Num", 13), 1): "n"}
  es = {(("Gen", 1), 1): "d e f", (("Gen", 1), 2): "a b c", (("Num", 13), 1): "n", (("Num", 13), 2): "n"}
  assert script.align(en, es) == {("Gen", 1): [("Gen 1:1", {"en": "a b c", "es": "d e f"})]}
  chapters = [(f"book{i // 20}", i) for i in range(310)]
  parts = script.split(chapters)
  assert sorted(c for part in parts.values() for c in part) == sorted(chapters)
  assert len(parts["val"]) == len(parts["test"]) == 10 and parts == script.split(chapters)
  for part in ("val", "test"):  # one of each 31
    assert [chapters.index(c) // 31 for c in parts[part]] == list(range(10))


def test_the_bundled_tokenizer_is_what_its_text_makes(verses):
  texts = (text for _, *pair in verses["train"] for text in pair)
  trained = tokenizers.train_tokenizer(texts, script.VOCABULARY)
  assert tokenizers.digest(trained) == small().tokenizer_digest
  assert small().vocab_size == 4_000


# Batches.


def test_words_that_a_source_has_are_in_its_target(tmp_path):
  """By name in the texts, by number in the batch; what was cut off the source cannot be copied."""
  copying = small(word_vocab_size=1500, copy_slots=3, source_length=20, target_length=40)
  assert copying.vocab_size == 1500 and tokenizers.is_word_level(copying.tokenizer)
  texts = copying.references("val[:90]")
  batch = next(copying.eval_batches(90))
  _, unknown = copying.encode([source for source, _ in texts])
  shared = 0
  for (source, target), words, s, t in zip(texts, unknown, batch["source_ids"], batch["target_ids"], strict=True):
    numbered = {1500 + slot for slot in range(len(words))}
    assert len(words) <= 3 and set(s[s >= 1500]) == numbered and set(t[t >= 1500]) <= numbered
    copied = [word for slot, word in enumerate(words) if 1500 + slot in t]
    assert all(re.search(rf"\b{word}\b", text) for word in copied for text in (source, target))
    shared += len(copied)
  assert shared > 10  # names, for the most part
  prepared_words = prepared(tmp_path, write(tmp_path / "mine"), "--tokenizer", "word")
  assert prepared_words.tokenizer.encode("house lärm").tokens == ["house", "<unk>", "</s>"]
  model = types.SimpleNamespace(
    vocab_size=4000, max_length=128, pad_token_id=0, bos_token_id=2, eos_token_id=3, copy_slots=3
  )
  with pytest.raises(ValueError, match=r"to a tokenizer of bytes no word is unknown.*data\.word_vocab_size"):
    small(copy_slots=3).check_fit(model, None)


@pytest.mark.parametrize("batching", seq2seq.BATCHING)
def test_every_epoch_has_every_pair_once_whole_and_beside_its_translation(batching):
  pairs = small(batching=batching, source_length=64, target_length=72)
  expected = sorted(corpus_pairs(pairs.corpus()))
  steps = -(-pairs.num_train // 48)
  stream = take(pairs.train_batches(48, seed=1), 2 * steps)
  epochs = [stream[:steps], stream[steps:]]
  orders = [[pair for batch in epoch for pair in batch_pairs(batch)] for epoch in epochs]
  assert sorted(orders[0]) == sorted(orders[1]) == expected
  assert orders[0] != orders[1]
  assert batch_pairs(take(pairs.train_batches(48, seed=2), 1)[0]) != batch_pairs(stream[0])
  for epoch in epochs:
    assert sum(batch["valid"].sum() for batch in epoch) == pairs.num_train
  for batch in stream:
    assert (batch["source_ids"].shape[1], batch["target_ids"].shape[1]) in pairs.batch_shapes
    for key, array in batch.items():
      assert array.dtype == (bool if key == "valid" else np.int32) and len(array) == 48
    assert batch["id"].tolist() == list(range(48))


def test_the_tokens_are_those_of_the_texts():
  pairs = small(source="es", target="en", too_long="truncate")
  texts = pairs.references("train[:700]")
  assert texts[0] == ("EN el principio crió Dios los cielos y la tierra.", texts[0][1])
  decode = pairs.tokenizer.decode
  assert [(decode(s), decode(t)) for s, t in corpus_pairs(pairs.corpus())] == texts
  lower = small(lowercase=True)
  assert lower.references()[0] == tuple(text.lower() for text in small().references()[0])
  assert decode(lower.corpus("val[:90]").source[0]) == lower.references()[0][0]


def test_packing_fills_rows_and_buckets_waste_less_than_padding():
  share, rows = {}, {}
  for batching in seq2seq.BATCHING:
    pairs = small(batching=batching)
    share[batching], rows[batching] = pairs.padding_share(32, seed=3, epoch=1), pairs.num_train
    steps = -(-pairs.num_train // 32)
    batches = take(pairs.train_batches(32, 3, first_step=steps), steps)
    tokens = sum((batch[f"{side}_segment_ids"] > 0).sum() for batch in batches for side in ("source", "target"))
    slots = sum(batch["source_ids"].size + batch["target_ids"].size for batch in batches)
    np.testing.assert_allclose(share[batching], 1 - tokens / slots)
    assert pairs.unit == ("rows" if batching == "pack" else "pairs")
    assert f"in batches of {pairs.padding_share(32, seed=3):.1%} padding" in pairs.about(32, seed=3)
  assert share["pack"] < 0.2 < share["bucket"] < 0.4 < share["pad"]
  assert rows["pack"] < rows["bucket"] / 3 and rows["bucket"] == rows["pad"]


def test_a_row_takes_pairs_while_both_sides_have_room(monkeypatch):
  rng = np.random.default_rng(0)
  lengths = rng.integers(1, 30, (2, 500))
  monkeypatch.setattr(seq2seq, "OPEN_ROWS", 7)
  pairs, ends = seq2seq.pack(*lengths, 40, 50)
  rows = np.split(pairs, ends[:-1])
  assert sorted(pairs) == list(range(500)) and all(len(row) for row in rows)
  for row in rows:
    assert lengths[0, row].sum() <= 40 and lengths[1, row].sum() <= 50
  naive = []
  for pair in np.random.default_rng(0).permutation(500).tolist():
    for row in naive[-7:]:
      if (lengths[:, [*row, pair]].sum(1) <= (40, 50)).all():
        row.append(pair)
        break
    else:
      naive.append([pair])
  assert [row.tolist() for row in rows] == naive


def test_bucket_edges_are_the_cheapest():
  rng = np.random.default_rng(0)
  for buckets in (1, 2, 3, 9):
    counts = np.concatenate([[0], rng.integers(0, 20, 7)])
    edges = order.cheapest_edges(counts, buckets)

    def cost(edges, counts=counts):
      return sum(n * min(e for e in edges if e >= size) for size, n in enumerate(counts))

    subsets = [[s for s in range(1, 7) if mask >> s & 1] + [7] for mask in range(0, 128, 2)]
    assert cost(edges) == min(cost(s) for s in subsets if len(s) <= buckets) and len(edges) <= buckets
  shapes = small(buckets=3, source_length=100, target_length=50).batch_shapes
  assert len(shapes) == 3 and shapes[-1] == (100, 50) and shapes == sorted(shapes)


@pytest.mark.parametrize("batching", seq2seq.BATCHING)
def test_any_number_of_processes_makes_the_same_batch_from_any_step_on(batching):
  pairs = small(batching=batching)
  steps = -(-pairs.num_train // 24) + 3  # into the second epoch, through a batch that is not full
  whole = take(pairs.train_batches(24, seed=5), steps)
  for count in (2, 4):
    parts = [take(pairs.train_batches(24, 5, 0, process, count), steps) for process in range(count)]
    for step in range(steps):
      equal({key: np.concatenate([part[step][key] for part in parts]) for key in whole[step]}, whole[step])
  for first in (1, steps - 1):
    equal(take(small(batching=batching).train_batches(24, 5, first), 1)[0], whole[first])


@pytest.mark.parametrize(("batch_size", "limit"), [(16, None), (200, None), (16, 40)])
def test_evaluation_sees_every_pair_once_in_order_over_all_processes(batch_size, limit):
  pairs = small(batching="pack")
  expected = corpus_pairs(pairs.corpus("val[:90]"))[:limit]
  for count in (1, 2, 4):
    parts = [list(pairs.eval_batches(batch_size, None, p, count, limit)) for p in range(count)]
    batches = [{k: np.concatenate([part[k] for part in step]) for k in step[0]} for step in zip(*parts, strict=True)]
    assert [pair for batch in batches for pair in batch_pairs(batch)] == expected
    for batch in batches:
      assert batch["source_ids"].shape == batch["target_ids"].shape == (batch_size, 128)
      assert batch["id"].tolist() == list(range(batch_size)) and batch["source_segment_ids"].max() == 1
  assert len(expected) == (limit or pairs.num_eval()) == (limit or len(pairs.references()))


@pytest.mark.parametrize("batching", seq2seq.BATCHING)
def test_shapes_need_no_reading(batching, tmp_path):
  config = dict(name="translation", dataset="verses_en_es", batching=batching, source_length=40, target_length=56)
  shapes = Translation.shapes(config | dict(dataset="nowhere", data_dir=str(tmp_path)), None, 8)
  pairs = data.make(**config)
  for batch in (
    next(pairs.eval_batches(8)),
    max(take(pairs.train_batches(8, 0), 30), key=lambda b: b["source_ids"].size),
  ):
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {k: (v.shape, v.dtype) for k, v in shapes.items()}


# Texts of one's own, and bad ones.

LINES = {
  "en": ["One house.", "", "Two houses stand here.", "A word " * 90, "日本語 is Japanese.", "Zwölf"],
  "es": ["Una casa.", "Nada", "Dos casas están aquí.", "Una palabra " * 90, "日本語 es japonés.", ""],
}


def write(folder, split="train", lines=LINES):
  folder.mkdir(exist_ok=True)
  for language, texts in lines.items():
    (folder / f"{split}.{language}").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
  return folder


def prepared(tmp_path, folder, *options, **kwargs):
  where = str(tmp_path / "data")
  arguments = ["parallel_text/en-es", "--data-dir", where, "--source", str(folder), "--vocab-size", "300", *options]
  assert cli.main(["prepare", *arguments]) == 0
  return data.make("translation", dataset="parallel_text/en-es", data_dir=where, **dict(eval_split="train") | kwargs)


@pytest.mark.parametrize("kind", ["files", "tsv"])
def test_texts_of_ones_own_are_prepared_and_bad_pairs_are_counted(tmp_path, kind):
  folder = tmp_path / "mine"
  if kind == "files":
    write(folder)
    write(folder, "test", {"en": ["One."], "es": ["Uno.\r"]})
  else:
    folder.mkdir()
    (folder / "train.tsv").write_text("".join(f"{e}\t{s}\tmore\n" for e, s in zip(*LINES.values(), strict=True)))
    (folder / "test.tsv").write_text("\ufeffOne.\tUno.\r\n", encoding="utf-8")
  pairs = prepared(tmp_path, folder, source_length=128)
  assert pairs.counts() == {"pairs": 3, "empty": 2, "too_long": 1}
  full = [(e.strip(), s.strip()) for e, s in zip(*LINES.values(), strict=True) if e and s]
  assert pairs.references() == full and pairs.references("test") == [("One.", "Uno.")]
  # In evaluation nothing is dropped: what is too long is cut, and the reference is whole.
  assert pairs.num_eval() == len(full) == 4
  (batch,) = pairs.eval_batches(4)
  assert (batch["target_ids"][2] != 0).all() and batch["target_ids"][2][-1] == tokenizers.EOS
  decode = pairs.tokenizer.decode
  assert (
    full[2][1].startswith(decode(batch["target_ids"][2])) and decode(batch["source_ids"][3]) == "日本語 is Japanese."
  )
  cut = data.make("translation", dataset=pairs.dataset, data_dir=pairs.data_dir, too_long="truncate")
  assert cut.counts() == {"pairs": 4, "empty": 2, "too_long": 1}
  assert pairs.vocab_size <= 300
  # Once trained, a tokenizer stays.
  digest = pairs.tokenizer_digest
  prepare.prepare("parallel_text/en-es", pairs.data_dir)
  assert data.make("translation", dataset=pairs.dataset, data_dir=pairs.data_dir).tokenizer_digest == digest
  with pytest.raises(ValueError, match=r"tokenizer\.json"):
    prepare.prepare("parallel_text/en-es", pairs.data_dir, None, 400)
  # Nor are other files taken for those that it was made of.
  with pytest.raises(ValueError, match=r"parallel_text/en-es/1\.0\.0"):
    prepare.prepare("parallel_text/en-es", pairs.data_dir, str(folder))
  # Invalid arguments fail before anything is written; an interrupted preparation continues.
  for options, message in (((100,), "wanted more than 260"), ((None, "wordpiece"), "unknown tokenizer 'wordpiece'")):
    with pytest.raises(ValueError, match=message):
      prepare.prepare("parallel_text/en-es", str(tmp_path / "other"), str(folder), *options)
  assert not (tmp_path / "other").exists()
  written = Path(pairs._builder.data_path) / "tokenizer.json"
  written.unlink()
  prepare.prepare("parallel_text/en-es", pairs.data_dir, str(folder), 300)
  assert written.exists()


def test_files_that_are_not_parallel_are_named(tmp_path):
  def fault(folder, name="parallel_text/en-es"):
    with pytest.raises(ValueError) as error:
      prepare.prepare(name, str(tmp_path / "data"), str(folder))
    return str(error.value)

  folder = write(tmp_path / "one", lines={"en": ["a"] * 1234, "es": ["a"] * 1233})
  assert "train.en has 1,234 lines and train.es has 1,233 lines" in fault(folder)
  (folder / "train.es").unlink()
  assert "train.es" in fault(folder)
  folder = tmp_path / "two"
  folder.mkdir()
  (folder / "train.tsv").write_text("a\tb\nno translation\n")
  assert re.search(r"train\.tsv, line 2, has no tab.*'no translation'", fault(folder))
  (folder / "train.tsv").write_bytes(b"a\tb\nc\td\ncaf\xe9\tx\n")
  assert re.search(r"train\.tsv, line 3, is not UTF-8", fault(folder))
  write(folder)
  assert "both train.en and train.tsv" in fault(folder)
  write(tmp_path / "three", "val")
  assert "neither train.en and train.es nor train.tsv" in fault(tmp_path / "three")
  for name in ("parallel_text", "parallel_text/en", "parallel_text/en-en", "parallel_text/en-es-fr"):
    assert "two languages, such as parallel_text/en-es" in fault(folder, name)
  assert "has no translations, so it has no tokenizer" in _no_tokenizer_for_images()


def _no_tokenizer_for_images():
  builder = types.SimpleNamespace(
    info=image_classification.make_source("fashion_mnist_small", "test").builder.info, data_path="."
  )
  with pytest.raises(ValueError) as error:
    text_pairs.prepare_tokenizer("fashion_mnist", None, builder, 500, None)
  return str(error.value)


def test_wmt_is_known_without_tensorflow():
  # In a process of its own: here another test has imported it.
  program = "from train import data; data.make('translation', dataset='wmt14_translat/de-en').num_train"
  root = str(Path(data.__file__).parents[1])
  run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root, timeout=120)
  assert "unknown data set 'wmt14_translat'; near it: wmt14_translate" in run.stderr


def test_wmt_is_prepared_without_tensorflow(tmp_path, monkeypatch):
  from tensorflow_datasets.translate import wmt

  files = tmp_path / "files"
  texts = {"de": [f"Haus {i}, groß." for i in range(9)], "en": [f"House {i}, great." for i in range(9)]}
  for name in ("europarl_v7", "newstest2013", "newstest2014"):
    for path in wmt.DATASET_MAP[name].get_path("de"):
      (files / path).parent.mkdir(parents=True, exist_ok=True)
      language = next(part for part in reversed(path.split(".")) if part in texts)
      lines = [f'<seg id="{i}">{t}</seg>' if path.endswith("sgm") else t for i, t in enumerate(texts[language])]
      (files / path).write_text("\n".join(lines))
  found = dict(train=["europarl_v7"], validation=["newstest2013"], test=["newstest2014"])
  monkeypatch.setattr(wmt.WmtTranslate, "subsets", property(lambda self: found))
  monkeypatch.setattr(
    tfds.download.DownloadManager,
    "download_and_extract",
    lambda self, urls: {k: [str(files)] * len(v) for k, v in urls.items()} if isinstance(urls, dict) else [],
  )
  monkeypatch.setattr(wmt.SubDataset, "get_url", lambda self, source: ["https://host/file"])
  folder = str(tmp_path / "data")
  (tmp_path / "data" / "downloads" / "manual").mkdir(parents=True)
  prepare.prepare("wmt14_translate/de-en", folder, vocab_size=300)
  pairs = data.make(
    "translation", dataset="wmt14_translate/de-en", data_dir=folder, source="en", target="de", eval_split="test"
  )
  assert sorted(pairs.references()) == sorted(zip(texts["en"], texts["de"], strict=True))
  assert pairs.num_train == pairs.num_eval() == 9


class Wmt(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """As TFDS's WMT sets are: translations at the top, no tokenizer."""

  name = "wmt"
  VERSION = tfds.core.Version("1.0.0")
  examples = ()

  def _info(self):
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.Translation(languages=["de", "en"]))

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for i in range(20):
      yield i, {"de": f"Zahl {i}", "en": f"Number {i}" if i != 4 else b"\xff\xfe"}


def test_a_set_of_tfds_wants_a_tokenizer_and_names_a_text_that_is_no_text(tmp_path, monkeypatch):
  builder = Wmt(data_dir=tmp_path, file_format="array_record")
  builder.download_and_prepare()
  given = dict(dataset="wmt", data_dir=str(tmp_path), source="en", target="de")
  with pytest.raises(ValueError, match=r"has no tokenizer\.json.*zoo prepare wmt --data-dir"):
    _ = data.make("translation", **given).vocab_size
  with pytest.raises(ValueError, match=r"not UTF-8: example \d+ of 'wmt' 'train' \(record \d+ of .*array_record"):
    text_pairs.prepare_tokenizer("wmt", str(tmp_path), builder, 400, None)
  # A sample of the pairs is enough: here those of even number, in whatever order TFDS wrote them.
  monkeypatch.setattr(text_pairs, "SAMPLE", 10)
  seen = list(text_pairs.Lines("wmt", "train", None, builder, ["de"]).texts())
  monkeypatch.setattr(text_pairs.Lines, "parse", lambda self, v: tuple(v[n].bytes_list.value[0] for n in ["de"]))
  trained = []
  monkeypatch.setattr(tokenizers, "train_tokenizer", lambda texts, *a: trained.extend(texts) or Tokenizer(models.BPE()))
  text_pairs.prepare_tokenizer("wmt", str(tmp_path), builder, None, None)
  assert trained == [text for (text,) in seen[::2]]


@pytest.mark.parametrize(
  ("kwargs", "words"),
  [
    (dict(dataset="verses_en_e"), ["'verses_en_e'", "verses_en_es"]),
    (dict(dataset="fashion_mnist_small"), ["'fashion_mnist_small' has no translations"]),
    (dict(source="eng"), ["no language 'eng'", "did you mean 'en'", "es"]),
    (dict(target="en"), ["both 'en'"]),
    (dict(train_split="trian"), ["trian", "did you mean 'train'", "val"]),
    (dict(batching="packed"), ["data.batching", "did you mean 'pack'"]),
    (dict(too_long="dorp"), ["data.too_long", "did you mean 'drop'"]),
    (dict(source_length=1), ["data.source_length", "1"]),
    (dict(buckets=0), ["data.buckets", "0"]),
    (dict(soruce="en"), ["'soruce'", "did you mean 'source'"]),
    (dict(source_length=2), ["'train[:700]' has no pair to use", "700 are longer", "data.source_length=2"]),
  ],
  ids=lambda value: str(value)[:60],
)
def test_a_wrong_config_is_an_error_that_helps(kwargs, words):
  with pytest.raises(ValueError) as error:
    _ = small(**kwargs).num_train
  assert all(word in str(error.value) for word in words), error.value


def test_batches_that_cannot_be_made_are_refused_at_once():
  pairs = small(train_split="train[:50]")
  with pytest.raises(ValueError, match=r"batch_size=64, but 'verses_en_es' 'train\[:50\]' has 50"):
    pairs.train_batches(64, 0)
  with pytest.raises(ValueError, match="batch_size=6 cannot be shared by 4 processes"):
    pairs.eval_batches(6, process_count=4)


def test_a_closed_stream_ends():
  batches = small().train_batches(8, 0)
  next(batches)
  batches.close()
  with pytest.raises(StopIteration):
    next(batches)


# ---- A run that goes on ----


@pytest.mark.parametrize("batching", ["bucket", "pack"])
def test_a_run_goes_on_bit_for_bit(batching, tmp_path):
  """In batches of several shapes, each with a program of its own; and in rows of several pairs."""
  config = configuration.load("translate_en_es", [f"data.batching={batching}", "data.train_split=train[:150]"])
  config.data.buckets = 2
  config.model.update(width=16, mlp_dim=16, depth=1, decoder_depth=1, dropout_rate=0.1, scan=False, remat="none")
  config.batch_size, config.evals, config.plots, config.checkpoint.every_steps = 8, {}, (), 3
  for steps, folder in ((7, "whole"), (3, "parts"), (7, "parts")):
    config.steps = steps
    config.optimizer.schedule, config.optimizer.warmup = "constant", 0
    loop.train(config, tmp_path / folder, override_config=True)
  whole, parts = (read(tmp_path / folder).tensors for folder in ("whole", "parts"))
  for path, value in whole.items():
    np.testing.assert_array_equal(parts[path], value, err_msg=path)
