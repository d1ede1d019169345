"""Labelled texts, tags and questions are read as they are, and answers are chosen as published scripts do."""

import csv
import importlib
import io
import json
import math
import tarfile

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds

import zoo
from train import data
from train.data import prepare
from train.data.text import labelled, question_answering, sequence_classification, tables
from train.datasets import vader_movies
from train.objectives.sequence_classification import Objective as Label

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*"abcdefghijklm", "##a", "##b", "good", "bad", "yes", "no", "ann", "bob", "paris", "is", "in"]  # 29 in all


def write_vocabulary(folder):
  (folder / "vocab.txt").write_text("\n".join(SPECIAL + WORDS) + "\n")
  return str(folder / "vocab.txt")


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
  return write_vocabulary(tmp_path_factory.mktemp("vocabulary"))


def ids(text):
  return [(SPECIAL + WORDS).index(word) for word in text.split()]


def take(batches, count):
  result = [next(batches) for _ in range(count)]
  batches.close()
  return result


def shown(batch, i, choice=None):
  """The tokens of a row as text; what the other arrays say of them is checked on the way."""
  arrays = [
    batch[name][i] if choice is None else batch[name][i, choice]
    for name in ("input_ids", "segment_ids", "position_ids")
  ]
  token, segment, position = arrays
  size = int(segment.sum())
  assert segment.tolist() == [1] * size + [0] * (len(token) - size)
  assert position[:size].tolist() == list(range(size)) and not token[size:].any()
  return " ".join((SPECIAL + WORDS)[i] for i in token[:size])


def write_tsv(path, rows, heading=("text", "label")):
  path.write_text("".join("\t".join(map(str, row)) + "\n" for row in [heading, *rows]))


class Maker(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A set of TFDS of any name, features and examples."""

  VERSION = tfds.core.Version("1.0.0")

  def __init__(self, name, features, splits, config=None, **kwargs):
    type(self).name, self._features, self._splits = name, features, splits
    config = config and tfds.core.BuilderConfig(name=config)
    super().__init__(config=config, file_format="array_record", **kwargs)

  def _info(self):
    return tfds.core.DatasetInfo(builder=self, features=self._features, disable_shuffling=True)

  def _split_generators(self, dl_manager):
    return {name: self._generate_examples(rows) for name, rows in self._splits.items()}

  def _generate_examples(self, rows):
    yield from enumerate(rows)


def make_set(folder, name, features, splits):
  base, _, config = name.partition("/")
  Maker(base, tfds.features.FeaturesDict(features), splits, config or None, data_dir=folder).download_and_prepare()


# Rows.


def test_the_longer_text_of_a_pair_is_cut_token_by_token():
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
    "[CLS] [SEP] e [UNK] [UNK] [UNK] [SEP]",  # what looks like a special token is none
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


def test_every_example_is_in_every_epoch_once_whatever_the_processes(tmp_path, vocabulary):
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
      joined = {key: np.concatenate([part[i][key] for part in parts]) for key in whole[0]}
      for key, array in joined.items():
        np.testing.assert_array_equal(array, whole[first + i][key])
  # In evaluation the order stays.
  one, two = (list(made.eval_batches(8, "train", p, 2)) for p in range(2))
  found = [shown(b, i)[6:-6] for pair in zip(one, two, strict=True) for b in pair for i in range(4) if b["valid"][i]]
  assert found == [text for text, _ in rows]
  assert len(list(made.eval_batches(8, "train", limit=17))) == 3
  assert "45 examples; batches of" in made.about(6, 3)


# Tables.


def test_files_of_any_format_say_the_same(tmp_path, vocabulary):
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
  ("name", "content", "options", "message"),
  [
    ("train.tsv", b"text\tlabel\na\t0\nb\n", {}, r"train.tsv, line 3, has 1 columns; wanted 2"),
    ("train.tsv", b"text\tlable\na\t0\n", {}, r"line 1, is a heading without 'label'; did you mean 'lable'"),
    ("train.tsv", b"text\tlabel\na\t0\nb\tfine\n", {}, r"line 3: label 'fine' is no class by number; .*data.classes"),
    ("train.tsv", b"text\tlabel\na\tgod\n", dict(classes=("bad", "good")), r"line 2: label 'god' is none.*mean 'good'"),
    ("train.tsv", b"text\tlabel\na\t7\n", dict(classes=("bad", "good")), r"line 2: label '7'; wanted one of bad, good"),
    ("train.tsv", b"text\tlabel\na\t-2\n", {}, r"line 2: label '-2'; wanted 0, 1, ..."),
    ("train.tsv", b"text\tlabel\na\t-1\n", {}, r"line 2: label '-1'"),
    ("train.tsv", b"text\tlabel\na\thigh\n", dict(regression=True), r"line 2: label 'high' is no number"),
    ("train.tsv", b"text\tlabel\na\t\xff\n", {}, r"train.tsv, line 2, is not UTF-8"),
    ("train.tsv", b"text\tlabel\n", {}, r"'train' has no example"),
    ("val.tsv", b"text\tlabel\na\t0\n", {}, r"has no split 'train', which would be a file of that name"),
    ("train.jsonl", b'{"text": "a", "label": 0}\n{"text"', {}, r"train.jsonl, line 2, is no JSON"),
    ("train.jsonl", b'{"text": "a"}\n', {}, r"train.jsonl, line 1, has no 'label'"),
    ("train.jsonl", b'{"text": 3, "label": 0}\n', {}, r"train.jsonl, line 1: 3 is no text"),
    (
      "train.jsonl",
      b'{"text": "a", "label": 0.5}\n',
      {},
      r"line 1: label 0.5 is no whole number; data.regression=True",
    ),
    ("train.csv", b'text,label\n"a,0\n', {}, r"train.csv, line 2"),
  ],
)
def test_what_is_wrong_in_a_file_is_reported_by_its_line(tmp_path, vocabulary, name, content, options, message):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(ValueError, match=message):
    sentence_data(tmp_path, vocabulary, **options).examples()


def test_a_label_that_the_model_or_the_training_split_has_not_is_reported_by_its_line(tmp_path, vocabulary):
  write_tsv(tmp_path / "train.tsv", [("a", 0), ("b", 2), ("c", 1)])
  write_tsv(tmp_path / "val.tsv", [("a", 0), ("b", 3)])
  made = sentence_data(tmp_path, vocabulary, eval_split="val")
  model = zoo.create("bert/test", head="sequence_classification", num_classes=2)
  with pytest.raises(ValueError, match=r"set model.num_classes=3\n.*train.tsv, line 3: 2"):
    made.check_fit(model.config, Label())
  with pytest.raises(ValueError, match=r"val.tsv, line 3: label '3'; wanted 0 to 2"):
    made.num_eval()


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(text=""), "data.text is empty"),
    (dict(choices=("text",)), "data.choices is .*; wanted at least two"),
    (dict(regression=True, classes=("a", "b")), "data.regression"),
    (dict(classes=("a", "a")), "data.classes has a name twice"),
    (dict(dataset="glue/sst"), "GLUE has no task 'sst'; did you mean 'sst2'"),
    (dict(length=2), "data.length is 2; wanted a whole number, at least 5"),
    (dict(vocab_file=""), "data.vocab_file is empty; wanted a vocab.txt"),
  ],
)
def test_options_that_cannot_be(tmp_path, vocabulary, options, message):
  write_tsv(tmp_path / "train.tsv", [("a", 0)])
  with pytest.raises(ValueError, match=message):
    sentence_data(tmp_path, vocabulary, **options).examples()


@pytest.mark.parametrize(
  ("model", "message"),
  [
    (
      dict(head="token_classification", num_classes=2),
      r"head='sequence_classification'.*'token_classification'",
    ),
    (dict(vocab_size=28), "vocab_size.* 28, .* 29 .*model.vocab_size=29"),
    (dict(vocab_size=2000), "vocab_size.* 2000, .* 29 .*model.vocab_size=29"),
    (dict(pad_token_id=1), r"the model's pad_token_id is 1, the vocabulary's \[PAD\] is 0"),
    (dict(max_length=8), "rows have up to 16 tokens, the model's max_length is 8"),
    (dict(type_vocab_size=1), "model.type_vocab_size=2"),
  ],
)
def test_a_model_that_does_not_fit_is_an_error_that_says_why(tmp_path, vocabulary, model, message):
  write_tsv(tmp_path / "train.tsv", [("a", "b", 0), ("a", "b", 1)], ("text", "text2", "label"))
  made = sentence_data(tmp_path, vocabulary, text_pair="text2")
  config = zoo.create("bert/test", **dict(head="sequence_classification", num_classes=2) | model).config
  with pytest.raises(ValueError, match=message):
    made.check_fit(config, Label())
  with pytest.raises(ValueError, match="head='sequence_classification'"):
    made.check_fit(zoo.create("transformer/test").config, Label())


# GLUE.


@pytest.mark.parametrize("name", sequence_classification.GLUE)
def test_glue_has_the_features_that_the_table_names(name):
  importlib.import_module("tensorflow_datasets.text")  # where TFDS ends its registration without TensorFlow
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
  hidden = [row | dict(label=-1) for row in rows]
  make_set(tmp_path, "glue/mrpc", features, dict(train=rows, validation=rows, test=hidden))
  options = dict(dataset="glue/mrpc", data_dir=str(tmp_path), vocab_file=vocabulary, length=16)
  made = data.make("sequence_classification", **options)
  assert made.class_names == names and made.num_classes == 2 and made.scores == ("f1", "accuracy")
  (batch,) = made.eval_batches(6)
  assert shown(batch, 0) == "[CLS] a b [SEP] c [SEP]" and batch["label"].tolist() == [0, 1] * 3
  with pytest.raises(ValueError, match=r"'test'.*labels"):
    made.num_eval("test")
  with pytest.raises(ValueError, match=r"label -1"):
    data.make("sequence_classification", **options, train_split="test").examples()
  with pytest.raises(ValueError, match="has no feature 'sentense1'; did you mean 'sentence1'"):
    data.make("sequence_classification", **options, text="sentense1").examples()


def packed(name, content):
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode="w:gz") as archive:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))
  return file.getvalue()


def test_rated_snippets_are_built_from_their_archive(tmp_path):
  rows = [(i, (i % 9 - 4) / 2, f"snippet {i // 2}") for i in range(1, 400)] + [(400, 0.5, "no"), (401, -0.5, "nor")]
  archive = tmp_path / "source" / "vaderSentiment-3.3.2.tar.gz"
  archive.parent.mkdir()
  inner = packed(f"x/{vader_movies.FILE}", "".join(f"{n}\t{rating}\t{text}\r\n" for n, rating, text in rows).encode())
  archive.write_bytes(packed(f"vaderSentiment-3.3.2/{vader_movies.INNER}", inner))
  prepare.prepare("vader_movies", str(tmp_path / "data"), str(archive.parent))
  found = {}
  for split in ("train", "val", "test"):
    table = tables.read("vader_movies", split, str(tmp_path / "data"), ("number", "text", "label", "rating"))
    found[split] = table.rows
    assert all((label == 1) == (rating > 0) and abs(rating) > 0.5 for _, _, label, rating in table.rows)
  assert sorted(int(row[0]) for part in found.values() for row in part) == [
    n for n, rating, _ in rows if abs(rating) > 0.5
  ]
  texts = [{row[1] for row in part} for part in found.values()]
  assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]
  assert 0.6 < len(found["train"]) / sum(map(len, found.values())) < 0.95
  with pytest.raises(ValueError, match=r"has no vaderSentiment-\*.tar.gz. Name the folder"):
    prepare.prepare("vader_movies", str(tmp_path / "other"), str(tmp_path))


# Tags.


CONLL = """-DOCSTART- -X- -X- O

Ann NNP B-NP {begin}-PER
Bob NNP I-NP B-PER
is VBZ B-VP O
in IN B-PP O
Paris NNP B-NP {begin}-LOC

bab a b {begin}-PER
\t
-DOCSTART- -X- O O

a b c O
"""


def tag_data(folder, vocabulary, **kwargs):
  options = dict(dataset=str(folder), vocab_file=vocabulary, length=16, eval_split="train") | kwargs
  return data.make("token_classification", **options)


def test_conll_files_are_read_and_their_tags_stand_on_first_pieces(tmp_path, vocabulary):
  (tmp_path / "train.txt").write_text(CONLL.format(begin="B"))
  made = tag_data(tmp_path, vocabulary, length=7)
  assert [sentence.words for sentence in made.sentences("train")] == [
    ["Ann", "Bob", "is", "in", "Paris"],
    ["bab"],
    ["a"],
  ]
  assert made.class_names == ["B-LOC", "B-PER", "O"]
  (batch,) = made.eval_batches(3)
  assert shown(batch, 0) == "[CLS] ann bob is in paris [SEP]" and shown(batch, 1) == "[CLS] b ##a ##b [SEP]"
  assert batch["label"].tolist() == [[-1, 1, 1, 2, 2, 0, -1], [-1, 1, -1, -1, -1, -1, -1], [-1, 2, *[-1] * 5]]
  expected_shapes = data.kind("token_classification").shapes(dict(dataset="x", length=7), None, 3)
  assert {key: jax.ShapeDtypeStruct(a.shape, a.dtype) for key, a in batch.items()} == expected_shapes
  assert tag_data(tmp_path, vocabulary, tag=1).class_names == ["IN", "NNP", "VBZ", "a", "b"]
  assert tag_data(tmp_path, vocabulary, tag=2).class_names == ["B-NP", "B-PP", "B-VP", "I-NP", "b", "c"]
  cut = tag_data(tmp_path, vocabulary, length=5)
  assert cut.examples().truncated == 1 and (cut.examples().token_labels["label"] >= 0).sum() == 3 + 1 + 1


def test_a_set_of_tfds_has_the_same_tags(tmp_path, vocabulary):
  names = ["O", "B-PER", "I-PER"]
  features = dict(
    tokens=tfds.features.Sequence(tfds.features.Text()),
    ner=tfds.features.Sequence(tfds.features.ClassLabel(names=names)),
  )
  rows = [dict(tokens=["Ann", "is", "a"], ner=[1, 0, 0])] * 2
  make_set(tmp_path, "conll2003/conll2003", features, dict(train=rows, dev=rows))
  options = dict(dataset="conll2003/conll2003", data_dir=str(tmp_path), token="tokens", tag="ner", eval_split="dev")
  made = tag_data(None, vocabulary, **options)
  assert made.class_names == names and made.sentences("dev")[0].tags == ["B-PER", "O", "O"]
  assert made.examples("dev").token_labels["label"].tolist() == [-1, 1, 0, 0, -1] * 2
  with pytest.raises(ValueError, match=r"no feature '0'.*Set data.token and data.tag"):
    tag_data(None, vocabulary, dataset="conll2003/conll2003", data_dir=str(tmp_path)).examples()


@pytest.mark.parametrize(
  ("content", "options", "message"),
  [
    ("a O\nb\n", {}, r"train.txt, line 2, has 1 columns; wanted a word in column 0 and a tag in column -1"),
    ("a x O\nb O\n", dict(tag=2), r"line 2, has 2 columns"),
    ("a\tO\nb\t\n", {}, r"line 2, has 2 columns"),
    ("a O\nb I-X\n", dict(tags=("O", "I-Y")), r"line 2: tag 'I-X' is none of data.tags; did you mean 'I-Y'"),
    ("\n\n", {}, "has no example"),
    ("a O\n", dict(token="tokens"), "of files wanted numbers of columns"),
  ],
)
def test_a_conll_line_without_its_columns_is_an_error(tmp_path, vocabulary, content, options, message):
  (tmp_path / "train.txt").write_text(content)
  with pytest.raises(ValueError, match=message):
    tag_data(tmp_path, vocabulary, **options).examples()


# Questions.


def test_windows_leave_no_gap_and_no_window_is_without_need():
  for length in range(60):
    for room in range(2, 12):
      for stride in range(1, room + 1):
        found = question_answering.windows(length, room, stride)
        covered = set().union(*(range(first, first + count) for first, count in found))
        assert covered == set(range(length))
        assert all(count == room for _, count in found[:-1]) and found[-1][1] <= room
        assert len(found) == 1 + max(0, math.ceil((length - room) / stride))
        best = question_answering.best_context(found, length)
        for place in range(length):  # as the released code words it
          context = [min(place - f, f + n - 1 - place) + 0.01 * n if f <= place < f + n else -9 for f, n in found]
          assert best[place] == int(np.argmax(context))


SQUAD = [
  ("q1", "is", "Paris is good. Ann is in Paris!", [("Ann", 15), ("Paris", 25)]),
  ("q2", "yes", "Paris is good. Ann is in Paris!", []),
  ("q3", "no", "a b c d e f g h i bab l", [("bab", 18)]),
]


def write_squad(path, rows=SQUAD):
  entries = [
    dict(context=context, qas=[dict(id=i, question=q, answers=[dict(text=t, answer_start=s) for t, s in answers])])
    for i, q, context, answers in rows
  ]
  path.write_text(json.dumps(dict(version="2.0", data=[dict(title="x", paragraphs=entries)])))


def question_data(folder, vocabulary, **kwargs):
  options = dict(dataset=str(folder), vocab_file=vocabulary, length=12, doc_stride=4, max_query_length=2)
  return data.make("question_answering", **options | dict(train_split="dev", eval_split="dev") | kwargs)


def test_answers_are_found_in_windows_and_come_back_as_they_are_written(tmp_path, vocabulary):
  write_squad(tmp_path / "dev.json")
  made = question_data(tmp_path, vocabulary)
  (batch,) = made.eval_batches(8)
  rows = [shown(batch, i) for i in range(int(batch["valid"].sum()))]
  # "." and "!" are unknown; 8 places a window, and each begins 4 after the one before.
  assert rows[0] == "[CLS] is [SEP] paris is good [UNK] ann is in paris [SEP]"
  assert rows[1] == "[CLS] is [SEP] ann is in paris [UNK] [SEP]"
  assert rows[4] == "[CLS] no [SEP] a b c d e f g h [SEP]" and rows[5] == "[CLS] no [SEP] e f g h i b ##a ##b [SEP]"
  assert batch["start_positions"][:7].tolist() == [7, 3, 0, 0, 0, 8, 4] and batch["end_positions"][:7].tolist() == [
    7,
    3,
    0,
    0,
    0,
    10,
    6,
  ]
  placed, offsets = made.windows()
  for i, window in enumerate(placed):
    context = SQUAD[window.question][2]
    start, end = (batch[side][i] - window.position + window.first for side in ("start_positions", "end_positions"))
    if batch["start_positions"][i]:
      text = context[offsets[window.question][start][0] : offsets[window.question][end][1]]
      assert text == SQUAD[window.question][3][0][0]
  expected_shapes = data.kind("question_answering").shapes(
    dict(dataset="x", length=12, doc_stride=4, max_query_length=2), None, 8
  )
  assert {key: jax.ShapeDtypeStruct(a.shape, a.dtype) for key, a in batch.items()} == expected_shapes


def test_tfds_and_files_have_the_same_questions(tmp_path, vocabulary):
  write_squad(tmp_path / "dev.json")
  answers = tfds.features.Sequence({"text": tfds.features.Text(), "answer_start": np.int32})
  text = tfds.features.Text()
  features = dict(id=np.str_, title=text, context=text, question=text, answers=answers, is_impossible=np.bool_)
  rows = [
    dict(
      id=i,
      title="x",
      context=c,
      question=q,
      is_impossible=not found,
      answers=dict(text=[t for t, _ in found], answer_start=[s for _, s in found]),
    )
    for i, q, c, found in SQUAD
  ]
  make_set(tmp_path / "tfds", "squad/v2.0", features, dict(train=rows, validation=rows))
  made = data.make("question_answering", dataset="squad/v2.0", data_dir=str(tmp_path / "tfds"), vocab_file=vocabulary)
  assert made.questions() == question_data(tmp_path, vocabulary).questions() != []
  assert (made.length, made.doc_stride, made.max_query_length) == (384, 128, 64)


def test_an_answer_that_is_not_where_it_should_be_is_looked_for_nearby(tmp_path, vocabulary):
  assert question_answering.find_answer("ab ab", "ab", 1) == (0, 2) and question_answering.find_answer(
    "ab ab", "ab", 2
  ) == (3, 5)
  assert question_answering.find_answer("ab", "x", 0) is None and question_answering.find_answer("ab", "ab", 7) is None
  write_squad(tmp_path / "dev.json", [*SQUAD, ("q4", "a", "b c d", [("x", 0)])])
  made = question_data(tmp_path, vocabulary)
  assert made.num_train == 7 and "1 answers" in made.about(2, 0)
  assert len(made.windows()[0]) == made.num_eval() == 8  # of an evaluation none is left out


@pytest.mark.parametrize(
  ("content", "options", "message"),
  [
    ("[", {}, r"dev.json: no questions in SQuAD's format"),
    ('{"data": [{"paragraphs": [{"qas": []}]}]}', {}, r"dev.json, article 0, paragraph 0: .*'context' is missing"),
    (
      '{"data": [{"paragraphs": [{"context": "", "qas": [{"id": "q", "answers": []}]}]}]}',
      {},
      r"question 'q': .*'question' is missing",
    ),
    ("{}", dict(doc_stride=8), r"data.doc_stride is 8; wanted 1 to 7, so that windows of 12"),
  ],
)
def test_what_is_no_squad_file_is_an_error(tmp_path, vocabulary, content, options, message):
  (tmp_path / "dev.json").write_text(content)
  with pytest.raises(ValueError, match=message):
    question_data(tmp_path, vocabulary, **options).examples()


def logits_of(places, length=12):
  logits = np.zeros((length, 2))
  for place, side, value in places:
    logits[place, side] = value
  return logits


def test_the_best_answer_is_taken_of_all_windows(tmp_path, vocabulary):
  write_squad(tmp_path / "dev.json")
  made = question_data(tmp_path, vocabulary)
  placed, offsets = made.windows()
  own, context = [w for w in placed if w.question == 0], SQUAD[0][2]
  choose = lambda logits, **options: question_answering.choose(logits, own, offsets[0], context, **options)  # noqa: E731
  # "Ann" begins the second window, where all before it is missing: the first shows it better, and it counts there.
  assert choose([logits_of([]), logits_of([(3, 0, 5), (3, 1, 5)])]).score < 10
  assert choose([logits_of([(7, 0, 5), (7, 1, 5)]), logits_of([])])[:2] == ("Ann", 10)
  assert choose([logits_of([(3, 0, 2), (5, 1, 2)]), logits_of([])]) == ("Paris is good", 4.0, -4.0)
  # The end lies before the beginning, or too far behind it.
  assert choose([logits_of([(5, 0, 3), (4, 1, 3)]), logits_of([])]).score == 3
  assert choose([logits_of([(3, 0, 3), (5, 1, 3)]), logits_of([])], max_answer_length=2).score == 3
  # [CLS] says in one window that the answer is not there, in the other that it is.
  said = choose([logits_of([(0, 0, 3), (0, 1, 3), (3, 0, 2), (3, 1, 2)]), logits_of([(0, 0, 1), (0, 1, 1)])])
  assert said == ("Paris", 4.0, -2.0)
  # Neither question nor [SEP] is an answer.
  assert choose([logits_of([(1, 0, 9), (1, 1, 9), (11, 0, 9), (11, 1, 9)]), logits_of([])]).score == 0
