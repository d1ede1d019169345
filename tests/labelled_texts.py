"""A small vocabulary, and labelled texts and questions as files and as sets of TFDS."""

import json

import tensorflow_datasets as tfds

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*"abcdefghijklm", "##a", "##b", "good", "bad", "yes", "no", "ann", "bob", "paris", "is", "in"]  # 29 in all


def write_vocabulary(folder):
  """vocab.txt with the tokens above; returns its path."""
  (folder / "vocab.txt").write_text("\n".join(SPECIAL + WORDS) + "\n")
  return str(folder / "vocab.txt")


def shown(batch, i, choice=None):
  """The tokens of a row as text; checks segments and positions."""
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
  """A table of tab-separated columns."""
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
  """The set NAME or NAME/CONFIG of TFDS in a folder, with the examples of each split."""
  base, _, config = name.partition("/")
  Maker(base, tfds.features.FeaturesDict(features), splits, config or None, data_dir=folder).download_and_prepare()


# (id, question, context, [(answer, its start)])
SQUAD = [
  ("q1", "is", "Paris is good. Ann is in Paris!", [("Ann", 15), ("Paris", 25)]),
  ("q2", "yes", "Paris is good. Ann is in Paris!", []),
  ("q3", "no", "a b c d e f g h i bab l", [("bab", 18)]),
]


def write_squad(path, rows=SQUAD):
  """The questions as a file in the format of SQuAD."""
  entries = [
    dict(context=context, qas=[dict(id=i, question=q, answers=[dict(text=t, answer_start=s) for t, s in answers])])
    for i, q, context, answers in rows
  ]
  path.write_text(json.dumps(dict(version="2.0", data=[dict(title="x", paragraphs=entries)])))
