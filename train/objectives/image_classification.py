"""Image classification: softmax cross-entropy with label smoothing, mixup and cutmix."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from train import rng
from train.images import normalise
from train.objectives import Loss, apply, check_fields


@dataclass(frozen=True)
class Objective:
  """Cross-entropy of the predicted and the given classes.

  Attributes:
    label_smoothing: share of the target distributed uniformly over all classes (Szegedy et al. 2016, 7).
    mixup: alpha of the Beta distribution of mixed images (Zhang et al. 2018); 0 for none.
    cutmix: the same for pasted boxes (Yun et al. 2019); with both, each batch takes one of them at random.
    mean, std: of the pixels, 0 to 1, per channel; one value for all channels, or one each.
  """

  label_smoothing: float = 0.0
  mixup: float = 0.0
  cutmix: float = 0.0
  mean: tuple[float, ...] = (0.5,)
  std: tuple[float, ...] = (0.5,)

  def __post_init__(self) -> None:
    check_fields(self, {0: ("mixup", "cutmix")}, ("label_smoothing",))

  def __call__(self, model: nn.Module, variables: dict, batch: dict, key: jax.Array | None = None) -> Loss:
    """Sums over the valid examples; `key=None` evaluates: no smoothing, mixing or dropout."""
    image_BYXC = normalise(batch["image"], self.mean, self.std)
    target_BV = jax.nn.one_hot(batch["label"], model.config.num_classes)
    weight_B = batch["valid"].astype(jnp.float32)
    rngs = None
    if key is not None:
      keys = rng.streams(rng.per_batch(key, batch["id"]), "dropout", "mix")
      if self.label_smoothing:
        target_BV = optax.smooth_labels(target_BV, self.label_smoothing)
      if self.mixup or self.cutmix:
        image_BYXC, target_BV, weight_B = mix(keys["mix"], image_BYXC, target_BV, weight_B, self.mixup, self.cutmix)
      rngs = {"dropout": keys["dropout"]}
    (logits_BV, _), rest = apply(model, variables, image_BYXC, rngs=rngs)
    loss_B = optax.softmax_cross_entropy(logits_BV, target_BV)
    hits = jax.lax.top_k(logits_BV, min(5, logits_BV.shape[1]))[1] == batch["label"][:, None]
    metrics = {"accuracy": (weight_B * hits[:, 0]).sum(), "top5": (weight_B * hits.any(1)).sum()}
    return Loss((weight_B * loss_B).sum(), weight_B.sum(), metrics, rest)


def mix(
  key: jax.Array, image_BYXC: jax.Array, target_BV: jax.Array, weight_B: jax.Array, mixup: float, cutmix: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Mixes every example with its neighbour in the batch, by mixup or cutmix.

  One mixing share is drawn for the batch: mixup blends all pixels, cutmix pastes one box whose area is the other
  share, and the targets are mixed by the same share. A pair with a padded example has weight 0. Neighbours
  are on one device where its part of the batch is even, so no image is communicated.

  Args:
    key: for the share and the box.
    image_BYXC, target_BV, weight_B: images, soft targets, weights.
    mixup, cutmix: alpha of Beta(alpha, alpha); 0 turns one off, with both on either is as likely.

  Returns:
    images [B, Y, X, C], targets [B, V], weights [B]

  Raises:
    ValueError: the batch is odd.
  """
  if len(weight_B) % 2:
    raise ValueError(f"mixup and cutmix pair the examples; a batch (or a part of it) of {len(weight_B)} is odd")

  def other(x):
    return x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)

  key_choice, key_share, key_box = jax.random.split(key, 3)
  use_cutmix = jax.random.bernoulli(key_choice, 0.5) if mixup and cutmix else bool(cutmix)
  alpha = jnp.where(use_cutmix, cutmix or 1.0, mixup or 1.0)
  share = jax.random.beta(key_share, alpha, alpha)
  Y, X = image_BYXC.shape[1:3]
  # The box may stick out of the image; its share is counted from the pixels that are really pasted.
  centre = jax.random.uniform(key_box, (2,)) * jnp.array([Y, X])
  half = jnp.sqrt(1 - share) * jnp.array([Y, X]) / 2
  inside_Y1 = jnp.abs(jnp.arange(Y) + 0.5 - centre[0])[:, None] < half[0]
  inside_X = jnp.abs(jnp.arange(X) + 0.5 - centre[1]) < half[1]
  box_YX = inside_Y1 & inside_X
  paste_YX = jnp.where(use_cutmix, box_YX.astype(jnp.float32), 1 - share)
  pasted = paste_YX.mean()
  image_BYXC = image_BYXC + paste_YX[..., None] * (other(image_BYXC) - image_BYXC)
  target_BV = (1 - pasted) * target_BV + pasted * other(target_BV)
  return image_BYXC, target_BV, weight_B * other(weight_B)
