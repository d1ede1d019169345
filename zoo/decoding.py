"""Decoding: the best, or a random, sequence of a model that tells what comes next.

Everything here is a function of such a model's step,

    step(memory, cache, token_B, index) -> (logits_BV of the tokens after, cache)

where `memory` stays as it is and `cache` grows; the first axis of all their arrays is B. `stepper` makes it of a model
of the zoo. All loops are `lax.while_loop`s of static shapes that end as soon as every sequence has ended, so they may
be compiled, and a step costs what one token costs. `parallel` is for models that say all tokens at once.
"""

import math
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


class Decoded(NamedTuple):
  """What was decoded: `n` sequences each, the best first.

  Attributes:
    token_BNT: [B, n, T] int32, with `eos` where it ended and `pad` after that.
    score_BN: [B, n] float32, the logarithm of the probability (in a beam search, over the length penalty; of tokens
      said at once, the mean). Where there are fewer than n, the rest is padding with the least float32.
  """

  token_BNT: jax.Array
  score_BN: jax.Array


def stepper(model: nn.Module, variables: dict, source_BS: jax.Array, max_length: int) -> tuple[Step, object, object]:
  """The step, memory and cache of a sequence-to-sequence model of the zoo.

  Args:
    model: has the methods `start` and `step`.
    variables: its variables.
    source_BS: tokens, filled up with `pad`.
    max_length: of what will be decoded.

  Raises:
    ValueError: `max_length` is more than the model's.
  """
  check_length(model, max_length)
  if getattr(model.config, "scan", False):
    # A loop over the blocks writes each cache in place, where a scan would copy them all.
    model = model.clone(config=replace(model.config, scan=False))
    variables = {collection: unstack_params(tree) for collection, tree in variables.items()}
  memory, cache = model.apply(variables, source_BS, max_length, method="start")
  # Else XLA moves the transposition of the memory's keys and values into the loop, to be made for each token anew.
  memory = jax.lax.optimization_barrier(memory)
  return partial(model.apply, variables, method="step"), memory, cache


def check_length(model: nn.Module, max_length: int) -> None:
  """Raises ValueError where a model cannot say so many tokens."""
  if not 0 < max_length <= model.config.max_length:
    raise ValueError(f"max_length is {max_length}; wanted 1 to the model's {model.config.max_length}")


def greedy(step: Step, memory: Any, cache: Any, *, bos: int, eos: int, pad: int, max_length: int) -> Decoded:
  """The most probable token at each place.

  Args:
    step, memory, cache: see the module's beginning.
    bos, eos, pad: tokens that begin a sequence, end it, and come after it.
    max_length: tokens at most, with `eos`.
  """
  return _token_by_token(step, memory, cache, lambda logits, _: most_probable(logits), bos, eos, pad, max_length)


def most_probable(logits_BV: jax.Array) -> jax.Array:
  """The token with the largest logit, the first if there are several: [B].

  It is looked for in the group of words that has it: XLA's CPU compiler makes vector instructions of a maximum, but not
  of the search for its place, which over a large vocabulary would take as long as all the rest of a step.
  """
  B, vocab_size = logits_BV.shape
  group = max(n for n in range(1, math.isqrt(vocab_size) + 1) if vocab_size % n == 0)
  logits_BGV = logits_BV.reshape(B, group, -1)
  best_B = logits_BGV.max(-1).argmax(-1)
  words_BV = jnp.take_along_axis(logits_BGV, best_B[:, None, None], 1)[:, 0]
  return best_B * words_BV.shape[1] + words_BV.argmax(-1)


def sample(
  step: Step,
  memory: Any,
  cache: Any,
  key: jax.Array,
  *,
  bos: int,
  eos: int,
  pad: int,
  max_length: int,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
) -> Decoded:
  """Random tokens by their probability.

  Args:
    step, memory, cache: see the module's beginning.
    key: of the randomness; one, or [B], one for each sequence.
    bos, eos, pad, max_length: see `greedy`.
    temperature: of the softmax; below 1 the probable gets more probable.
    top_k: only the k most probable tokens (Fan et al. 2018, 5.1), and those as probable as the last; 0 for all.
    top_p: only the most probable tokens that together have this probability (Holtzman et al. 2020, 3.1), likewise.

  Raises:
    ValueError: a temperature, top_k or top_p that makes no sense.
  """
  if not (temperature > 0 and top_k >= 0 and 0 < top_p <= 1):
    raise ValueError(
      f"temperature={temperature}, top_k={top_k}, top_p={top_p}; wanted temperature > 0, top_k >= 0, 0 < top_p <= 1"
    )

  def choose(logits_BV, index):
    logits_BV = keep_probable(logits_BV / temperature, top_k, top_p)
    if key.ndim:
      return jax.vmap(lambda key, logits_V: jax.random.categorical(jax.random.fold_in(key, index), logits_V))(
        key, logits_BV
      )
    return jax.random.categorical(jax.random.fold_in(key, index), logits_BV)

  return _token_by_token(step, memory, cache, choose, bos, eos, pad, max_length)


def keep_probable(logits_BV: jax.Array, top_k: int = 0, top_p: float = 1.0) -> jax.Array:
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


def _token_by_token(step, memory, cache, choose, bos, eos, pad, max_length) -> Decoded:
  B = jax.tree.leaves(memory)[0].shape[0]

  def proceed(carry):
    index, token_B, token_BT, score_B, done_B, cache = carry
    logits_BV, cache = step(memory, cache, token_B, index)
    token_B = jnp.where(done_B, pad, choose(logits_BV, index)).astype(jnp.int32)
    gain_B = jnp.take_along_axis(jax.nn.log_softmax(logits_BV), token_B[:, None], 1)[:, 0]
    score_B = score_B + jnp.where(done_B, 0.0, gain_B)
    return index + 1, token_B, token_BT.at[:, index].set(token_B), score_B, done_B | (token_B == eos), cache

  def goes_on(carry):
    index, _, _, _, done_B, _ = carry
    return (index < max_length) & ~done_B.all()

  empty_BT = jnp.full((B, max_length), pad, jnp.int32)
  start = (jnp.int32(0), jnp.full(B, bos, jnp.int32), empty_BT, jnp.zeros(B), jnp.zeros(B, bool), cache)
  _, _, token_BT, score_B, _, _ = jax.lax.while_loop(goes_on, proceed, start)
  return Decoded(token_BT[:, None], score_B[:, None])


# Length penalties: what the logarithm of a sequence's probability is divided by. Both grow with the length.
PENALTIES = {
  "power": lambda length, alpha: length**alpha,
  "gnmt": lambda length, alpha: ((5 + length) / 6) ** alpha,  # Wu et al. 2016, eq. 14
}


def check_beam(beam_size: int, n_best: int, length_penalty: float, vocab_size: int | None) -> None:
  """Raises ValueError for a beam that makes no sense, or is larger than the vocabulary; None where none is searched."""
  if not (beam_size >= 1 and 1 <= n_best <= beam_size and length_penalty >= 0):
    given = f"beam_size={beam_size}, n_best={n_best}, length_penalty={length_penalty}"
    raise ValueError(f"{given}; wanted beam_size >= 1, 1 <= n_best <= beam_size, length_penalty >= 0")
  if vocab_size is not None and beam_size > vocab_size:
    raise ValueError(f"a beam of {beam_size} is larger than the vocabulary of {vocab_size} tokens")


def beam_search(
  step: Step,
  memory: Any,
  cache: Any,
  *,
  bos: int,
  eos: int,
  pad: int,
  max_length: int,
  beam_size: int = 4,
  n_best: int = 1,
  length_penalty: float = 0.6,
  length_normalization: str = "gnmt",
  early_stop: bool = True,
) -> Decoded:
  """The best of many sequences: at every place only the `beam_size` best beginnings are followed (Graves 2012, 2.5).

  A sequence that ends is kept, if it is among the `beam_size` best at that place, and its score is the logarithm of its
  probability over the length penalty. At `max_length` what has not ended is kept as it is.

  Stopping early is safe: a beginning's probability only falls as it grows, and the penalty only rises, so no end of it
  can score more than its probability over the penalty of `max_length`. When that is less than the worst that is kept,
  for every example, nothing can change any more.

  Args:
    step, memory, cache: see the module's beginning.
    bos, eos, pad, max_length: see `greedy`.
    beam_size: beginnings that are followed, and ends that are kept.
    n_best: sequences to return, at most `beam_size`.
    length_penalty: exponent of the length penalty, at least 0; 0 for none, 0.6 in Vaswani et al. 2017, 6.1.
    length_normalization: "gnmt", or "power" for length ** length_penalty, as in Hugging Face's `generate`.
    early_stop: stop when nothing can change; False is for comparison.

  Raises:
    ValueError: a beam larger than the vocabulary, or an argument that makes no sense.
  """
  if length_normalization not in PENALTIES:
    raise ValueError(f"unknown length_normalization {length_normalization!r}{nearest(length_normalization, PENALTIES)}")
  B = jax.tree.leaves(memory)[0].shape[0]
  logits, _ = jax.eval_shape(step, memory, cache, jnp.zeros(B, jnp.int32), jnp.int32(0))
  vocab_size = logits.shape[1]
  check_beam(beam_size, n_best, length_penalty, vocab_size)
  divisor = partial(PENALTIES[length_normalization], alpha=length_penalty)
  memory, cache = jax.tree.map(lambda a: jnp.repeat(a, beam_size, 0), (memory, cache))
  worst = jnp.finfo(jnp.float32).min  # instead of -inf, of which a difference would be no number

  def take(tree_BK, index_BJ):
    """Of every example the beams with these numbers."""
    return jax.tree.map(lambda a: jax.vmap(lambda row, i: row[i])(a, index_BJ), tree_BK)

  def proceed(carry):
    index, token_BK, live_BKT, live_BK, kept_BKT, kept_BK, cache = carry
    logits, cache = step(memory, cache, token_BK.reshape(-1), index)
    gain_BKV = jax.nn.log_softmax(logits).reshape(B, beam_size, vocab_size)
    # Twice the beam, for at most half of them end.
    count = min(2 * beam_size, beam_size * vocab_size)
    score_BJ, place_BJ = jax.lax.top_k((live_BK[..., None] + gain_BKV).reshape(B, -1), count)
    parent_BJ, token_BJ = place_BJ // vocab_size, (place_BJ % vocab_size).astype(jnp.int32)
    sequence_BJT = take(live_BKT, parent_BJ).at[:, :, index].set(token_BJ)
    last = index + 1 == max_length
    ended_BJ = (token_BJ == eos) | last

    # What ended joins what is kept, if it is one of the first.
    candidate_BJ = jnp.where(ended_BJ & (jnp.arange(count) < beam_size), score_BJ / divisor(index + 1.0), worst)
    candidate_BJ = jnp.where(score_BJ > worst, candidate_BJ, worst)
    all_kept = jnp.concatenate([kept_BK, candidate_BJ], 1)
    kept_BK, chosen = jax.lax.top_k(all_kept, beam_size)
    kept_BKT = take(jnp.concatenate([kept_BKT, sequence_BJT], 1), chosen)

    # The rest goes on.
    live_BK, chosen = jax.lax.top_k(jnp.where(ended_BJ, worst, score_BJ), beam_size)
    live_BKT, token_BK, parent_BK = take((sequence_BJT, token_BJ, parent_BJ), chosen)
    cache = jax.tree.map(lambda a: take(a.reshape(B, beam_size, *a.shape[1:]), parent_BK).reshape(a.shape), cache)
    return index + 1, token_BK, live_BKT, live_BK, kept_BKT, kept_BK, cache

  def goes_on(carry):
    index, _, _, live_BK, _, kept_BK, _ = carry
    best_B = live_BK.max(1)
    possible = ((best_B > worst) & (best_B / divisor(float(max_length)) > kept_BK.min(1))).any()
    return (index < max_length) & (possible if early_stop else True)

  empty_BKT = jnp.full((B, beam_size, max_length), pad, jnp.int32)
  # At first all beams are the same, so only one of them counts.
  first_BK = jnp.full((B, beam_size), worst).at[:, 0].set(0.0)
  nothing_BK = jnp.full((B, beam_size), worst)
  start = (jnp.int32(0), jnp.full((B, beam_size), bos, jnp.int32), empty_BKT, first_BK, empty_BKT, nothing_BK, cache)
  _, _, _, _, kept_BKT, kept_BK, _ = jax.lax.while_loop(goes_on, proceed, start)
  return Decoded(kept_BKT[:, :n_best], kept_BK[:, :n_best])


def parallel(model: nn.Module, variables: dict, source_BS: jax.Array, max_length: int, lengths: int = 1) -> Decoded:
  """All tokens at once: at each place the most probable one, as if the others were not (Gu et al. 2018, 3.4, argmax).

  Of several lengths the sequences are scored by the mean logarithm of their tokens' probabilities (Ghazvininejad et
  al. 2019, 3.3), where Gu et al. have another model judge.

  Args:
    model: has the methods `propose` and `emit`, as `zoo.models.nat`.
    variables: its variables.
    source_BS: tokens, filled up with `pad`.
    max_length: of what is decoded, in tokens, with `eos`.
    lengths: n, how many lengths to try, the most probable ones; a model that cuts at its `eos` has but one.

  Raises:
    ValueError: `max_length` is more than the model's, or there are not so many lengths.
  """
  c = model.config
  check_length(model, max_length)
  proposed: Any = model.apply(variables, source_BS, max_length, lengths, method="propose")
  encoded, length_BN = proposed
  B, n = length_BN.shape
  encoded = jax.tree.map(lambda a: jnp.repeat(a, n, 0), encoded)
  logits, _ = model.apply(variables, encoded, length_BN.reshape(-1), max_length, method="emit")
  logits_BNTV = logits[:, :max_length].reshape(B, n, max_length, -1)
  token_BNT = logits_BNTV.argmax(-1).astype(jnp.int32)
  ended_BNT = jnp.cumsum(token_BNT == c.eos, -1) - (token_BNT == c.eos) > 0
  real_BNT = ~ended_BNT & (jnp.arange(max_length) < length_BN[..., None])
  gain_BNT = jax.nn.log_softmax(logits_BNTV).max(-1)
  score_BN = (gain_BNT * real_BNT).sum(-1) / real_BNT.sum(-1)
  order_BN = jnp.argsort(-score_BN, 1)
  token_BNT = jnp.take_along_axis(jnp.where(real_BNT, token_BNT, c.pad), order_BN[..., None], 1)
  return Decoded(token_BNT, jnp.take_along_axis(score_BN, order_BN, 1))
