"""BERT's pretraining: hidden words, and whether a text follows another (Devlin et al. 2019, 3.1 and A.1)."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from train import rng
from train.objectives import Loss, apply, check_fields
from train.objectives.translate import cross_entropy
from zoo.models.transformer import Row
from zoo.shapes import expect


@dataclass(frozen=True)
class Objective:
  """Masked language modelling and, where the model has its head, next sentence prediction.

  The loss is the mean over hidden words plus the mean over pairs. Since sums over parts of a batch must just add up,
  a pair counts in the latter as much as it has hidden words: alike, where all are equally long.

  Attributes:
    share: of a sequence's tokens that are chosen to be told, rounded, but one at least.
    max_predictions: of a row; more are not chosen. Only so many places are told, which is what the head of words costs.
    whole_words: choose words, with all their pieces, instead of pieces.
    mask, random: of the chosen tokens, the share that is hidden, and the share that another word takes the place of;
      the others stay.
    static: choose and hide the same in an example whenever it comes (as published, but for several copies); False: anew
      each time (Liu et al. 2019, 4.1).
  """

  share: float = 0.15
  max_predictions: int = 20
  whole_words: bool = False
  mask: float = 0.8
  random: float = 0.1
  static: bool = False

  def __post_init__(self):
    check_fields(self, {1: ("max_predictions",), 0: ("mask", "random")}, ("share",))
    if self.mask + self.random > 1:
      raise ValueError(f"config.objective: mask + random is {self.mask + self.random}; wanted at most 1")

  def __call__(self, model, variables, batch, key=None) -> Loss:
    """Sums over the hidden words; `key=None` evaluates: without dropout, and with the same words hidden every time."""
    rngs = None if key is None else rng.streams(rng.per_batch(key, batch["id"]), "dropout")
    chosen = self.hide(batch, key, mask_token=model.config.mask, vocab_size=model.config.vocab_size)
    row = Row(batch["segment"], batch["position"])
    inputs = chosen.token_BT, batch["type"], row, chosen.place_BP, batch["first"]
    (logits_BPV, aux), rest = apply(model, variables, *inputs, rngs=rngs)
    wanted_BP = jnp.take_along_axis(batch["token"], chosen.place_BP, 1)
    weight_BP = (chosen.real_BP & batch["valid"][:, None]).astype(jnp.float32)
    nll_BP, _, hit_BP = cross_entropy(logits_BPV, wanted_BP, 0.0, model.config.vocab_size)
    total = (weight_BP * nll_BP).sum()
    metrics = {"accuracy": (weight_BP * hit_BP).sum(), "nll": total}
    if "next" in aux:
      segment_BP = jnp.take_along_axis(batch["segment"], chosen.place_BP, 1)
      number_K = jnp.arange(1, batch["next"].shape[1] + 1)
      weight_BK = ((segment_BP[:, None] == number_K[:, None]) * weight_BP[:, None]).sum(-1) * (batch["next"] >= 0)
      # The head's first class is that B follows A, as published.
      next_BK, _, next_hit_BK = cross_entropy(aux["next"], jnp.where(batch["next"] == 1, 0, 1), 0.0, 2)
      metrics |= {"next_nll": (weight_BK * next_BK).sum(), "next_accuracy": (weight_BK * next_hit_BK).sum()}
      total = total + metrics["next_nll"]
    return Loss(total, weight_BP.sum(), metrics, rest)

  def hide(self, batch, key, *, mask_token: int, vocab_size: int) -> "Hidden":
    """What is hidden of a batch in the step of this key; None: in an evaluation."""
    number_B = batch["example"] if self.static and key is not None else batch["id"]
    mask_key = rng.streams(rng.root(0) if self.static or key is None else key, "mask")["mask"]
    return hide(
      rng.per_example(mask_key, number_B),
      batch["token"],
      batch["word"],
      batch["segment"],
      share=self.share,
      most=self.max_predictions,
      whole_words=self.whole_words,
      mask=self.mask,
      random=self.random,
      mask_token=mask_token,
      vocab_size=vocab_size,
    )


class Hidden(NamedTuple):
  """Rows with words hidden.

  Attributes:
    token_BT: what is left of the tokens. place_BP: of those to tell, rising. real_BP: bool, False where there are
      fewer.
  """

  token_BT: jax.Array
  place_BP: jax.Array
  real_BP: jax.Array


def hide(
  key_B: jax.Array,
  token_BT: jax.Array,
  word_BT: jax.Array,
  segment_BT: jax.Array,
  *,
  share: float,
  most: int,
  whole_words: bool,
  mask: float,
  random: float,
  mask_token: int,
  vocab_size: int,
) -> Hidden:
  """Chooses which words are to be told, and hides most of them (Devlin et al. 2019, A.1).

  In each sequence, words are gone through in random order; each is chosen if all its pieces have room.

  Args:
    key_B: one for each row.
    token_BT, segment_BT: tokens, and which sequence of the row each is of, 0 for padding.
    word_BT: which word of the row a token is of, 1, 2, ...; 0 for those that are never chosen, such as [CLS].
    share, most, whole_words, mask, random: see `Objective`.
    mask_token: what hides a word.
    vocab: V.
  """
  sizes = expect(token_BT=token_BT, word_BT=word_BT, segment_BT=segment_BT)
  place_T = jnp.arange(sizes["T"])
  unit_BT = word_BT if whole_words else jnp.where(word_BT > 0, place_T + 1, 0)
  order_BT, fate_BT, other_BT = (
    jax.vmap(draw)(jax.vmap(jax.random.fold_in, (0, None))(key_B, stream))
    for stream, draw in enumerate(
      (
        lambda key: jax.random.uniform(key, (sizes["T"] + 1,)),
        lambda key: jax.random.uniform(key, (sizes["T"],)),
        lambda key: jax.random.randint(key, (sizes["T"],), 0, vocab_size),
      )
    )
  )
  order_BT = jnp.take_along_axis(order_BT, unit_BT, 1)  # all pieces of a word have its place in the order

  same_BTT = segment_BT[:, :, None] == segment_BT[:, None, :]
  # How many there are to choose in a token's sequence, less what would be too much for the row.
  wanted_BT = jnp.maximum(jnp.round(share * same_BTT.sum(-1)), 1).astype(jnp.int32) * (segment_BT > 0)
  begins_BT = segment_BT != jnp.pad(segment_BT[:, :-1], ((0, 0), (1, 0)))
  earlier_BT = jnp.cumsum(wanted_BT * begins_BT, 1) - wanted_BT
  room_BT = jnp.clip(most - earlier_BT, 0, wanted_BT)

  size_BT = (unit_BT[:, :, None] == unit_BT[:, None, :]).sum(-1)
  chosen_BT = jnp.zeros_like(unit_BT, bool)
  # A pass chooses words up to the first for which there is no room; the next one goes on behind it. Pieces always have
  # room until there is none; of words four passes leave next to nothing.
  for _ in range(4 if whole_words else 1):
    left_BT = room_BT - (same_BTT & chosen_BT[:, None]).sum(-1)
    open_BT = (unit_BT > 0) & ~chosen_BT & (size_BT <= left_BT)
    before_BT = (same_BTT & open_BT[:, None] & (order_BT[:, None] < order_BT[..., None])).sum(-1)
    chosen_BT |= open_BT & (before_BT + size_BT <= left_BT)

  hidden_BT = jnp.where(fate_BT < mask, mask_token, jnp.where(fate_BT < mask + random, other_BT, token_BT))
  rank_BP, place_BP = jax.lax.top_k(jnp.where(chosen_BT, sizes["T"] - place_T, 0), min(most, sizes["T"]))
  return Hidden(jnp.where(chosen_BT, hidden_BT, token_BT), place_BP, rank_BP > 0)
