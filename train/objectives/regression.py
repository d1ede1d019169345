"""Regression: the squared error of a value predicted from values around it."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn

from train import rng
from train.objectives import Loss, apply


@dataclass(frozen=True)
class Objective:
  """Squared error, and the absolute one beside it.

  Where no point is among its own keys, as `train.data.regression` has it in training, the mean is the error of
  leave-one-out cross-validation (Stone 1974), whose minimum is at the best width of a kernel. With them among their
  keys a width of 0 would have no error at all.
  """

  def __call__(self, model: nn.Module, variables: dict, batch: dict, key: jax.Array | None = None) -> Loss:
    """Sums over the valid points; `key=None` evaluates: no dropout."""
    rngs = None if key is None else rng.streams(rng.per_batch(key, batch["id"]), "dropout")
    points = batch["x"][:, None], batch["keys"], batch["values"], batch["attention_mask"][:, None]
    (y_B1, _), rest = apply(model, variables, *points, rngs=rngs)
    error_B = y_B1[:, 0] - batch["y"]
    weight_B = batch["valid"].astype(jnp.float32)
    metrics = {"absolute_error": (weight_B * jnp.abs(error_B)).sum()}
    return Loss((weight_B * jnp.square(error_B)).sum(), weight_B.sum(), metrics, rest)
