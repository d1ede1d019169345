"""Segmentation: softmax cross-entropy at every pixel that have a class."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from train import rng
from train.data.semantic_segmentation import IGNORE_INDEX
from train.images import normalise
from train.objectives import Loss, apply, check_fields


@dataclass(frozen=True)
class Objective:
  """Cross-entropy of the predicted and the given classes of pixels.

  Attributes:
    mean, std: of the pixels, 0 to 1, per channel; one value for all channels, or one each.
  """

  mean: tuple[float, ...] = (0.5,)
  std: tuple[float, ...] = (0.5,)

  def __post_init__(self) -> None:
    check_fields(self, {}, ())

  def __call__(self, model: nn.Module, variables: dict, batch: dict, key: jax.Array | None = None) -> Loss:
    """Sums over the labelled pixels; `key=None` evaluates: no dropout."""
    rngs = None if key is None else rng.streams(rng.per_batch(key, batch["id"]), "dropout")
    logits_BYXV, rest = pixel_logits(model, variables, batch["image"], self.mean, self.std, rngs)
    labelled_BYX = labelled_pixels(batch)
    class_BYX = jnp.where(labelled_BYX, batch["mask"], 0).astype(jnp.int32)
    loss_BYX = optax.softmax_cross_entropy_with_integer_labels(logits_BYXV, class_BYX)
    hit_BYX = logits_BYXV.argmax(-1) == class_BYX
    total, hits, weight = (jnp.where(labelled_BYX, x, 0.0).sum() for x in (loss_BYX, hit_BYX, jnp.ones_like(loss_BYX)))
    return Loss(total, weight, {"accuracy": hits}, rest)


def pixel_logits(
  model: nn.Module,
  variables: dict,
  image_BYXC: jax.Array,
  mean: tuple[float, ...],
  std: tuple[float, ...],
  rngs: dict | None = None,
) -> tuple[jax.Array, dict]:
  """The logits of pixels [B, Y, X, V] for images as bytes, and the collections (`train.objectives.apply`)."""
  (logits_BYXV, _), rest = apply(model, variables, normalise(image_BYXC, mean, std), rngs=rngs)
  return logits_BYXV, rest


def labelled_pixels(batch: dict) -> jax.Array:
  """The pixels of examples [B, Y, X] that have a class."""
  return (batch["mask"] != IGNORE_INDEX) & batch["valid"][:, None, None]
