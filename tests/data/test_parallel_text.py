"""Parallel texts, one's own, WMT's or any of TFDS, are prepared with a tokenizer, and bad ones are named."""

import subprocess
import sys
import types
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from support import raises
from tokenizers import Tokenizer, models

from train import cli, data
from train.data import image_classification, prepare
from train.data.text import tokenizers as tokenizers
from train.data.text import translation as text_pairs

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
def test_local_texts_are_prepared_and_bad_pairs_are_counted(tmp_path, kind):
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
  # In evaluation nothing is dropped: what is too long is truncated, and the reference is whole.
  assert pairs.num_eval() == len(full) == 4
  (batch,) = pairs.eval_batches(4)
  assert (batch["target_ids"][2] != 0).all() and batch["target_ids"][2][-1] == tokenizers.EOS
  decode = pairs.tokenizer.decode
  assert (
    full[2][1].startswith(decode(batch["target_ids"][2])) and decode(batch["source_ids"][3]) == "日本語 is Japanese."
  )
  truncated = data.make("translation", dataset=pairs.dataset, data_dir=pairs.data_dir, too_long="truncate")
  assert truncated.counts() == {"pairs": 4, "empty": 2, "too_long": 1}
  assert pairs.vocab_size <= 300
  # Once trained, a tokenizer stays.
  digest = pairs.tokenizer_digest
  prepare.prepare("parallel_text/en-es", pairs.data_dir)
  assert data.make("translation", dataset=pairs.dataset, data_dir=pairs.data_dir).tokenizer_digest == digest
  with raises(ValueError, "tokenizer.json"):
    prepare.prepare("parallel_text/en-es", pairs.data_dir, None, 400)
  # Other source files are an error.
  with raises(ValueError, "parallel_text/en-es/1.0.0"):
    prepare.prepare("parallel_text/en-es", pairs.data_dir, str(folder))
  # Invalid arguments fail before anything is written; an interrupted preparation continues.
  for options, named in (((100,), ("vocab_size", 100, 260)), ((None, "wordpiece"), ("'wordpiece'", "bpe", "unigram"))):
    with raises(ValueError, *named):
      prepare.prepare("parallel_text/en-es", str(tmp_path / "other"), str(folder), *options)
  assert not (tmp_path / "other").exists()
  written = Path(pairs._builder.data_path) / "tokenizer.json"
  written.unlink()
  prepare.prepare("parallel_text/en-es", pairs.data_dir, str(folder), 300)
  assert written.exists()


def test_a_tokenizer_of_words_can_be_prepared(tmp_path):
  pairs = prepared(tmp_path, write(tmp_path / "mine"), "--tokenizer", "word")
  assert pairs.tokenizer.encode("house lärm").tokens == ["house", "<unk>", "</s>"]


def test_files_that_are_not_parallel_are_named(tmp_path):
  def check(folder, *named, name="parallel_text/en-es"):
    with raises(ValueError, *named):
      prepare.prepare(name, str(tmp_path / "data"), str(folder))

  folder = write(tmp_path / "one", lines={"en": ["a"] * 1234, "es": ["a"] * 1233})
  check(folder, "train.en", "1,234", "train.es", "1,233")
  (folder / "train.es").unlink()
  check(folder, "train.es")
  folder = tmp_path / "two"
  folder.mkdir()
  (folder / "train.tsv").write_text("a\tb\nno translation\n")
  check(folder, "train.tsv, line 2", "'no translation'")
  (folder / "train.tsv").write_bytes(b"a\tb\nc\td\ncaf\xe9\tx\n")
  check(folder, "train.tsv, line 3", "UTF-8")
  write(folder)
  check(folder, "train.en", "train.tsv")
  write(tmp_path / "three", "val")
  check(tmp_path / "three", "train.en", "train.es", "train.tsv")
  for name in ("parallel_text", "parallel_text/en", "parallel_text/en-en", "parallel_text/en-es-fr"):
    check(folder, "parallel_text/en-es", repr(name.partition("/")[2] or None), name=name)


def test_a_set_without_translations_has_no_tokenizer():
  builder = types.SimpleNamespace(
    info=image_classification.make_source("fashion_mnist_small", "test").builder.info, data_path="."
  )
  with raises(ValueError, "fashion_mnist", "tokenizer"):
    text_pairs.prepare_tokenizer("fashion_mnist", None, builder, 500, None)


def test_wmt_is_known_without_tensorflow():
  # In a new process: in this one another test may have imported it.
  program = "from train import data; data.make('translation', dataset='wmt14_translat/de-en').num_train"
  root = str(Path(data.__file__).parents[1])
  run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root, timeout=120)
  (error,) = [line for line in run.stderr.splitlines() if "'wmt14_translat'" in line]
  assert error.startswith("ValueError") and "wmt14_translate" in error.replace("'wmt14_translat'", "")


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


def test_a_set_of_tfds_needs_a_tokenizer_and_text_that_is_not_utf8_is_named(tmp_path, monkeypatch):
  builder = Wmt(data_dir=tmp_path, file_format="array_record")
  builder.download_and_prepare()
  given = dict(dataset="wmt", data_dir=str(tmp_path), source="en", target="de")
  with raises(ValueError, "tokenizer.json", f"zoo prepare wmt --data-dir {tmp_path}"):
    _ = data.make("translation", **given).vocab_size
  with raises(ValueError, "UTF-8", "example", "'wmt' 'train'", "record", ".array_record"):
    text_pairs.prepare_tokenizer("wmt", str(tmp_path), builder, 400, None)
  # The tokenizer is trained on a sample of the pairs: here the even ones, in the order in which TFDS wrote them.
  monkeypatch.setattr(text_pairs, "SAMPLE", 10)
  seen = list(text_pairs.Lines("wmt", "train", None, builder, ["de"]).texts())
  monkeypatch.setattr(text_pairs.Lines, "parse", lambda self, v: tuple(v[n].bytes_list.value[0] for n in ["de"]))
  trained = []
  monkeypatch.setattr(tokenizers, "train_tokenizer", lambda texts, *a: trained.extend(texts) or Tokenizer(models.BPE()))
  text_pairs.prepare_tokenizer("wmt", str(tmp_path), builder, None, None)
  assert trained == [text for (text,) in seen[::2]]
