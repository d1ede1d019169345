"""Decoding: sequences of high probability, or sampled ones, of an autoregressive model.

Each function takes the model's decoding step,

    step(memory, cache, input_ids_B, index) -> (logits_BV of the next tokens, cache)

`memory` is constant and `cache` is updated by each step; the first axis of all their arrays is B. `decode_step_of`
returns all three for a model of the zoo. The loops are `lax.while_loop`s of static shapes that end as soon as every
sequence has ended, so they can be compiled. `non_autoregressive` is for models that predict all tokens at once.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.errors import nearest
from zoo.layers.stack import unstack_params
from zoo.shapes import expect

Step = Callable[[object, object, jax.Array, jax.Array], tuple[jax.Array, object]]


class DecodeOutput(NamedTuple):
  """Decoded sequences, U for each example, the best first.

  Attributes:
    sequences_BUT: [B, U, T] int32, with `eos_token_id` at the end and `pad_token_id` after it.
    scores_BU: [B, U] float32, the log probability (in a beam search, over the length penalty; of a non-autoregressive
      model, the mean over tokens). Where there are fewer than U sequences, the rest is padding with the least float32.
  """

  sequences_BUT: jax.Array
  scores_BU: jax.Array


def decode_step_of(
  model: nn.Module, variables: dict, source_BS: jax.Array, max_length: int
) -> tuple[Step, object, object]:
  """The step, memory and cache of a sequence-to-sequence model of the zoo.

  Args:
    model: has the methods `init_cache` and `decode_step`.
    variables: its variables.
    source_BS: token ids, padded with `pad_token_id`.
    max_length: maximum number of decoded tokens.

  Raises:
    ValueError: `max_length` is more than the model's.
  """
  check_length(model, max_length)
  if getattr(model.config, "scan", False):
    # A loop over the blocks updates each cache in place; a scan would copy all of them.
    model = model.clone(config=replace(model.config, scan=False))
    variables = {collection: unstack_params(tree) for collection, tree in variables.items()}
  memory, cache = model.apply(variables, source_BS, max_length, method="init_cache")
  return partial(model.apply, variables, method="decode_step"), memory, cache


def check_length(model: nn.Module, max_length: int) -> None:
  """Raises ValueError where a model cannot decode so many tokens."""
  if not 0 < max_length <= model.config.max_length:
    raise ValueError(f"max_length is {max_length}; wanted 1 to the model's {model.config.max_length}")


def greedy(
  step: Step, memory: Any, cache: Any, *, bos_token_id: int, eos_token_id: int, pad_token_id: int, max_length: int
) -> DecodeOutput:
  """Greedy search: the most probable token at each position.

  Args:
    step, memory, cache: from `decode_step_of`.
    bos_token_id, eos_token_id, pad_token_id: tokens that begin a sequence, end it, and follow its end.
    max_length: maximum number of tokens, with `eos_token_id`.
  """

  def choose(logits_BV, index):
    del index
    return logits_BV.argmax(-1)

  return _token_by_token(step, memory, cache, choose, bos_token_id, eos_token_id, pad_token_id, max_length)


def sample(
  step: Step,
  memory: Any,
  cache: Any,
  key: jax.Array,
  *,
  bos_token_id: int,
  eos_token_id: int,
  pad_token_id: int,
  max_length: int,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
) -> DecodeOutput:
  """Samples each token from the model's distribution.

  Args:
    step, memory, cache: from `decode_step_of`.
    key: a random key, or [B], one for each sequence.
    bos_token_id, eos_token_id, pad_token_id, max_length: see `greedy`.
    temperature: divides the logits; below 1 the distribution gets sharper.
    top_k: samples from the k most probable tokens (Fan et al. 2018, 5.1) and ties with the last; 0 for all.
    top_p: samples from the most probable tokens of this total probability (Holtzman et al. 2020, 3.1) and ties.

  Raises:
    ValueError: temperature, top_k or top_p is out of range.
  """
  if not (temperature > 0 and top_k >= 0 and 0 < top_p <= 1):
    raise ValueError(
      f"temperature={temperature}, top_k={top_k}, top_p={top_p}; wanted temperature > 0, top_k >= 0, 0 < top_p <= 1"
    )

  def choose(logits_BV, index):
    logits_BV = filter_top_k_top_p(logits_BV / temperature, top_k, top_p)
    if key.ndim:
      return jax.vmap(lambda key, logits_V: jax.random.categorical(jax.random.fold_in(key, index), logits_V))(
        key, logits_BV
      )
    return jax.random.categorical(jax.random.fold_in(key, index), logits_BV)

  return _token_by_token(step, memory, cache, choose, bos_token_id, eos_token_id, pad_token_id, max_length)


def filter_top_k_top_p(logits_BV: jax.Array, top_k: int = 0, top_p: float = 1.0) -> jax.Array:
  """Logits with -inf for all but the most probable tokens; see `sample`."""
  vocab_size = expect(logits_BV=logits_BV)["V"]
  if 0 < top_k < vocab_size:
    least_B1 = jax.lax.top_k(logits_BV, top_k)[0][:, -1:]
    logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
  if top_p < 1:
    sorted_BV = jnp.sort(logits_BV, descending=True)
    before_BV = jnp.cumsum(jax.nn.softmax(sorted_BV), 1) - jax.nn.softmax(sorted_BV)
    # The token that crosses the border is still in, so at least one is.
    least_B1 = jnp.where(before_BV < top_p, sorted_BV, jnp.inf).min(1, keepdims=True)
    logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
  return logits_BV


def _token_by_token(step, memory, cache, choose, bos_token_id, eos_token_id, pad_token_id, max_length) -> DecodeOutput:
  B = jax.tree.leaves(memory)[0].shape[0]

  def proceed(carry):
    index, token_B, token_BT, score_B, done_B, cache = carry
    logits_BV, cache = step(memory, cache, token_B, index)
    token_B = jnp.where(done_B, pad_token_id, choose(logits_BV, index)).astype(jnp.int32)
    gain_B = jnp.take_along_axis(jax.nn.log_softmax(logits_BV), token_B[:, None], 1)[:, 0]
    score_B = score_B + jnp.where(done_B, 0.0, gain_B)
    return index + 1, token_B, token_BT.at[:, index].set(token_B), score_B, done_B | (token_B == eos_token_id), cache

  def goes_on(carry):
    index, _, _, _, done_B, _ = carry
    return (index < max_length) & ~done_B.all()

  empty_BT = jnp.full((B, max_length), pad_token_id, jnp.int32)
  start = (jnp.int32(0), jnp.full(B, bos_token_id, jnp.int32), empty_BT, jnp.zeros(B), jnp.zeros(B, bool), cache)
  _, _, token_BT, score_B, _, _ = jax.lax.while_loop(goes_on, proceed, start)
  return DecodeOutput(token_BT[:, None], score_B[:, None])


# The divisor of a sequence's log probability, by its length and the exponent; it grows with the length.
LENGTH_NORMALIZATIONS = {
  "power": lambda length, exponent: length**exponent,
  "gnmt": lambda length, exponent: ((5 + length) / 6) ** exponent,  # Wu et al. 2016, eq. 14
}


def check_beam(beam_size: int, n_best: int, length_penalty: float, vocab_size: int | None) -> None:
  """Raises ValueError for arguments out of range, and a beam larger than the vocabulary, unless that is None."""
  if not (beam_size >= 1 and 1 <= n_best <= beam_size and length_penalty >= 0):
    raise ValueError(
      f"beam_size={beam_size}, n_best={n_best}, length_penalty={length_penalty}; wanted beam_size >= 1, "
      "1 <= n_best <= beam_size, length_penalty >= 0"
    )
  if vocab_size is not None and beam_size > vocab_size:
    raise ValueError(f"a beam of {beam_size} is larger than the vocabulary of {vocab_size} tokens")


class _Beams(NamedTuple):
  """State of a beam search: U unfinished sequences (`live`) and the U best finished ones (`kept`) of each example."""

  index: jax.Array
  live_BUT: jax.Array
  live_scores_BU: jax.Array
  kept_BUT: jax.Array
  kept_scores_BU: jax.Array
  input_ids_BU: jax.Array
  cache: object


_WORST = float(jnp.finfo(jnp.float32).min)  # instead of -inf, whose differences are NaN


def _take(tree_BU, index_BJ):
  """Of each example the beams with these indices."""
  return jax.tree.map(lambda a: jax.vmap(lambda row, i: row[i])(a, index_BJ), tree_BU)


def beam_search(
  step: Step,
  memory: Any,
  cache: Any,
  *,
  bos_token_id: int,
  eos_token_id: int,
  pad_token_id: int,
  max_length: int,
  beam_size: int = 4,
  n_best: int = 1,
  length_penalty: float = 0.6,
  length_normalization: str = "gnmt",
  early_stopping: bool = True,
) -> DecodeOutput:
  """Beam search: at each position the `beam_size` most probable prefixes are extended (Graves 2012, 2.5).

  A finished sequence is kept if it is among the `beam_size` best at its position. Its score is its log probability
  over the length penalty. At `max_length` unfinished sequences count as finished.

  Early stopping is exact: a prefix's probability only falls as it grows and the penalty only rises, so no completion
  scores more than the prefix's log probability over the penalty of `max_length`. The search stops when, for every
  example, that is less than the worst kept score.

  Args:
    step, memory, cache: from `decode_step_of`.
    bos_token_id, eos_token_id, pad_token_id, max_length: see `greedy`.
    beam_size: number of prefixes that are extended, and of finished sequences that are kept.
    n_best: number of sequences to return, at most `beam_size`.
    length_penalty: exponent of the length normalization, at least 0; 0 for none, 0.6 in Vaswani et al. 2017, 6.1.
    length_normalization: one of `LENGTH_NORMALIZATIONS`: "gnmt", or "power", the length to the power of
      `length_penalty`, as in Hugging Face's `generate`.
    early_stopping: stop when the result cannot change; False is for comparison.

  Raises:
    ValueError: a beam larger than the vocabulary, or an argument out of range.
  """
  if length_normalization not in LENGTH_NORMALIZATIONS:
    raise ValueError(
      f"unknown length_normalization {length_normalization!r}{nearest(length_normalization, LENGTH_NORMALIZATIONS)}"
    )
  B = jax.tree.leaves(memory)[0].shape[0]
  logits, _ = jax.eval_shape(step, memory, cache, jnp.zeros(B, jnp.int32), jnp.int32(0))
  check_beam(beam_size, n_best, length_penalty, logits.shape[1])
  normalize = partial(LENGTH_NORMALIZATIONS[length_normalization], exponent=length_penalty)
  memory, cache = jax.tree.map(lambda a: jnp.repeat(a, beam_size, 0), (memory, cache))

  def unfinished(beams: _Beams):
    best_B = beams.live_scores_BU.max(1)
    bound_B = best_B / normalize(float(max_length))
    possible = ((best_B > _WORST) & (bound_B > beams.kept_scores_BU.min(1))).any()
    return (beams.index < max_length) & (possible if early_stopping else True)

  beams = _start(cache, jnp.full((B, beam_size), bos_token_id, jnp.int32), max_length, pad_token_id)
  extend = partial(_extend, step, memory, normalize, eos_token_id, max_length)
  beams = jax.lax.while_loop(unfinished, extend, beams)
  return DecodeOutput(beams.kept_BUT[:, :n_best], beams.kept_scores_BU[:, :n_best])


def _start(cache, bos_BU: jax.Array, max_length: int, pad_token_id: int) -> _Beams:
  """The state of a beam search before its first step."""
  empty_BUT = jnp.full((*bos_BU.shape, max_length), pad_token_id, jnp.int32)
  worst_BU = jnp.full(bos_BU.shape, _WORST)
  # All beams are equal at first, so only one of them counts.
  return _Beams(jnp.int32(0), empty_BUT, worst_BU.at[:, 0].set(0.0), empty_BUT, worst_BU, bos_BU, cache)


def _extend(step: Step, memory, normalize: Callable, eos_token_id: int, max_length: int, beams: _Beams) -> _Beams:
  """One position of a beam search."""
  index, (B, beam_size) = beams.index, beams.input_ids_BU.shape
  logits, cache = step(memory, beams.cache, beams.input_ids_BU.reshape(-1), index)
  vocab_size = logits.shape[1]
  log_probs_BUV = jax.nn.log_softmax(logits).reshape(B, beam_size, vocab_size)
  # Twice the beam, for at most half of the candidates end.
  count = min(2 * beam_size, beam_size * vocab_size)
  scores_BJ, index_BJ = jax.lax.top_k((beams.live_scores_BU[..., None] + log_probs_BUV).reshape(B, -1), count)
  parent_BJ, token_BJ = index_BJ // vocab_size, (index_BJ % vocab_size).astype(jnp.int32)
  sequences_BJT = _take(beams.live_BUT, parent_BJ).at[:, :, index].set(token_BJ)
  ended_BJ = (token_BJ == eos_token_id) | (index + 1 == max_length)

  # A candidate that ends is kept if it is among the first `beam_size`.
  ended_scores_BJ = jnp.where(ended_BJ & (jnp.arange(count) < beam_size), scores_BJ / normalize(index + 1.0), _WORST)
  ended_scores_BJ = jnp.where(scores_BJ > _WORST, ended_scores_BJ, _WORST)
  kept_scores_BU, chosen_BU = jax.lax.top_k(jnp.concatenate([beams.kept_scores_BU, ended_scores_BJ], 1), beam_size)
  kept_BUT = _take(jnp.concatenate([beams.kept_BUT, sequences_BJT], 1), chosen_BU)

  # The best of the others are extended.
  live_scores_BU, chosen_BU = jax.lax.top_k(jnp.where(ended_BJ, _WORST, scores_BJ), beam_size)
  live_BUT, token_BU, parent_BU = _take((sequences_BJT, token_BJ, parent_BJ), chosen_BU)
  cache = jax.tree.map(lambda a: _take(a.reshape(B, beam_size, *a.shape[1:]), parent_BU).reshape(a.shape), cache)
  return _Beams(index + 1, live_BUT, live_scores_BU, kept_BUT, kept_scores_BU, token_BU, cache)


def non_autoregressive(
  model: nn.Module, variables: dict, source_BS: jax.Array, max_length: int, num_lengths: int = 1
) -> DecodeOutput:
  """The most probable token at each position, independently of the others (Gu et al. 2018, 3.4, argmax decoding).

  The sequences of several lengths are scored by the mean log probability of their tokens (Ghazvininejad et al. 2019,
  3.3), where Gu et al. use an autoregressive model.

  Args:
    model: has the methods `predict_lengths` and `decode_lengths`, as `zoo.models.nat`.
    variables: its variables.
    source_BS: token ids, padded with `pad_token_id`.
    max_length: maximum number of decoded tokens, with `eos_token_id`.
    num_lengths: U, how many of the most probable lengths to decode; 1 for a model without length prediction.

  Raises:
    ValueError: `max_length` is more than the model's, or there are fewer lengths.
  """
  c = model.config
  check_length(model, max_length)
  predicted: Any = model.apply(variables, source_BS, max_length, num_lengths, method="predict_lengths")
  encoded, length_BU = predicted
  B, n = length_BU.shape
  encoded = jax.tree.map(lambda a: jnp.repeat(a, n, 0), encoded)
  logits, _ = model.apply(variables, encoded, length_BU.reshape(-1), max_length, method="decode_lengths")
  logits_BUTV = logits[:, :max_length].reshape(B, n, max_length, -1)
  sequences_BUT = logits_BUTV.argmax(-1).astype(jnp.int32)
  ended_BUT = jnp.cumsum(sequences_BUT == c.eos_token_id, -1) - (sequences_BUT == c.eos_token_id) > 0
  valid_BUT = ~ended_BUT & (jnp.arange(max_length) < length_BU[..., None])
  gain_BUT = jax.nn.log_softmax(logits_BUTV).max(-1)
  scores_BU = (gain_BUT * valid_BUT).sum(-1) / valid_BUT.sum(-1)
  order_BU = jnp.argsort(-scores_BU, 1)
  sequences_BUT = jnp.take_along_axis(jnp.where(valid_BUT, sequences_BUT, c.pad_token_id), order_BU[..., None], 1)
  return DecodeOutput(sequences_BUT, jnp.take_along_axis(scores_BU, order_BU, 1))
