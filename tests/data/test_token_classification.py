"""Tags of words, from CoNLL files and from TFDS, are on the first pieces of their words."""

import jax
import pytest
import tensorflow_datasets as tfds
from labelled_texts import make_set, shown
from support import raises

from train import data

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


def test_tags_of_conll_files_are_on_first_pieces(tmp_path, vocabulary):
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
  truncated = tag_data(tmp_path, vocabulary, length=5)
  assert truncated.examples().truncated == 1 and (truncated.examples().token_labels["label"] >= 0).sum() == 3 + 1 + 1


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
  with raises(ValueError, "'0'", "data.token", "data.tag"):
    tag_data(None, vocabulary, dataset="conll2003/conll2003", data_dir=str(tmp_path)).examples()


@pytest.mark.parametrize(
  ("content", "options", "named"),
  [
    ("a O\nb\n", {}, ("train.txt, line 2", "1 columns", "column 0", "column -1")),
    ("a x O\nb O\n", dict(tag=2), ("train.txt, line 2", "2 columns", "column 2")),
    ("a\tO\nb\t\n", {}, ("train.txt, line 2", "2 columns")),
    ("a O\nb I-X\n", dict(tags=("O", "I-Y")), ("train.txt, line 2", "'I-X'", "data.tags", "'I-Y'")),
    ("\n\n", {}, ("'train'",)),
    ("a O\n", dict(token="tokens"), ("data.token", "'tokens'")),
  ],
)
def test_a_conll_line_without_its_columns_is_an_error(tmp_path, vocabulary, content, options, named):
  (tmp_path / "train.txt").write_text(content)
  with raises(ValueError, *named):
    tag_data(tmp_path, vocabulary, **options).examples()
