"""Where the heads of an encoder look over a text."""

import functools
import re

import jax
import numpy as np

from train.data.text.vocabulary import Vocabulary
from zoo.layers.sequence_info import SequenceInfo


@functools.partial(jax.jit, static_argnames="model")
def _look(model, variables, token_BT, type_BT, row):
  _, aux = model.apply(variables, token_BT, type_BT, row)
  return {name: weights for name, weights in aux.items() if re.fullmatch(r"block_\d+/weights", name)}


def attention_of_tokens(model, variables: dict, token_T, type_T) -> np.ndarray:
  """The attention weights [L, N, T, T] of one sequence of tokens, first block first; each row sums to 1.

  Args:
    model: of the family `bert`. variables: its variables.
    token_T: "[CLS] A [SEP]" or "[CLS] A [SEP] B [SEP]".
    type_T: 0 in A, 1 in B.
  """
  token_1T, type_1T = np.asarray(token_T, np.int32)[None], np.asarray(type_T, np.int32)[None]
  row = SequenceInfo(np.ones_like(token_1T), np.arange(token_1T.shape[1], dtype=np.int32)[None])
  found = _look(model, variables, token_1T, type_1T, row)
  return np.stack([np.asarray(found[name][0]) for name in sorted(found)])


def attention(
  model, variables: dict, vocabulary: Vocabulary, text: str, second: str = ""
) -> tuple[np.ndarray, list[str]]:
  """Where each token of a text, or of a pair of texts, looks.

  Args:
    model: of the family `bert`. variables: its variables.
    vocabulary: the one that it has learned.
    text: where it says "[MASK]", that token is meant. second: the text behind it, if there is one.

  Returns:
    weights [L, N, T, T], from each token to each, and the T tokens.

  Raises:
    ValueError: the text is longer than the model takes.
  """
  one, two = vocabulary.encode([text, second], special=True)
  first = [vocabulary.cls, *one, vocabulary.sep]
  behind = [*two, vocabulary.sep] if second else []
  weights = attention_of_tokens(model, variables, first + behind, [0] * len(first) + [1] * len(behind))
  return weights, names(vocabulary, first + behind)


def names(vocabulary: Vocabulary, tokens) -> list[str]:
  """What tokens are called in a picture: one that is only space is a mark of one."""
  every = [vocabulary.decode([token], special=True) for token in tokens]
  return [name if name.strip() else "\N{OPEN BOX}" for name in every]
