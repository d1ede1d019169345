"""Sequence classification and regression: a class, a number, or one of several choices for one text or two."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from train import rng
from train.objectives import Loss, apply, check_fields
from zoo.layers.sequence_info import SequenceInfo


@dataclass(frozen=True)
class Objective:
  """The loss for the kind of label that the data has (Devlin et al. 2019, 4.1 and 4.4).

  A class: cross-entropy of the softmax over the model's classes. A number: its squared error; the model has one class.
  One of several choices, each of which the model gives a number: cross-entropy of the softmax over the choices.

  Attributes:
    label_smoothing: share of the target distributed uniformly over all classes or choices (Szegedy et al. 2016, 7).
  """

  label_smoothing: float = 0.0

  def __post_init__(self) -> None:
    check_fields(self, {}, ("label_smoothing",))

  def __call__(self, model: nn.Module, variables: dict, batch: dict, key: jax.Array | None = None) -> Loss:
    """Sums over the valid examples with a label; `key=None` evaluates: no smoothing or dropout."""
    output, rest = scores_of_labels(model, variables, batch, key)
    label_B = batch["label"]
    if jnp.issubdtype(label_B.dtype, jnp.floating):
      weight_B = (batch["valid"] & jnp.isfinite(label_B)).astype(jnp.float32)
      error_B = jnp.where(weight_B > 0, output - label_B, 0)
      loss_B, metrics = jnp.square(error_B), {"absolute_error": jnp.abs(error_B)}
    else:
      weight_B = (batch["valid"] & (label_B >= 0)).astype(jnp.float32)
      target_BV = jax.nn.one_hot(label_B, output.shape[1])
      if key is not None and self.label_smoothing:
        target_BV = optax.smooth_labels(target_BV, self.label_smoothing)
      loss_B, metrics = optax.softmax_cross_entropy(output, target_BV), {"accuracy": output.argmax(1) == label_B}
    sums = {name: (weight_B * value_B).sum() for name, value_B in metrics.items()}
    return Loss((weight_B * loss_B).sum(), weight_B.sum(), sums, rest)


def scores_of_labels(
  model: nn.Module, variables: dict, batch: dict, key: jax.Array | None = None
) -> tuple[jax.Array, dict]:
  """The predictions of labels, and the collections other than parameters.

  [B, V] for classes, [B] for numbers, [B, C] for choices, each of which is a row of its own for the model.
  """
  (output, _), rest = read(model, variables, batch, key)
  if batch["input_ids"].ndim == 3:
    return output.reshape(batch["input_ids"].shape[:2]), rest
  return (output[:, 0] if jnp.issubdtype(batch["label"].dtype, jnp.floating) else output), rest


def read(model: nn.Module, variables: dict, batch: dict, key: jax.Array | None = None) -> tuple[tuple, dict]:
  """The model's output for the rows of a batch (`train.data.text.labelled`), with aux; and the other collections.

  Args:
    model, variables: to apply.
    batch: its "input_ids" is [B, T], or [B, C, T], which the model sees as [B * C, T].
    key: for dropout; None for none.
  """
  names = ("input_ids", "token_type_ids", "segment_ids", "position_ids")
  token, kind, segment, position = (batch[name].reshape(-1, batch[name].shape[-1]) for name in names)
  rngs = None if key is None else rng.streams(rng.per_batch(key, batch["id"]), "dropout")
  return apply(model, variables, token, kind, SequenceInfo(segment, position), rngs=rngs)
