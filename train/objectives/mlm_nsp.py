"""BERT's pretraining: masked language modelling and next sentence prediction (Devlin et al. 2019, 3.1 and A.1)."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from train import rng
from train.objectives import Loss, apply, check_fields
from train.objectives.seq2seq import cross_entropy
from zoo.layers.sequence_info import SequenceInfo
from zoo.shapes import expect


@dataclass(frozen=True)
class Objective:
  """Masked language modelling and, where the model has its head, next sentence prediction.

  The loss is the mean over masked tokens plus the mean over pairs. Sums over parts of a batch must just add up, so a
  pair's weight in the latter is the number of its masked tokens: all pairs count equally where all are equally long.

  Attributes:
    mask_prob: share of a sequence's tokens that are predicted, rounded, at least one.
    max_predictions: per row; further tokens are not masked. The head of masked tokens computes only so many positions.
    whole_words: mask words, with all their pieces, instead of single pieces.
    mask_token_prob, random_token_prob: of the predicted tokens, the share that is replaced by [MASK], and the share
      that is replaced by a random token; the others stay.
    static_masking: mask the same tokens of an example in every epoch (as published, but for its duplicates); False:
      others each time (Liu et al. 2019, 4.1).
  """

  mask_prob: float = 0.15
  max_predictions: int = 20
  whole_words: bool = False
  mask_token_prob: float = 0.8
  random_token_prob: float = 0.1
  static_masking: bool = False

  def __post_init__(self) -> None:
    check_fields(self, {1: ("max_predictions",), 0: ("mask_token_prob", "random_token_prob")}, ("mask_prob",))
    if (total := self.mask_token_prob + self.random_token_prob) > 1:
      raise ValueError(f"config.objective: mask_token_prob + random_token_prob is {total}; wanted at most 1")

  def __call__(self, model: nn.Module, variables: dict, batch: dict, key: jax.Array | None = None) -> Loss:
    """Sums over the masked tokens; `key=None` evaluates: without dropout, and with the same masks every time."""
    rngs = None if key is None else rng.streams(rng.per_batch(key, batch["id"]), "dropout")
    masked = self.mask_tokens(batch, key, mask_token=model.config.mask_token_id, vocab_size=model.config.vocab_size)
    row = SequenceInfo(batch["segment_ids"], batch["position_ids"])
    inputs = masked.input_ids_BT, batch["token_type_ids"], row, masked.position_BI, batch["cls_positions"]
    (logits_BIV, aux), rest = apply(model, variables, *inputs, rngs=rngs)
    weight_BI = (masked.label_mask_BI & batch["valid"][:, None]).astype(jnp.float32)
    nll_BI, _, hit_BI = cross_entropy(logits_BIV, masked.label_BI, 0.0, model.config.vocab_size)
    total = (weight_BI * nll_BI).sum()
    metrics = {"accuracy": (weight_BI * hit_BI).sum(), "nll": total}
    if "next_sentence" in aux:
      label_BZ = batch["next_sentence_label"]
      segment_BI = jnp.take_along_axis(batch["segment_ids"], masked.position_BI, 1)
      segment_Z = jnp.arange(1, label_BZ.shape[1] + 1)
      weight_BZ = ((segment_BI[:, None] == segment_Z[:, None]) * weight_BI[:, None]).sum(-1) * (label_BZ >= 0)
      # The first class is that B follows A, as published.
      next_nll_BZ, _, next_hit_BZ = cross_entropy(aux["next_sentence"], jnp.where(label_BZ == 1, 0, 1), 0.0, 2)
      metrics |= {"next_nll": (weight_BZ * next_nll_BZ).sum(), "next_accuracy": (weight_BZ * next_hit_BZ).sum()}
      total = total + metrics["next_nll"]
    return Loss(total, weight_BI.sum(), metrics, rest)

  def mask_tokens(self, batch: dict, key: jax.Array | None, *, mask_token: int, vocab_size: int) -> "MaskedTokens":
    """Masks a batch for the step of this key; None: for an evaluation."""
    number_B = batch["example"] if self.static_masking and key is not None else batch["id"]
    mask_key = rng.streams(rng.root(0) if self.static_masking or key is None else key, "mask")["mask"]
    return mask_tokens(
      rng.per_example(mask_key, number_B),
      batch["input_ids"],
      batch["word_ids"],
      batch["segment_ids"],
      objective=self,
      mask_token=mask_token,
      vocab_size=vocab_size,
    )


class MaskedTokens(NamedTuple):
  """Rows with masked tokens, and what is predicted of them.

  Attributes:
    input_ids_BT: the tokens that the model reads.
    position_BI: positions of the tokens to predict, rising. label_BI: these tokens.
    label_mask_BI: bool, False where a row has fewer than I.
  """

  input_ids_BT: jax.Array
  position_BI: jax.Array
  label_BI: jax.Array
  label_mask_BI: jax.Array


def mask_tokens(
  key_B: jax.Array,
  token_BT: jax.Array,
  word_BT: jax.Array,
  segment_BT: jax.Array,
  *,
  objective: Objective,
  mask_token: int,
  vocab_size: int,
) -> MaskedTokens:
  """Chooses the tokens to predict, and replaces most of them (Devlin et al. 2019, A.1).

  Args:
    key_B: one per row.
    token_BT: the tokens.
    word_BT: which word of the row a token belongs to, 1, 2, ...; 0 for tokens that are never chosen, such as [CLS].
    segment_BT: which sequence of the row a token belongs to, 1, 2, ...; 0 for padding.
    objective: its fields specify how many tokens are chosen, and what replaces them.
    mask_token: the id of [MASK].
    vocab_size: V.
  """
  T = expect(token_BT=token_BT, word_BT=word_BT, segment_BT=segment_BT)["T"]
  position_T = jnp.arange(T)
  group_BT = word_BT if objective.whole_words else jnp.where(word_BT > 0, position_T + 1, 0)
  priority_key, replace_key, random_key = (jax.vmap(jax.random.fold_in, (0, None))(key_B, i) for i in range(3))
  priority_BT = jax.vmap(lambda key: jax.random.uniform(key, (T + 1,)))(priority_key)
  priority_BT = jnp.take_along_axis(priority_BT, group_BT, 1)  # all pieces of a word have one
  chosen_BT = _choose(priority_BT, group_BT, segment_BT, objective)

  uniform_BT = jax.vmap(lambda key: jax.random.uniform(key, (T,)))(replace_key)
  random_BT = jax.vmap(lambda key: jax.random.randint(key, (T,), 0, vocab_size))(random_key)
  limit = objective.mask_token_prob + objective.random_token_prob
  replaced_BT = jnp.where(uniform_BT < limit, random_BT, token_BT)
  replaced_BT = jnp.where(uniform_BT < objective.mask_token_prob, mask_token, replaced_BT)
  rank_BI, position_BI = jax.lax.top_k(jnp.where(chosen_BT, T - position_T, 0), min(objective.max_predictions, T))
  label_BI = jnp.take_along_axis(token_BT, position_BI, 1)
  return MaskedTokens(jnp.where(chosen_BT, replaced_BT, token_BT), position_BI, label_BI, rank_BI > 0)


def _choose(priority_BT: jax.Array, group_BT: jax.Array, segment_BT: jax.Array, objective: Objective) -> jax.Array:
  """Bool [B, T]: the tokens to predict. Words are visited by priority; a word whose pieces all fit is chosen.

  Args:
    priority_BT: the lowest first.
    group_BT: tokens of the same number are chosen together; those of 0 never.
    segment_BT: which sequence of the row a token belongs to, 0 for padding.
    objective: see `mask_tokens`.
  """
  same_BTT = segment_BT[:, :, None] == segment_BT[:, None, :]
  # How many tokens of a token's sequence to choose, limited by what earlier sequences leave of `max_predictions`.
  wanted_BT = jnp.maximum(jnp.round(objective.mask_prob * same_BTT.sum(-1)), 1).astype(jnp.int32) * (segment_BT > 0)
  begins_BT = segment_BT != jnp.pad(segment_BT[:, :-1], ((0, 0), (1, 0)))
  earlier_BT = jnp.cumsum(wanted_BT * begins_BT, 1) - wanted_BT
  budget_BT = jnp.clip(objective.max_predictions - earlier_BT, 0, wanted_BT)

  size_BT = (group_BT[:, :, None] == group_BT[:, None, :]).sum(-1)
  chosen_BT = jnp.zeros_like(group_BT, bool)
  # A pass chooses words up to the first that does not fit; the next pass goes on behind it. Single pieces need one
  # pass; of whole words four passes leave almost none.
  for _ in range(4 if objective.whole_words else 1):
    left_BT = budget_BT - (same_BTT & chosen_BT[:, None]).sum(-1)
    open_BT = (group_BT > 0) & ~chosen_BT & (size_BT <= left_BT)
    before_BT = (same_BTT & open_BT[:, None] & (priority_BT[:, None] < priority_BT[..., None])).sum(-1)
    chosen_BT |= open_BT & (before_BT + size_BT <= left_BT)
  return chosen_BT
