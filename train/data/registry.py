"""The kinds of data by name."""

import importlib
from typing import TYPE_CHECKING, Any

from zoo.errors import check_call, nearest

if TYPE_CHECKING:  # importing this package must not import Grain
  from train.data.base import Dataset

# Where each kind of data is. Those that build on this module cannot be imported before it.
KINDS = {
  "algorithmic": "train.data.text.algorithmic.Algorithmic",
  "image_classification": "train.data.image_classification.ImageClassification",
  "masked_lm": "train.data.text.masked_lm.MaskedLM",
  "masked_lm_corpus": "train.data.text.masked_lm.MaskedLMCorpus",
  "question_answering": "train.data.text.question_answering.QuestionAnswering",
  "regression": "train.data.regression.Regression",
  "semantic_segmentation": "train.data.semantic_segmentation.SemanticSegmentation",
  "sequence_classification": "train.data.text.sequence_classification.SequenceClassification",
  "token_classification": "train.data.text.token_classification.TokenClassification",
  "translation": "train.data.text.translation.Translation",
}


def kind(name: str) -> "type[Dataset]":
  """The class of a kind of data, one of `KINDS`.

  Raises:
    ValueError: an unknown kind; the nearest is named.
  """
  if name not in KINDS:
    raise ValueError(f"unknown data {name!r}{nearest(str(name), KINDS)}")
  module, _, attribute = KINDS[name].rpartition(".")
  return getattr(importlib.import_module(module), attribute)


def make(name: str, **kwargs: Any) -> "Dataset":
  """`make(**config.data)`: the data by the name of its kind and the arguments of that.

  Raises:
    ValueError: an unknown kind or argument (the nearest is named), or a missing one.
  """
  check_call(kind(name), kwargs, f"config.data ({name})")
  return kind(name)(**kwargs)
