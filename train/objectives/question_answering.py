"""Extractive question answering: the start and the end of the answer in a text."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from train.objectives import Loss
from train.objectives.sequence_classification import read


@dataclass(frozen=True)
class Objective:
  """The mean of the cross-entropies of start and end, each a softmax over a row's tokens (Devlin et al. 2019, 4.2).

  For a row without an answer, start and end are the first token, [CLS] (4.3).
  """

  def __call__(self, model: nn.Module, variables: dict, batch: dict, key: jax.Array | None = None) -> Loss:
    """Sums over the valid rows; `key=None` evaluates: no dropout."""
    logits_BT2, rest = span_logits(model, variables, batch, key)
    weight_B = batch["valid"].astype(jnp.float32)
    position_B2 = jnp.stack([batch["start_positions"], batch["end_positions"]], 1)
    loss_B2 = optax.softmax_cross_entropy_with_integer_labels(logits_BT2, position_B2, axis=1)
    exact_B = (logits_BT2.argmax(1) == position_B2).all(1)
    return Loss((weight_B * loss_B2.mean(1)).sum(), weight_B.sum(), {"exact": (weight_B * exact_B).sum()}, rest)


def span_logits(model: nn.Module, variables: dict, batch: dict, key: jax.Array | None = None) -> tuple[jax.Array, dict]:
  """Logits of start and end [B, T, 2], and the collections other than parameters; padding can be neither.

  The released code allows padding as an answer, so that a row's loss depends on its padding.
  """
  (logits_BT2, _), rest = read(model, variables, batch, key)
  return jnp.where((batch["segment_ids"] > 0)[..., None], logits_BT2, -1e9), rest
