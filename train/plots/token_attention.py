"""The attention of an encoder's heads over a text."""

import functools
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from train.data.text.vocabulary import Vocabulary
from zoo.layers.sequence_info import SequenceInfo

Ids = Sequence[int] | np.ndarray


@functools.partial(jax.jit, static_argnames="model")
def _weights(model: nn.Module, variables, input_ids, token_type_ids, row):
  _, aux = model.apply(variables, input_ids, token_type_ids, row)
  return {name: weights for name, weights in aux.items() if re.fullmatch(r"block_\d+/weights", name)}


def attention_of_tokens(model: nn.Module, variables: dict, input_ids: Ids, token_type_ids: Ids) -> np.ndarray:
  """The attention weights [layers, heads, tokens, tokens] of one sequence, first block first; each row sums to 1.

  Args:
    model: of the family `bert`.
    variables: its variables.
    input_ids: "[CLS] A [SEP]" or "[CLS] A [SEP] B [SEP]".
    token_type_ids: 0 in A, 1 in B.
  """
  input_ids, token_type_ids = (np.asarray(ids, np.int32)[None] for ids in (input_ids, token_type_ids))
  row = SequenceInfo(jnp.ones_like(input_ids), jnp.arange(input_ids.shape[1])[None])
  found = _weights(model, variables, input_ids, token_type_ids, row)
  return np.stack([np.asarray(found[name][0]) for name in sorted(found)])


def attention_of_text(
  model: nn.Module, variables: dict, vocabulary: Vocabulary, text: str, second: str = ""
) -> tuple[np.ndarray, list[str]]:
  """The attention weights over a text or a pair of texts.

  Args:
    model: of the family `bert`.
    variables: its variables.
    vocabulary: the one that it was pretrained with.
    text: "[MASK]" in it is that token.
    second: the second text of a pair; "" for none.

  Returns:
    weights [layers, heads, tokens, tokens], from each token to each, and the tokens.

  Raises:
    ValueError: the text is longer than the model takes.
  """
  ids, second_ids = vocabulary.encode([text, second], special=True)
  first = [vocabulary.cls, *ids, vocabulary.sep]
  rest = [*second_ids, vocabulary.sep] if second else []
  weights = attention_of_tokens(model, variables, first + rest, [0] * len(first) + [1] * len(rest))
  return weights, token_names(vocabulary, first + rest)


def token_names(vocabulary: Vocabulary, tokens: Ids) -> list[str]:
  """The tokens as labels of a plot; a token of only spaces is an open box."""
  names = [vocabulary.decode([token], special=True) for token in tokens]
  return [name if name.strip() else "\N{OPEN BOX}" for name in names]
