"""Non-autoregressive translation: cross-entropy of all target tokens at once, and of the target's length."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from train import rng
from train.objectives import Loss, apply, check_fields
from train.objectives.seq2seq import cross_entropy, rows, token_weights
from zoo.models.nat import length_class


@dataclass(frozen=True)
class Objective:
  """Minus the logarithm of a target's probability, p(T | x) p(y_1 | x, T) ... p(y_T | x, T) (Gu et al. 2018, eq. 3).

  The model is given the true length. One with length_prediction="none" (`zoo.models.nat`) learns to predict
  `eos_token_id` at every position after the target's end, so that a sentence whose first end is missed ends at the next
  position.

  Attributes:
    label_smoothing: share of the target distributed uniformly over all tokens (Vaswani et al. 2017, 5.4).
    length_weight: of the length's cross-entropy; 1 for the likelihood.
  """

  label_smoothing: float = 0.0
  length_weight: float = 1.0
  one_pair_per_row = True  # so the data must not be packed

  def __post_init__(self) -> None:
    check_fields(self, {0: ("length_weight",)}, ("label_smoothing",))

  def __call__(self, model: nn.Module, variables: dict, batch: dict, key: jax.Array | None = None) -> Loss:
    """Sums over the target tokens; `key=None` evaluates: no smoothing or dropout.

    The metric length_accuracy is the share of target tokens whose sentence's length is predicted right.

    Raises:
      ValueError: a model that reads the target, and so would copy it.
    """
    if not hasattr(model, "decode_lengths"):
      raise ValueError("objective 'nat' is for non-autoregressive models, such as nat/base")
    source, target = rows(batch)
    weight_BT = token_weights(batch)
    rngs = None if key is None else rng.streams(rng.per_batch(key, batch["id"]), "dropout")
    (logits_BTV, aux), rest = apply(
      model, variables, batch["source_ids"], batch["target_ids"], source, target, rngs=rngs
    )
    # Without a predicted length the model has more positions than the row: beyond the target's end it predicts `eos`.
    beyond = ((0, 0), (0, logits_BTV.shape[1] - weight_BT.shape[1]))
    target_BT, weight_BT = jnp.pad(batch["target_ids"], beyond), jnp.pad(weight_BT, beyond)
    target_mask_BT = batch["target_segment_ids"] > 0
    end_BT = ~jnp.pad(target_mask_BT, beyond)
    target_BT = jnp.where(end_BT, model.config.eos_token_id, target_BT)
    smoothing = self.label_smoothing if key is not None else 0.0
    nll_BT, loss_BT, hit_BT = cross_entropy(logits_BTV, target_BT, smoothing, model.config.vocab_size)
    length_B = target_mask_BT.sum(1)
    if model.config.length_prediction == "none":
      total = (batch["valid"][:, None] * loss_BT).sum()
      right_B = (logits_BTV.argmax(-1) == model.config.eos_token_id).argmax(1) + 1 == length_B
    else:
      class_B = length_class((batch["source_segment_ids"] > 0).sum(1), length_B, model.config.max_length_difference)
      length_nll_B = optax.softmax_cross_entropy_with_integer_labels(aux["length"], class_B)
      total = (weight_BT * loss_BT).sum() + self.length_weight * (batch["valid"] * length_nll_B).sum()
      right_B = aux["length"].argmax(1) == class_B
    metrics = {
      "accuracy": (weight_BT * hit_BT).sum(),
      "nll": (weight_BT * nll_BT).sum(),
      "length_accuracy": (weight_BT * right_B[:, None]).sum(),
    }
    return Loss(total, weight_BT.sum(), metrics, rest)
