"""Token classification: cross-entropy of the tag of each word, at its first piece."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from train.objectives import Loss
from train.objectives.sequence_classification import read


@dataclass(frozen=True)
class Objective:
  """Cross-entropy over the tokens that have a tag, each by itself (Devlin et al. 2019, 5.3)."""

  def __call__(self, model: nn.Module, variables: dict, batch: dict, key: jax.Array | None = None) -> Loss:
    """Sums over the tokens whose "label" is not -1; `key=None` evaluates: no dropout."""
    (logits_BTV, _), rest = read(model, variables, batch, key)
    label_BT = batch["label"]
    weight_BT = ((label_BT >= 0) & batch["valid"][:, None]).astype(jnp.float32)
    loss_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, jnp.maximum(label_BT, 0))
    metrics = {"accuracy": (weight_BT * (logits_BTV.argmax(-1) == label_BT)).sum()}
    return Loss((weight_BT * loss_BT).sum(), weight_BT.sum(), metrics, rest)
