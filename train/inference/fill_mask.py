"""Words in the place of [MASK], by a model pretrained to tell them."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from train.data.text.vocabulary import Vocabulary


class Guess(NamedTuple):
  """A token for one [MASK] and its probability; `text` is the sentence with it, and the best for the others."""

  token: str
  probability: float
  text: str


def fill_mask(
  model, variables: dict, vocabulary: Vocabulary, texts: Sequence[str], top_k: int = 5
) -> list[list[list[Guess]]]:
  """The most probable tokens for every [MASK] of every text, each as if the others stayed hidden.

  Args:
    model: with a head "pretraining" or "masked_lm".
    variables: its variables.
    vocabulary: the one that it has learned.
    texts: each with "[MASK]" in it, once or more.
    top_k: how many, the best first.

  Raises:
    ValueError: a model without the head; a text without [MASK], or longer than the model takes.
  """
  c = model.config
  if getattr(c, "head", "") not in ("pretraining", "masked_lm"):
    raise ValueError("only a model with head 'pretraining' or 'masked_lm' fills in masked tokens")
  if not 1 <= top_k <= c.vocab_size:
    raise ValueError(f"top_k is {top_k}; wanted 1 to the model's vocab_size, {c.vocab_size}")
  rows = [[vocabulary.cls, *ids, vocabulary.sep] for ids in vocabulary.encode(texts, special=True)]
  name = vocabulary.tokenizer.id_to_token(vocabulary.mask)
  for text, row in zip(texts, rows, strict=True):
    if vocabulary.mask not in row:
      raise ValueError(f"there is no {name} in {text!r}")
    if len(row) > c.max_length:
      raise ValueError(f"a text of {len(row)} tokens, [CLS] and [SEP] included; the model takes {c.max_length}: {text}")
  length = max(map(len, rows))
  token_BT = np.full((len(rows), length), c.pad_token_id, np.int32)
  for i, row in enumerate(rows):
    token_BT[i, : len(row)] = row
  places = [[place for place, token in enumerate(row) if token == vocabulary.mask] for row in rows]
  masked_BP = np.array([[*some, *[0] * (max(map(len, places)) - len(some))] for some in places], np.int32)

  @jax.jit
  def best(variables, token_BT, masked_BP):
    logits_BPV, _ = model.apply(variables, token_BT, masked_positions_BP=masked_BP)
    # Of a table with more rows than tokens, only those that stand for something.
    logits_BPV = jnp.where(jnp.arange(c.vocab_size) < vocabulary.size, logits_BPV, -jnp.inf)
    return jax.lax.top_k(jax.nn.softmax(logits_BPV), top_k)

  share_BPK, word_BPK = jax.device_get(best(variables, token_BT, masked_BP))
  found = []
  for row, some, words_PK, shares_PK in zip(rows, places, word_BPK, share_BPK, strict=True):
    guesses = []
    for which, place in enumerate(some):
      guesses.append([])
      for word, share in zip(words_PK[which].tolist(), shares_PK[which].tolist(), strict=True):
        whole = [*row[1:-1]]
        for other, choice in zip(some, words_PK[:, 0].tolist(), strict=False):
          whole[other - 1] = word if other == place else choice
        guesses[-1].append(Guess(vocabulary.decode([word], special=True), share, vocabulary.decode(whole)))
    found.append(guesses)
  return found
