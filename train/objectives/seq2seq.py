"""Translation, or any sequence to sequence: cross-entropy of each target token from those before it."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn

from train import rng
from train.objectives import Loss, apply, check_fields
from zoo.layers.sequence_info import SequenceInfo
from zoo.shapes import expect


@dataclass(frozen=True)
class Objective:
  """Cross-entropy by teacher forcing: the decoder reads the true target.

  Attributes:
    label_smoothing: share of the target distributed uniformly over all tokens (Vaswani et al. 2017, 5.4).
    scheduled_sampling: share of the tokens that the decoder reads, in training, which are its own instead of the true
      ones (Bengio et al. 2015); the model computes them (`scheduled_sampling_inputs`). No gradient goes
      through the choice.
    guided_attention: weight of a loss on attention far from the diagonal (Tachibana et al. 2018, 4.1).
    guided_width: the width of the diagonal, as a share of the lengths; g in their eq. 7.
  """

  label_smoothing: float = 0.0
  scheduled_sampling: float = 0.0
  guided_attention: float = 0.0
  guided_width: float = 0.2

  def __post_init__(self) -> None:
    check_fields(self, {0: ("guided_attention",)}, ("label_smoothing", "scheduled_sampling"))
    if self.guided_width <= 0:
      raise ValueError(f"config.objective: guided_width is {self.guided_width}; wanted more than 0")

  def __call__(self, model: nn.Module, variables: dict, batch: dict, key: jax.Array | None = None) -> Loss:
    """Sums over the target tokens; `key=None` evaluates: no smoothing, sampling, guiding or dropout."""
    source, target = rows(batch)
    target_BT, weight_BT = batch["target_ids"], token_weights(batch)
    inputs_BT = shift(target_BT, batch["target_position_ids"], model.config.bos_token_id)
    keys = None
    if key is not None:
      keys = rng.streams(rng.per_batch(key, batch["id"]), "dropout", "first_dropout", "sampling")
    rngs = keys and {"dropout": keys["dropout"]}

    if self.scheduled_sampling and keys:
      own_BT = jax.random.bernoulli(keys["sampling"], self.scheduled_sampling, inputs_BT.shape)
      own_BT &= batch["target_position_ids"] > 0  # the first token is always `bos`
      fixed, first = jax.lax.stop_gradient(variables), {"dropout": keys["first_dropout"]}
      mixed = batch["source_ids"], inputs_BT, own_BT, source, target
      inputs_BT, _ = apply(model, fixed, *mixed, rngs=first, method="scheduled_sampling_inputs")
    (logits_BTV, aux), rest = apply(model, variables, batch["source_ids"], inputs_BT, source, target, rngs=rngs)
    smoothing = self.label_smoothing if key is not None else 0.0
    nll_BT, loss_BT, hit_BT = cross_entropy(logits_BTV, target_BT, smoothing, model.config.vocab_size)
    if self.guided_attention and key is not None:
      if "decoder/alignment" not in aux:
        raise ValueError("config.objective: guided_attention guides attention, of which this model has none")
      far_BTS = off_diagonal(source, target, self.guided_width)
      loss_BT = loss_BT + self.guided_attention * (far_BTS * aux["decoder/alignment"]).sum(-1)
    metrics = {"accuracy": (weight_BT * hit_BT).sum(), "nll": (weight_BT * nll_BT).sum()}
    return Loss((weight_BT * loss_BT).sum(), weight_BT.sum(), metrics, rest)


def rows(batch: dict) -> tuple[SequenceInfo, SequenceInfo]:
  """Segments and positions of a batch's sources and targets."""
  source = SequenceInfo(batch["source_segment_ids"], batch["source_position_ids"])
  return source, SequenceInfo(batch["target_segment_ids"], batch["target_position_ids"])


def token_weights(batch: dict) -> jax.Array:
  """[B, T] float32: 1 for the target tokens that count, 0 for padding."""
  return ((batch["target_segment_ids"] > 0) & batch["valid"][:, None]).astype(jnp.float32)


def cross_entropy(
  logits_BTV: jax.Array, target_BT: jax.Array, smoothing: float, vocab_size: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """[B, T]: minus the logarithm of each target token's probability, the same with label smoothing, and what is hit.

  The last is bool, whether no other token is more probable.
  """
  expect(logits_BTV=logits_BTV, target_BT=target_BT)
  # log softmax is the logits less one number: what is needed of it is never written for all the words.
  total_BT = jax.nn.logsumexp(logits_BTV, -1)
  target_logit_BT = jnp.take_along_axis(logits_BTV, target_BT[..., None], -1)[..., 0]
  nll_BT = loss_BT = total_BT - target_logit_BT
  if smoothing:
    # Over the vocabulary alone: tokens that are copied are mostly impossible.
    uniform_BT = total_BT - logits_BTV[..., :vocab_size].mean(-1)
    loss_BT = (1 - smoothing) * nll_BT + smoothing * uniform_BT
  hit_BT = target_logit_BT == logits_BTV.max(-1)  # argmax takes a pass of its own, three times as long
  return nll_BT, loss_BT, hit_BT


def shift(target_BT: jax.Array, position_BT: jax.Array, bos: int) -> jax.Array:
  """The decoder's inputs: the target shifted by one, `bos` where a sequence begins."""
  expect(target_BT=target_BT, position_BT=position_BT)
  return jnp.where(position_BT == 0, bos, jnp.roll(target_BT, 1, 1))


def off_diagonal(source: SequenceInfo, target: SequenceInfo, width: float) -> jax.Array:
  """Distance of each pair of positions from the diagonal: 1 - exp(-(t/T - s/S)^2 / (2 g^2)) (Tachibana et al. 2018, eq.
    7).

  Args:
    source, target: rows, each of one or several sequences.
    width: g.

  Returns:
    [B, T, S], 0 on the diagonal and near 1 far from it
  """

  def share(row: SequenceInfo) -> jax.Array:
    """A token's relative position in its sequence, from 0 to 1."""
    segment_BT, position_BT = row
    assert segment_BT is not None and position_BT is not None
    return position_BT / (segment_BT[:, :, None] == segment_BT[:, None, :]).sum(-1)

  distance_BTS = share(target)[:, :, None] - share(source)[:, None, :]
  return 1 - jnp.exp(-jnp.square(distance_BTS) / (2 * width**2))
