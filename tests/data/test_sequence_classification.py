"""Labelled texts in files of any format and in GLUE are encoded as published."""

import csv
import importlib
import json

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from batches import take
from labelled_texts import make_set, shown, write_tsv
from support import raises

import zoo
from train import data
from train.data.text import labelled, sequence_classification, tables
from train.objectives.sequence_classification import Objective as Label


def test_the_longer_text_of_a_pair_is_truncated_token_by_token():
  def published(one, two, room):
    while one + two > room:
      one, two = (one - 1, two) if one > two else (one, two - 1)
    return one, two

  for one in range(14):
    for two in range(14):
      for room in range(15):
        assert labelled.truncate(one, two, room) == published(one, two, room), (one, two, room)
  assert labelled.truncate(9, 0, 5) == (5, 0)


def sentence_data(folder, vocabulary, **kwargs):
  return data.make(
    "sequence_classification", **dict(dataset=str(folder), vocab_file=vocabulary, text="text", length=16) | kwargs
  )


def test_rows_are_as_published(tmp_path, vocabulary):
  write_tsv(
    tmp_path / "train.tsv", [("a b", "Bab", 1), ("c " * 20, "d", 0), ("", "e [SEP]", 2)], ("one", "two", "label")
  )
  pairs = sentence_data(tmp_path, vocabulary, text="one", text_pair="two", eval_split="train", length=10)
  (batch,) = pairs.eval_batches(4)
  assert [shown(batch, i) for i in range(3)] == [
    "[CLS] a b [SEP] b ##a ##b [SEP]",
    "[CLS] c c c c c c [SEP] d [SEP]",
    "[CLS] [SEP] e [UNK] [UNK] [UNK] [SEP]",  # text is never a special token
  ]
  assert batch["token_type_ids"][0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 0, 0]
  assert batch["token_type_ids"][1].tolist() == [0] * 8 + [1] * 2
  assert batch["label"].tolist() == [1, 0, 2, 0] and batch["valid"].tolist() == [True] * 3 + [False]
  assert pairs.examples().truncated == 1 and pairs.num_classes == 3
  single = sentence_data(tmp_path, vocabulary, text="one", eval_split="train")
  (batch,) = single.eval_batches(3)
  assert shown(batch, 0) == "[CLS] a b [SEP]" and not batch["token_type_ids"].any()
  assert shown(batch, 1) == "[CLS] " + "c " * 14 + "[SEP]"


def test_batches_are_of_the_predicted_shapes(tmp_path, vocabulary):
  write_tsv(tmp_path / "train.tsv", [("a b", "c", "d", "e", 1)] * 4, ("text", "x", "y", "z", "label"))
  for options in ({}, dict(text_pair="x"), dict(regression=True), dict(choices=("x", "y", "z"))):
    config = dict(dataset=str(tmp_path), vocab_file=vocabulary, text="text", buckets=1, length=16, **options)
    expected_shapes = data.kind("sequence_classification").shapes(config | {"name": "sequence_classification"}, None, 2)
    (batch,) = take(data.make("sequence_classification", **config).train_batches(2, 0), 1)
    found = {key: jax.ShapeDtypeStruct(a.shape, a.dtype) for key, a in batch.items()}
    assert found == expected_shapes


def test_every_epoch_has_every_example_once_for_any_number_of_processes(tmp_path, vocabulary):
  rng = np.random.default_rng(0)
  rows = [(" ".join(rng.choice([*"abcdefghijklm"], rng.integers(1, 14))), i % 7) for i in range(45)]
  write_tsv(tmp_path / "train.tsv", rows)
  made = sentence_data(tmp_path, vocabulary, buckets=3)
  steps = -(-45 // 6)
  whole = take(made.train_batches(6, 3), 2 * steps)
  assert {batch["input_ids"].shape for batch in whole} <= {(6, n) for n in made.batch_lengths} == {(6, 8), (6, 16)}
  for epoch in (whole[:steps], whole[steps:]):
    found = [(shown(b, i)[6:-6], b["label"][i]) for b in epoch for i in range(6) if b["valid"][i]]
    assert sorted(found) == sorted(rows)
  assert not all(np.array_equal(a["label"], b["label"]) for a, b in zip(whole[:steps], whole[steps:], strict=True))
  for first in (0, 5, steps + 2):  # the position is the step
    parts = [take(made.train_batches(6, 3, first, p, 2), 3) for p in range(2)]
    for i in range(3):
      whole_batch = {key: np.concatenate([part[i][key] for part in parts]) for key in whole[0]}
      for key, array in whole_batch.items():
        np.testing.assert_array_equal(array, whole[first + i][key])
  # Evaluation keeps the order.
  one, two = (list(made.eval_batches(8, "train", p, 2)) for p in range(2))
  found = [shown(b, i)[6:-6] for pair in zip(one, two, strict=True) for b in pair for i in range(4) if b["valid"][i]]
  assert found == [text for text, _ in rows]
  assert len(list(made.eval_batches(8, "train", limit=17))) == 3
  assert "45 examples" in made.about(6, 3)


def test_files_of_all_formats_have_the_same_rows(tmp_path, vocabulary):
  rows = [('say "a, b"', "good"), ("c, d", "bad"), ("e", "good")]
  write_tsv(tmp_path / "one.tsv", rows)
  with (tmp_path / "two.csv").open("w", newline="") as file:
    csv.writer(file).writerows([("label", "text"), *(row[::-1] for row in rows)])
  lines = [json.dumps({"text": text, "label": label, "more": {"texts": ["x", text]}}) for text, label in rows]
  (tmp_path / "three.jsonl").write_text("\n\n".join(lines))
  for split in ("one", "two", "three"):
    assert tables.read(str(tmp_path), split, None, ("text", "label")).rows == rows
  assert tables.read(str(tmp_path), "three", None, ("more/texts/1", "label")).rows == rows
  assert tables.read(str(tmp_path), "one[1:]+two[:34%]", None, ("text", "label")).rows == [*rows[1:], rows[0]]
  assert tables.read(str(tmp_path), "one+three", None, ("label",)).where(4).endswith("three.jsonl, line 3")
  (tmp_path / "cola.tsv").write_text('gj04\t1\t\tA "b\ngj04\t0\t*\tc\n')
  assert tables.read(str(tmp_path), "cola", None, ("3", "1")).rows == [('A "b', "1"), ("c", "0")]
  assert tables.read(str(tmp_path), "cola", None, ("-1",)).rows == [('A "b',), ("c",)]
  made = sentence_data(tmp_path, vocabulary, train_split="one", eval_split="two", classes=("bad", "good"))
  assert made.examples("two").labels["label"].tolist() == [1, 0, 1] and made.num_classes == 2


@pytest.mark.parametrize(
  ("name", "content", "options", "named"),
  [
    ("train.tsv", b"text\tlabel\na\t0\nb\n", {}, ("train.tsv, line 3", "1 columns")),
    ("train.tsv", b"text\tlable\na\t0\n", {}, ("train.tsv, line 1", "'label'", "'lable'")),
    ("train.tsv", b"text\tlabel\na\t0\nb\tfine\n", {}, ("train.tsv, line 3", "'fine'", "data.classes")),
    ("train.tsv", b"text\tlabel\na\tgod\n", dict(classes=("bad", "good")), ("train.tsv, line 2", "'god'", "'good'")),
    ("train.tsv", b"text\tlabel\na\t7\n", dict(classes=("bad", "good")), ("train.tsv, line 2", "'7'", "bad, good")),
    ("train.tsv", b"text\tlabel\na\t-2\n", {}, ("train.tsv, line 2", "'-2'", "0, 1")),
    ("train.tsv", b"text\tlabel\na\t-1\n", {}, ("train.tsv, line 2", "'-1'")),
    ("train.tsv", b"text\tlabel\na\thigh\n", dict(regression=True), ("train.tsv, line 2", "'high'")),
    ("train.tsv", b"text\tlabel\na\t\xff\n", {}, ("train.tsv, line 2", "UTF-8")),
    ("train.tsv", b"text\tlabel\n", {}, ("'train'",)),
    ("val.tsv", b"text\tlabel\na\t0\n", {}, ("'train'",)),
    ("train.jsonl", b'{"text": "a", "label": 0}\n{"text"', {}, ("train.jsonl, line 2", "JSON")),
    ("train.jsonl", b'{"text": "a"}\n', {}, ("train.jsonl, line 1", "'label'")),
    ("train.jsonl", b'{"text": 3, "label": 0}\n', {}, ("train.jsonl, line 1: 3",)),
    (
      "train.jsonl",
      b'{"text": "a", "label": 0.5}\n',
      {},
      ("train.jsonl, line 1", 0.5, "data.regression=True"),
    ),
    ("train.csv", b'text,label\n"a,0\n', {}, ("train.csv, line 2",)),
  ],
)
def test_faults_of_a_file_are_reported_with_their_line(tmp_path, vocabulary, name, content, options, named):
  (tmp_path / name).write_bytes(content)
  with raises(ValueError, *named):
    sentence_data(tmp_path, vocabulary, **options).examples()


def test_an_unknown_label_is_reported_with_its_line(tmp_path, vocabulary):
  write_tsv(tmp_path / "train.tsv", [("a", 0), ("b", 2), ("c", 1)])
  write_tsv(tmp_path / "val.tsv", [("a", 0), ("b", 3)])
  made = sentence_data(tmp_path, vocabulary, eval_split="val")
  model = zoo.create("bert/test", head="sequence_classification", num_classes=2)
  with raises(ValueError, "model.num_classes=3", "train.tsv, line 3", 2):
    made.check_fit(model.config, Label())
  with raises(ValueError, "val.tsv, line 3", "'3'", "0 to 2"):
    made.num_eval()


@pytest.mark.parametrize(
  ("options", "named"),
  [
    (dict(text=""), ("data.text",)),
    (dict(choices=("text",)), ("data.choices", "('text',)")),
    (dict(regression=True, classes=("a", "b")), ("data.regression",)),
    (dict(classes=("a", "a")), ("data.classes",)),
    (dict(dataset="glue/sst"), ("GLUE", "'sst'", "'sst2'")),
    (dict(length=2), ("data.length", 2, 5)),
    (dict(vocab_file=""), ("data.vocab_file", "vocab.txt")),
  ],
)
def test_invalid_options_are_errors(tmp_path, vocabulary, options, named):
  write_tsv(tmp_path / "train.tsv", [("a", 0)])
  with raises(ValueError, *named):
    sentence_data(tmp_path, vocabulary, **options).examples()


@pytest.mark.parametrize(
  ("model", "named"),
  [
    (
      dict(head="token_classification", num_classes=2),
      ("head='sequence_classification'", "'token_classification'"),
    ),
    (dict(vocab_size=28), (28, "model.vocab_size=29")),
    (dict(vocab_size=2000), (2000, "model.vocab_size=29")),
    (dict(pad_token_id=1), ("pad_token_id", 1, "[PAD]", 0)),
    (dict(max_length=8), (16, "max_length", 8)),
    (dict(type_vocab_size=1), ("model.type_vocab_size=2",)),
  ],
)
def test_an_incompatible_model_is_an_error_that_names_the_fault(tmp_path, vocabulary, model, named):
  write_tsv(tmp_path / "train.tsv", [("a", "b", 0), ("a", "b", 1)], ("text", "text2", "label"))
  made = sentence_data(tmp_path, vocabulary, text_pair="text2")
  config = zoo.create("bert/test", **dict(head="sequence_classification", num_classes=2) | model).config
  with raises(ValueError, *named):
    made.check_fit(config, Label())
  with raises(ValueError, "head='sequence_classification'"):
    made.check_fit(zoo.create("transformer/test").config, Label())


@pytest.mark.parametrize("name", sequence_classification.GLUE)
def test_glue_has_the_features_that_the_table_names(name):
  importlib.import_module("tensorflow_datasets.text")  # registers TFDS's text sets without TensorFlow
  features = tfds.builder(f"glue/{name}", data_dir="nowhere").info.features
  made = sequence_classification.SequenceClassification(f"glue/{name}")
  assert {made.text, made.text_pair, made.label} - {""} == set(features) - {"idx"}
  assert made.regression == (not isinstance(features["label"], tfds.features.ClassLabel)) == (name == "stsb")


def test_a_task_of_glue_is_read_by_its_name(tmp_path, vocabulary):
  names = ["not_equivalent", "equivalent"]
  features = dict(
    sentence1=tfds.features.Text(),
    sentence2=tfds.features.Text(),
    label=tfds.features.ClassLabel(names=names),
    idx=np.int32,
  )
  rows = [dict(sentence1="a b", sentence2="c", label=i % 2, idx=i) for i in range(6)]
  unlabelled = [row | dict(label=-1) for row in rows]
  make_set(tmp_path, "glue/mrpc", features, dict(train=rows, validation=rows, test=unlabelled))
  options = dict(dataset="glue/mrpc", data_dir=str(tmp_path), vocab_file=vocabulary, length=16)
  made = data.make("sequence_classification", **options)
  assert made.class_names == names and made.num_classes == 2 and made.scores == ("f1", "accuracy")
  (batch,) = made.eval_batches(6)
  assert shown(batch, 0) == "[CLS] a b [SEP] c [SEP]" and batch["label"].tolist() == [0, 1] * 3
  with raises(ValueError, "'test'", "labels"):
    made.num_eval("test")
  with raises(ValueError, "label", -1):
    data.make("sequence_classification", **options, train_split="test").examples()
  with raises(ValueError, "'sentense1'", "'sentence1'"):
    data.make("sequence_classification", **options, text="sentense1").examples()
