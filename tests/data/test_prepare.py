"""A corpus is prepared from any texts, completely, and bit-identically for any processes and after a kill."""

import itertools
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from support import raises

from train import cli
from train.data import array_record, prepare
from train.data.text import corpora, prepare_corpus
from train.data.text.corpora import TextFiles, TextRecords, make_source, split_sentences
from train.data.text.vocabulary import SPECIAL, load_vocabulary

# Sources.


def test_running_text_is_split_into_sentences():
  text = (
    'He said, "Go!"  She went\nhome. Mr. J. R. Smith paid 3.5 dollars... and then? yes. “What?” Oh, e.g. 你好。再见！'
  )
  assert split_sentences(text) == [
    'He said, "Go!"',
    "She went home.",
    "Mr. J. R. Smith paid 3.5 dollars... and then? yes.",
    "“What?”",
    "Oh, e.g. 你好。",
    "再见！",
  ]
  assert split_sentences(" \n") == []


def read_all(source):
  return [document for chunk in source.chunks() for document in source.read(chunk)]


@pytest.fixture
def folder(tmp_path, chapters):
  """Text files in folders, of which one has a byte-order mark, one Windows line ends, and two are empty."""
  (tmp_path / "text" / "b").mkdir(parents=True)
  texts = ["\n\n".join("\n".join(chapter) for chapter in chapters[i : i + 8]) for i in range(0, 40, 8)]
  for name, text in zip(("a.txt", "b/1.txt", "b/2.txt", "b/3.txt", "c"), texts, strict=True):
    (tmp_path / "text" / name).write_text(text + "\n", encoding="utf-8")
  (tmp_path / "text/a.txt").write_bytes(b"\xef\xbb\xbf" + texts[0].encode())
  (tmp_path / "text/b/2.txt").write_bytes(texts[2].replace("\n", "\r\n").encode() + b"\r\n \r\n\r\n")
  (tmp_path / "text/b/empty").write_text("")
  (tmp_path / "text/z").write_text("\n \n")
  (tmp_path / "text/.hidden").write_bytes(b"\xff")
  return tmp_path / "text"


@pytest.mark.parametrize("chunk", [100, 3000, 20_000, 10**9])
def test_chunks_end_where_documents_end(folder, chapters, chunk, monkeypatch):
  monkeypatch.setattr(corpora, "CHUNK", chunk)
  source = TextFiles(str(folder))
  chunks = source.chunks()
  assert chunks == source.chunks() and (len(chunks) == 1) == (chunk == 10**9)
  if chunk >= 20_000:  # shorter ones split a chapter of twice their length
    found = read_all(source)
    assert [document for document in found if document] == chapters[:40] and found.count([]) == 2
  assert [v for document in read_all(source) for v in document] == [v for chapter in chapters[:40] for v in chapter]
  # Every byte is in one chunk.
  parts = [part for each in chunks for part in each]
  for file in {part.name for part in parts}:
    offsets = [part[1:] for part in parts if part.name == file]
    assert offsets[0][0] == 0 and offsets[-1][1] == Path(file).stat().st_size
    assert all(a[1] == b[0] for a, b in itertools.pairwise(offsets))


@pytest.mark.parametrize("chunk", [3000, 10**9])
def test_a_file_is_a_document(folder, chapters, chunk, monkeypatch):
  monkeypatch.setattr(corpora, "CHUNK", chunk)
  found = [*filter(None, read_all(TextFiles(str(folder), documents="file")))]
  verses = [v for chapter in chapters[:40] for v in chapter]
  assert [*itertools.chain(*found)] == verses and (len(found) == 5) == (chunk == 10**9)
  running = [*itertools.chain(*read_all(TextFiles(str(folder), sentences="split")))]
  if chunk == 10**9:
    assert " ".join(running) == " ".join(verses) and len(running) > 1.2 * len(verses)


def test_text_without_line_ends_is_split_between_characters(tmp_path, monkeypatch):
  monkeypatch.setattr(corpora, "CHUNK", 1000)
  for text in ("日本" * 3000, "wörd " * 3000):
    (tmp_path / "text").write_text(text, encoding="utf-8")
    source = TextFiles(str(tmp_path / "text"))
    assert len(source.chunks()) > 3
    found = [v for document in read_all(source) for v in document]
    assert "".join(found).replace(" ", "") == text.replace(" ", "") and all("wörd" in v or "日" in v for v in found)


def test_text_that_is_not_utf8_is_named_with_its_byte(folder, monkeypatch):
  monkeypatch.setattr(corpora, "CHUNK", 5000)
  with (folder / "b/3.txt").open("r+b") as file:
    file.seek(12_345)
    file.write(b"\xff")
  with raises(ValueError, "b/3.txt", "UTF-8", "12,345", "0xff"):
    read_all(TextFiles(str(folder)))


def test_a_bundled_set_is_read_by_chapters(chapters, monkeypatch):
  assert len(chapters) == 1102 and len(chapters[0]) == 31 and chapters[0][0].startswith("In the beginning")
  monkeypatch.setattr(corpora, "CHUNK", 300_000)
  source = TextRecords("verses_en_es", split="train[:3000]")
  assert len(source.chunks()) > 1
  assert read_all(source) == [
    *chapters[: len(read_all(source)) - 1],
    chapters[len(read_all(source)) - 1][: len(read_all(source)[-1])],
  ]
  assert sum(map(len, read_all(source))) == 3000
  spanish = TextRecords("verses_en_es", split="val", feature="translation/es")
  assert "EN el" in " ".join(v for d in read_all(spanish) for v in d) or len(read_all(spanish)) > 20
  with raises(ValueError, "'translation/s'", "'translation/es'"):
    TextRecords("verses_en_es", feature="translation/s")
  with raises(ValueError, "'vall'"):
    TextRecords("verses_en_es", split="vall").chunks()


def test_a_set_of_texts_is_read_a_record_a_document(tmp_path):
  class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    name, VERSION = "some_texts", tfds.core.Version("1.0.0")

    def _info(self):
      features = {"text": tfds.features.Text(), "title": tfds.features.Text()}
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True)

    def _split_generators(self, dl_manager):
      return {"train": ((i, {"text": text, "title": "t"}) for i, text in enumerate(texts))}

    def _generate_examples(self):
      raise NotImplementedError

  texts = ["One. Two!\nstill two\n\nThree", "", b"\xff Five"]
  Builder(data_dir=tmp_path, file_format="array_record").download_and_prepare()
  source = make_source("some_texts", data_dir=str(tmp_path))
  assert source.feature == "text"
  (chunk,) = source.chunks()
  with raises(ValueError, "UTF-8", "example 2", "'some_texts'"):
    source.read(chunk)
  head = make_source("some_texts", data_dir=str(tmp_path), split="train[:2]")
  assert read_all(head) == [["One.", "Two!", "still two", "Three"], []] or read_all(head)[1] == []
  assert read_all(head)[0][0] == "One." and read_all(head)[0][-1] == "Three"


def test_invalid_sources_are_errors(tmp_path):
  for source, options, named in (
    ("nothere.txt", {}, ("'nothere.txt'",)),
    ("verses_en_ess", {}, ("'verses_en_ess'", "verses_en_es")),
    (str(tmp_path), {}, (tmp_path,)),
    (str(tmp_path), dict(split="train"), ("--split", tmp_path)),
    ("verses_en_es", dict(documents="file"), ("--documents", "verses_en_es")),
    (__file__, dict(documents="fil"), ("'fil'", "'file'")),
    ("fashion_mnist_small", {}, ("'fashion_mnist_small'",)),
  ):
    with raises(ValueError, *named):
      make_source(source, **options)


# On disk.


OPTIONS = dict(vocab_size=600, validation=0.1)


def prepared(tmp_path, where, folder, **kwargs):
  return Path(prepare_corpus.prepare_corpus("corpus/bible", str(tmp_path / where), str(folder), **OPTIONS | kwargs))


def content(folder):
  return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def small(monkeypatch):
  monkeypatch.setattr(corpora, "CHUNK", 20_000)


def test_a_corpus_opens_as_any_set(tmp_path, folder, small, chapters):
  path = prepared(tmp_path, "one", folder, processes=1, dupe_factor=2)
  builder = array_record.open_builder("corpus/bible", str(tmp_path / "one"))
  assert Path(builder.data_path) == path and set(builder.info.splits) == {"train", "val"}
  found = {split: [*builder.as_data_source(split)] for split in builder.info.splits}
  assert {len(found[s]) == builder.info.splits[s].num_examples for s in found} == {True}
  assert (
    set(found["train"][0]) == {"input_ids", "ends", "second_starts", "next_sentence_label"}
    and found["train"][0]["input_ids"].dtype == np.int32
  )
  words = load_vocabulary(path)
  counts = json.loads((path / "preparation.json").read_text())["counts"]
  assert counts["documents"] == 40 and counts["empty_documents"] == 2
  assert counts["unknown_tokens"] == 0 < counts["text_tokens"]
  assert counts["text_tokens"] == sum(map(len, words.encode([v for c in chapters[:40] for v in c])))
  assert counts["train_tokens"] == sum(len(row["input_ids"]) for row in found["train"])
  assert len(tfds.builder_from_directory(path).as_data_source("val")) == counts["val_rows"]
  # No chapter is in both.
  chapter_of = {}
  for number, verse in ((i, v) for i, chapter in enumerate(chapters[:40]) for v in chapter):
    chapter_of.setdefault(tuple(words.encode([verse])[0]), number)
  seen = {}
  for split, made in found.items():
    text = [np.split(row["input_ids"], row["second_starts"])[0].tolist()[1:-1] for row in made]
    seen[split] = {number for ids, number in chapter_of.items() if any(t[: len(ids)] == list(ids) for t in text)}
  assert len(seen["val"]) >= 4 and len(seen["train"]) > 25 and not seen["val"] & seen["train"]
  # Two copies to train on, and one to validate with.
  for split, copies in (("train", 2), ("val", 1)):
    text = sum(map(len, words.encode([verse for i in seen[split] for verse in chapters[i]])))
    assert copies < counts[f"{split}_tokens"] / text < 1.7 * copies


def test_a_chunk_without_text_is_an_empty_shard(tmp_path, folder, small):
  (folder / "b/2.txt").write_text(" \n" * 15_000)
  path = prepared(tmp_path, "one", folder, processes=1, validation=0.0)
  builder = array_record.open_builder("corpus/bible", str(tmp_path / "one"))
  assert 0 in builder.info.splits["train"].shard_lengths
  made = [*builder.as_data_source("train")]
  assert len(made) == builder.info.splits["train"].num_examples == sum(1 for _ in made)
  counts = json.loads((path / "preparation.json").read_text())["counts"]
  assert counts["empty_documents"] == 3 and counts["train_rows"] == len(made)


def test_whole_chunks_are_for_validation_where_there_are_many(tmp_path, folder, monkeypatch):
  monkeypatch.setattr(corpora, "CHUNK", 2000)
  path = prepared(tmp_path, "one", folder, processes=1)
  splits = tfds.builder_from_directory(path).info.splits
  chunks = json.loads((path / "preparation.json").read_text())["chunks"]
  assert len(splits["val"].shard_lengths) == round(0.1 * chunks) >= prepare_corpus.WHOLE
  assert len(splits["val"].shard_lengths) + len(splits["train"].shard_lengths) == chunks
  none = prepared(tmp_path, "two", folder, processes=1, validation=0.0)
  assert set(tfds.builder_from_directory(none).info.splits) == {"train"}


def test_two_processes_make_the_same_corpus_as_one(tmp_path, folder, small):
  one, two = (prepared(tmp_path, str(n), folder, processes=n, pack=True) for n in (1, 2))
  assert content(one) == content(two) and len(content(one)) > 10


KILLED = """
import os, signal, sys
from train.data.text import corpora, prepare_corpus
corpora.CHUNK = 20_000
done, close = [], prepare_corpus._replace
def replace(path, text):
  done.append(path.name)
  if sum(name.startswith("chunk") for name in done) == 3:
    path.with_name("chunk-00002.json.1.tmp").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
  close(path, text)
prepare_corpus._replace = replace
prepare_corpus.prepare_corpus("corpus/bible", sys.argv[1], sys.argv[2], vocab_size=600, validation=0.1, processes=1)
"""


def test_a_killed_preparation_resumes(tmp_path, folder, small, monkeypatch):
  wanted = prepared(tmp_path, "one", folder, processes=1)
  done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "two"), str(folder)], capture_output=True)
  assert done.returncode == -signal.SIGKILL, done.stderr
  left = tmp_path / "two/corpus/bible/1.0.0.incomplete"
  assert {p.name for p in left.glob("chunk-*.json")} == {"chunk-00000.json", "chunk-00001.json"}
  with raises(ValueError, "length", 128, 64):
    prepared(tmp_path, "two", folder, processes=1, length=64)
  made, make = [], prepare_corpus.make_chunk
  monkeypatch.setattr(
    prepare_corpus, "make_chunk", lambda job, number, chunk: (made.append(number), make(job, number, chunk))
  )
  assert content(prepared(tmp_path, "two", folder, processes=1)) == content(wanted)
  assert made[0] == 2 and not left.exists()


def test_an_error_in_a_process_is_raised(tmp_path, folder, small):
  (folder / "c").write_bytes(b"abc \xe9")
  (tmp_path / "vocab.txt").write_text("\n".join([*(text for text, _ in SPECIAL.values()), "the"]))
  with raises(ValueError, "text/c", "UTF-8", 4, "0xe9"):
    prepared(tmp_path, "one", folder, processes=2, vocab=str(tmp_path / "vocab.txt"), vocab_size=None)


def test_invalid_preparations_are_errors(tmp_path, folder, capsys):
  def fails(*named, name="corpus/bible", **kwargs):
    with raises(ValueError, *named):
      prepare.prepare(name, str(tmp_path), **dict(source=str(folder)) | kwargs)

  fails("'corpus'", "corpus/NAME", name="corpus")
  fails("'corpus/a/b'", "corpus/NAME", name="corpus/a/b")
  fails("--pack", "corpus/NAME", "'cifar10'", name="cifar10", pack=True)
  fails("'corpus/bible'", "--source", source=None)
  fails("length", "'x'", length="x")
  fails("'lenght'", "'length'", lenght=1)
  fails("'bp'", "'bpe'", tokenizer="bp")
  fails("vocab_size", "tokenizer", "vocab", vocab="x", vocab_size=10)
  fails("validation", 1.0, validation=1.0)
  fails("processes", 0, processes=0)
  fails("beam_option", ["a=b"], "'local'", beam_option=["a=b"])
  (folder.parent / "empty").write_text("\n")
  fails(folder.parent / "empty", source=str(folder.parent / "empty"), processes=1)
  # The command passes its options on, and an option's value is not an override.
  command = ["prepare", "corpus/x", "--source", str(folder), "--data-dir", str(tmp_path)]
  assert cli.main([*command, "--beam-option", "a.b=c", "--no-pairs", "--pack"]) == 2
  error = capsys.readouterr().err
  assert "beam_option" in error and "['a.b=c']" in error
  assert cli.main([*command, "--processes", "1", "--vocab-size", "500", "--no-pairs", "--pack"]) == 0
  assert capsys.readouterr().out.strip() == str(tmp_path / "corpus/x/1.0.0")
  assert json.loads((tmp_path / "corpus/x/1.0.0/preparation.json").read_text())["pairs"] is False
  assert cli.main(command) == 2 and str(tmp_path / "corpus/x/1.0.0") in capsys.readouterr().err
