"""Minimum-risk training (Shen et al. 2016): the expected BLEU of the model's own translations."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn

from train import rng
from train.objectives import Loss, apply
from train.objectives.seq2seq import rows, shift
from zoo import decoding
from zoo.layers.attention import masked_softmax
from zoo.layers.sequence_info import SequenceInfo
from zoo.shapes import expect


@dataclass(frozen=True)
class Objective:
  """The expected risk, 1 - BLEU, over some candidates for each source (Shen et al. 2016, eq. 4 to 6).

  Candidates y are drawn from the model, and each counts once. Of the probabilities P they have now,

      Q(y) = P(y)^alpha / (sum of P(y')^alpha over the candidates),    risk = sum of Q(y) (1 - BLEU(y)),

  and the gradient goes through Q. For trained models (`config.init`): samples of an untrained one have no BLEU. The
  decoder reads a batch of `num_samples` + 1 times as many rows, so batches have to be smaller.

  Attributes:
    num_samples: drawn for each source, as long as its row of targets at most.
    sharpness: alpha; small values make all candidates alike (0.005 in 5.1.1).
    reference: whether the true target is a candidate too (5.1.2).
  """

  num_samples: int = 8
  sharpness: float = 5e-3
  reference: bool = True
  one_pair_per_row = True  # so the data must not be packed

  def __post_init__(self) -> None:
    if self.num_samples < 1 or self.num_samples + self.reference < 2 or self.sharpness <= 0:
      raise ValueError(
        f"config.objective: num_samples is {self.num_samples} and sharpness {self.sharpness}; wanted sharpness > 0 and "
        "at least two candidates, of which reference=True is one"
      )

  def __call__(self, model: nn.Module, variables: dict, batch: dict, key: jax.Array | None = None) -> Loss:
    """Sums over the pairs; `key=None` evaluates, with the same randomness every time, and no dropout.

    Metrics: "bleu" of the samples, 0 to 1, the model's expectation; "candidates", how many different ones there are.
    """
    c, target_BT = model.config, batch["target_ids"]
    B, T = target_BT.shape
    sample_key = rng.streams(rng.root(0) if key is None else key, "sample")["sample"]
    candidate_BJT = sampled_BJT = self._sample(model, variables, batch, sample_key)
    if self.reference:
      candidate_BJT = jnp.concatenate([target_BT[:, None], sampled_BJT], 1)
    J = candidate_BJT.shape[1]
    same_BJJ = (candidate_BJT[:, :, None] == candidate_BJT[:, None]).all(-1)
    first_BJ = ~jnp.tril(same_BJJ, -1).any(-1)

    # Each candidate is a row of its own: their probabilities, by teacher forcing, and their BLEU.
    candidates = candidate_BJT.reshape(-1, T)
    lengths = length_before(candidates, c.eos_token_id)
    valid = jnp.arange(T) <= lengths[:, None]  # with `eos_token_id`
    positions = jnp.broadcast_to(jnp.arange(T), valid.shape)
    target = SequenceInfo(valid.astype(jnp.int32), positions)
    source_ids, source, references = jax.tree.map(
      lambda a: jnp.repeat(a, J, 0), (batch["source_ids"], rows(batch)[0], target_BT)
    )
    rngs = None if key is None else rng.streams(rng.per_batch(key, batch["id"]), "dropout")
    inputs = shift(candidates, positions, c.bos_token_id)
    (logits, _), rest = apply(model, variables, source_ids, inputs, source, target, rngs=rngs)
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), candidates[..., None], -1)[..., 0]
    score_BJ = (log_probs * valid).sum(1).reshape(B, J)
    bleu = sentence_bleu(candidates, lengths, references, length_before(references, c.eos_token_id))
    bleu_BJ = bleu.reshape(B, J)

    risk_B = (masked_softmax(self.sharpness * score_BJ, first_BJ) * (1 - bleu_BJ)).sum(1)
    weight_B = batch["valid"].astype(jnp.float32)
    metrics = {"bleu": bleu_BJ[:, -self.num_samples :].mean(1), "candidates": first_BJ.sum(1)}
    sums = {name: (weight_B * value_B).sum() for name, value_B in metrics.items()}
    return Loss((weight_B * risk_B).sum(), weight_B.sum(), sums, rest)

  def _sample(self, model: nn.Module, variables: dict, batch: dict, key: jax.Array) -> jax.Array:
    """Translations [B, J, T], drawn without dropout; no gradient goes through the choice."""
    c, (B, T) = model.config, batch["target_ids"].shape
    parts = decoding.decode_step_of(model, jax.lax.stop_gradient(variables), batch["source_ids"], T)
    step, memory, cache = parts
    memory, cache = jax.tree.map(lambda a: jnp.repeat(a, self.num_samples, 0), (memory, cache))
    keys_BJ = jax.vmap(lambda key: jax.random.split(key, self.num_samples))(rng.per_example(key, batch["id"]))
    special = dict(bos_token_id=c.bos_token_id, eos_token_id=c.eos_token_id, pad_token_id=c.pad_token_id, max_length=T)
    return decoding.sample(step, memory, cache, keys_BJ.reshape(-1), **special).sequences_BUT.reshape(B, -1, T)


def length_before(token_BT: jax.Array, end: int) -> jax.Array:
  """[B], how many tokens there are before the first `end`; all, if there is none."""
  expect(token_BT=token_BT)
  end_BT = token_BT == end
  return jnp.where(end_BT.any(1), end_BT.argmax(1), token_BT.shape[1])


def sentence_bleu(
  candidate_BT: jax.Array, candidate_length_B: jax.Array, reference_BS: jax.Array, reference_length_B: jax.Array
) -> jax.Array:
  """BLEU of single sentences (Papineni et al. 2002, 2.3, up to 4 tokens), by their tokens.

  To the counts of 2, 3 and 4 tokens in a row, those that match and all, 1 is added (Lin & Och 2004, 4, "BLEUS"), for
  else most sentences would be worth 0.

  Args:
    candidate_BT, reference_BS: tokens.
    candidate_length_B, reference_length_B: how many of them count.

  Returns:
    [B] float32, from 0 to 1
  """
  sizes = expect(candidate_BT=candidate_BT, reference_BS=reference_BS)
  inside_BT = jnp.arange(sizes["T"]) < candidate_length_B[:, None]
  inside_BS = jnp.arange(sizes["S"]) < reference_length_B[:, None]
  # Which n-grams are equal, by the positions where they end: at first with n = 0, which all are.
  own_BTT = jnp.ones((sizes["B"], sizes["T"], sizes["T"]), bool)
  other_BTS = jnp.ones((sizes["B"], sizes["T"], sizes["S"]), bool)
  own_token_BTT = (candidate_BT[:, :, None] == candidate_BT[:, None]) & inside_BT[:, :, None] & inside_BT[:, None]
  other_token_BTS = (candidate_BT[:, :, None] == reference_BS[:, None]) & inside_BT[:, :, None] & inside_BS[:, None]
  logarithms = []
  for n in range(1, 5):
    if n > 1:
      own_BTT, other_BTS = (jnp.pad(a, ((0, 0), (1, 0), (1, 0)))[:, :-1, :-1] for a in (own_BTT, other_BTS))
    own_BTT, other_BTS = own_BTT & own_token_BTT, other_BTS & other_token_BTS
    # The k-th of equal n-grams matches if the reference has it k times: counts are clipped (2.1).
    which_BT = jnp.tril(own_BTT).sum(-1)
    match_B = ((which_BT > 0) & (which_BT <= other_BTS.sum(-1))).sum(1)
    all_B = jnp.maximum(candidate_length_B - n + 1, 0)
    smooth = n > 1
    logarithms.append(jnp.log((match_B + smooth) / jnp.maximum(all_B + smooth, 1)))
  shortness_B = 1 - reference_length_B / jnp.maximum(candidate_length_B, 1)
  return jnp.exp(sum(logarithms) / 4 + jnp.minimum(shortness_B, 0))
