"""The kinds of data by name."""

import importlib

from zoo.errors import check_call, nearest

# Where each kind of data is. Those that build on this module cannot be imported before it.
KINDS = {
  "corpus": "train.data.text.masked_lm.Corpus",
  "images": "train.data.image_classification.Images",
  "masks": "train.data.semantic_segmentation.Masks",
  "pairs": "train.data.text.translation.Pairs",
  "points": "train.data.regression.Points",
  "questions": "train.data.text.question_answering.Questions",
  "sentences": "train.data.text.sequence_classification.Sentences",
  "sequences": "train.data.text.algorithmic.Sequences",
  "tags": "train.data.text.token_classification.Tags",
  "text": "train.data.text.masked_lm.Text",
}


def kind(name: str) -> type:
  """The class of a kind of data, one of `KINDS`.

  Raises:
    ValueError: an unknown kind; the nearest is named.
  """
  if name not in KINDS:
    raise ValueError(f"unknown data {name!r}{nearest(str(name), KINDS)}")
  module, _, attribute = KINDS[name].rpartition(".")
  return getattr(importlib.import_module(module), attribute)


def make(name: str, **kwargs):
  """`make(**config.data)`: the data by the name of its kind and the arguments of that.

  Raises:
    ValueError: an unknown kind or argument (the nearest is named), or a missing one.
  """
  check_call(kind(name), kwargs, f"config.data ({name})")
  return kind(name)(**kwargs)
