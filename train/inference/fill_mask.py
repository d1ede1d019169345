"""Predicts masked tokens of texts with a pretrained model."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from train.data.text.vocabulary import Vocabulary

HEADS = ("pretraining", "masked_lm")  # of a model that predicts masked tokens


class Prediction(NamedTuple):
  """A token for one [MASK] and its probability; `text` is the text with it, and with the best tokens elsewhere."""

  token: str
  probability: float
  text: str


def fill_mask(
  model: nn.Module, variables: dict, vocabulary: Vocabulary, texts: Sequence[str], top_k: int = 5
) -> list[list[list[Prediction]]]:
  """The most probable tokens for every [MASK] of every text, each predicted with the others masked.

  Args:
    model: of the family `bert`, with a head that predicts masked tokens.
    variables: its variables.
    vocabulary: the one that it was pretrained with.
    texts: each with "[MASK]" in it, once or more.
    top_k: number of tokens for each, the most probable first.

  Returns:
    for each text, for each of its masks, `top_k` predictions.

  Raises:
    ValueError: a model without such a head; a text without [MASK], or longer than the model takes.
  """
  c = model.config
  if getattr(c, "head", "") not in HEADS:
    raise ValueError(f"only a model with head {' or '.join(map(repr, HEADS))} predicts masked tokens")
  if not 1 <= top_k <= c.vocab_size:
    raise ValueError(f"top_k is {top_k}; wanted 1 to the model's vocab_size, {c.vocab_size}")
  rows = encode(vocabulary, texts, c.max_length)
  input_ids = np.full((len(rows), max(map(len, rows))), c.pad_token_id, np.int32)
  for i, row in enumerate(rows):
    input_ids[i, : len(row)] = row
  positions = [[i for i, token in enumerate(row) if token == vocabulary.mask] for row in rows]
  most = max(map(len, positions))
  masked_positions = np.array([[*own, *[0] * (most - len(own))] for own in positions], np.int32)

  @jax.jit
  def predict(variables, input_ids, masked_positions):
    logits, _ = model.apply(variables, input_ids, masked_positions_BI=masked_positions)
    # An embedding table may have more rows than the vocabulary has tokens.
    logits = jnp.where(jnp.arange(c.vocab_size) < vocabulary.size, logits, -jnp.inf)
    return jax.lax.top_k(jax.nn.softmax(logits), top_k)

  probabilities, tokens = jax.device_get(predict(variables, input_ids, masked_positions))
  return [
    _predictions(vocabulary, row, own, tokens[i, : len(own)].tolist(), probabilities[i, : len(own)].tolist())
    for i, (row, own) in enumerate(zip(rows, positions, strict=True))
  ]


def encode(vocabulary: Vocabulary, texts: Sequence[str], max_length: int) -> list[list[int]]:
  """Texts to rows "[CLS] text [SEP]"; raises ValueError for one without [MASK] or longer than `max_length` tokens."""
  rows = [[vocabulary.cls, *ids, vocabulary.sep] for ids in vocabulary.encode(texts, special=True)]
  for text, row in zip(texts, rows, strict=True):
    if vocabulary.mask not in row:
      raise ValueError(f"there is no {vocabulary.tokenizer.id_to_token(vocabulary.mask)} in {text!r}")
    if len(row) > max_length:
      raise ValueError(f"a text of {len(row)} tokens, [CLS] and [SEP] included; the model takes {max_length}: {text}")
  return rows


def _predictions(
  vocabulary: Vocabulary,
  row: list[int],
  positions: list[int],
  tokens: list[list[int]],
  probabilities: list[list[float]],
) -> list[list[Prediction]]:
  """The predictions for the masks of one row; `tokens` and `probabilities` are [masks, top_k], best first."""
  filled = [*row]
  for position, best in zip(positions, tokens, strict=True):
    filled[position] = best[0]
  result = []
  for position, candidates, of_candidates in zip(positions, tokens, probabilities, strict=True):
    result.append([])
    for token, probability in zip(candidates, of_candidates, strict=True):
      text = vocabulary.decode([*filled[1:position], token, *filled[position + 1 : -1]])
      result[-1].append(Prediction(vocabulary.decode([token], special=True), probability, text))
  return result
