"""Decoding: each way against its definition, on a small language whose every sequence can be listed."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import raises

import zoo
from train.plan import macs
from zoo import decoding

PAD, BOS, EOS, WORDS, LENGTH, ROWS = 0, 2, 3, 4, 4, 5
VOCAB = 24
SPECIAL = dict(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, max_length=LENGTH)


def language(seed=0):
  """Logits [B, T, V, V] of the next token by position and last token; only four words and the end are possible."""
  logits = np.random.default_rng(seed).normal(0, 2, (ROWS, LENGTH, VOCAB, VOCAB)).astype(np.float32)
  logits[..., [t for t in range(VOCAB) if t != EOS and not WORDS <= t < WORDS + 4]] = -1e9
  return logits


def step(memory, cache, token_B, index):
  """The cache holds what was read, as a model's would, so that a beam that keeps another's cache is found out."""
  written = cache.at[:, index].set(token_B)
  row = jnp.arange(len(token_B))
  return memory[row, index, written[row, index]], written


@functools.cache
def compiled(method, **options):
  return jax.jit(functools.partial(method, step, **SPECIAL, **options))


def run(method, logits, key=(), **options):
  arrays = jnp.asarray(logits), jnp.zeros((len(logits), LENGTH), jnp.int32)
  decoded = compiled(method, **options)(*arrays, *([key] if method is decoding.sample else []))
  return np.asarray(decoded.sequences_BUT), np.asarray(decoded.scores_BU)


def log_softmax(x):
  return x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)


def every_sequence(logits_TVV):
  """All there are, with the logarithm of their probability; those truncated at the greatest length too."""
  gains = log_softmax(logits_TVV.astype(np.float64))
  for length in range(1, LENGTH + 1):
    ends = [EOS] if length < LENGTH else [EOS, *range(WORDS, WORDS + 4)]
    for tokens in itertools.product(*[range(WORDS, WORDS + 4)] * (length - 1), ends):
      before = (BOS, *tokens[:-1])
      yield tokens, sum(gains[t, a, b] for t, (a, b) in enumerate(zip(before, tokens, strict=True)))


def filled(tokens):
  return [*tokens, *[PAD] * (LENGTH - len(tokens))]


def test_greedy_takes_the_most_probable():
  logits = language()
  tokens, scores = run(decoding.greedy, logits)
  for b in range(ROWS):
    last, wanted, total = BOS, [], 0.0
    while len(wanted) < LENGTH and last != EOS:
      gains = log_softmax(logits[b, len(wanted), last])
      last = int(gains.argmax())
      wanted, total = [*wanted, last], total + gains[last]
    assert tokens[b, 0].tolist() == filled(wanted)
    np.testing.assert_allclose(scores[b, 0], total, rtol=1e-5)


def test_a_beam_of_one_is_greedy():
  for seed in range(5):
    tokens, scores = run(decoding.greedy, language(seed))
    beam, beam_scores = run(decoding.beam_search, language(seed), beam_size=1, length_penalty=0.0)
    np.testing.assert_array_equal(beam, tokens)
    np.testing.assert_allclose(beam_scores, scores, rtol=1e-5)


@pytest.mark.parametrize(("penalty", "alpha"), [("gnmt", 0.6), ("power", 1.0), ("power", 0.0), ("gnmt", 2.0)])
def test_a_beam_wide_enough_finds_the_best_of_all(penalty, alpha):
  """Of four words, 16 beginnings are all there are of two; a beam of 24 loses nothing that matters of three."""
  divisor = dict(gnmt=lambda n: ((5 + n) / 6) ** alpha, power=lambda n: n**alpha)[penalty]
  for seed in range(3):
    logits = language(seed)
    logits[..., WORDS + 2 : WORDS + 4] = -1e9  # of two words: at most 8 beginnings, 16 ends
    tokens, scores = run(
      decoding.beam_search, logits, beam_size=24, n_best=3, length_penalty=alpha, length_normalization=penalty
    )
    for b in range(ROWS):
      ranked = sorted(((total / divisor(len(s)), s) for s, total in every_sequence(logits[b])), reverse=True)
      np.testing.assert_allclose(scores[b], [score for score, _ in ranked[:3]], rtol=1e-4)
      assert tokens[b].tolist() == [filled(s) for _, s in ranked[:3]]


@pytest.mark.parametrize(("penalty", "alpha"), [("gnmt", 0.0), ("gnmt", 0.6), ("gnmt", 3.0), ("power", 1.0)])
def test_early_stopping_changes_no_result(penalty, alpha):
  options = dict(beam_size=3, n_best=3, length_penalty=alpha, length_normalization=penalty)
  for seed in range(5):
    logits = language(seed)
    logits[:, 0, BOS, EOS] += 3  # so that there is something to stop for
    ours, plain = (run(decoding.beam_search, logits, **options, early_stopping=s) for s in (True, False))
    np.testing.assert_array_equal(ours[0], plain[0])
    np.testing.assert_allclose(ours[1], plain[1], rtol=1e-6)


def test_early_stopping_waits_for_hypotheses_that_may_still_win():
  """An end that scores best of all that are as long; a penalty for being short lets the longer one overtake it."""
  logits = np.full((1, LENGTH, VOCAB, VOCAB), -1e9, np.float32)
  logits[:, 0, BOS, [EOS, WORDS]] = 1.5, 0.0
  logits[:, 1:-1, WORDS, WORDS] = logits[:, -1, WORDS, EOS] = 0.0
  tokens, scores = run(decoding.beam_search, logits, beam_size=1, length_penalty=2.0, length_normalization="power")
  assert tokens.ravel().tolist() == [*[WORDS] * (LENGTH - 1), EOS]
  np.testing.assert_allclose(scores, -np.log(1 + np.exp(1.5)) / LENGTH**2, rtol=1e-5)


def test_early_stopping_takes_one_step_where_the_end_is_certain():
  """Where the end is certain at once, one step is enough."""
  logits = language()
  logits[:, 0, BOS, :] = -1e9
  logits[:, 0, BOS, EOS] = 0
  steps = []

  def counted(memory, cache, token_B, index):
    jax.debug.callback(lambda _: steps.append(1), index)
    return step(memory, cache, token_B, index)

  impossible = np.where(logits < -1e8, -np.inf, logits)  # where even a beam of two has nothing left to follow
  for method, table, options in (
    (decoding.greedy, logits, {}),
    (decoding.beam_search, logits, dict(beam_size=1)),
    (decoding.beam_search, impossible, dict(beam_size=2)),
  ):
    steps.clear()
    jax.block_until_ready(
      method(counted, jnp.asarray(table), jnp.zeros((ROWS, LENGTH), jnp.int32), **SPECIAL, **options)
    )
    jax.effects_barrier()
    assert len(steps) == 1


def test_samples_have_the_model_s_distribution():
  logits = np.repeat(language()[:1], 4000, 0)
  tokens, scores = run(decoding.sample, logits, key=jax.random.key(0))
  found = [tuple(t for t in row if t != PAD) for row in tokens[:, 0].tolist()]
  likely = sorted(every_sequence(logits[0]), key=lambda pair: -pair[1])[:10]
  for sequence, total in likely:
    assert abs(found.count(sequence) / 4000 - np.exp(total)) < 0.03
  by_sequence = dict(every_sequence(logits[0]))
  np.testing.assert_allclose(scores[:50, 0], [by_sequence[s] for s in found[:50]], rtol=1e-4)


def test_samples_of_the_two_most_probable_tokens():
  """In the model's proportion, sharpened by the temperature."""
  logits = np.repeat(language()[:1], 4000, 0)
  tokens, _ = run(decoding.sample, logits, key=jax.random.key(1), top_k=2, temperature=0.7)
  first = logits[0, 0, BOS]
  likely = first.argsort()[-2:]
  wanted = np.exp(first[likely] / 0.7) / np.exp(first[likely] / 0.7).sum()
  found = [(tokens[:, 0, 0] == token).mean() for token in likely]
  assert sum(found) == 1
  np.testing.assert_allclose(found, wanted, atol=0.03)


def test_top_k_and_top_p_filter_improbable_tokens():
  logits = np.log(np.array([[0.5, 0.25, 0.15, 0.1]], np.float32))

  def kept(**options):
    return np.isfinite(decoding.filter_top_k_top_p(jnp.asarray(logits), **options))[0].tolist()

  assert kept() == [True] * 4
  assert kept(top_k=2) == [True, True, False, False]
  assert kept(top_p=0.6) == [True, True, False, False]
  assert kept(top_p=0.4) == [True, False, False, False]  # the first is always in
  assert kept(top_k=3, top_p=0.99) == [True, True, True, False]


def test_sampling_at_low_temperature_is_greedy():
  tokens, _ = run(decoding.sample, language(), key=jax.random.key(0), temperature=1e-3)
  np.testing.assert_array_equal(tokens, run(decoding.greedy, language())[0])


def test_invalid_arguments():
  with raises(ValueError, 25, 24):
    run(decoding.beam_search, language(), beam_size=25)
  with raises(ValueError, "length_normalization", "'gmnt'", "'gnmt'"):
    run(decoding.beam_search, language(), length_normalization="gmnt")
  with raises(ValueError, "n_best=5"):
    run(decoding.beam_search, language(), n_best=5)
  with raises(ValueError, "temperature=0"):
    run(decoding.sample, language(), key=jax.random.key(0), temperature=0.0)


# ---- with a Transformer ----


@functools.cache
def translator(**overrides):
  model = zoo.create("transformer/test", **overrides)
  source = np.random.default_rng(0).integers(4, 29, (4, 9)).astype(np.int32)
  for row, length in enumerate((9, 4, 1, 6)):
    source[row, length:] = model.config.pad_token_id
  shapes = jax.eval_shape(model.init, {"params": jax.random.key(0)}, source, source)
  draw = np.random.default_rng(1)
  return model, jax.tree.map(lambda s: draw.normal(0, 0.4, s.shape).astype(np.float32), shapes), source


def of_model(method, source, length=8, **options):
  model, variables, _ = translator()
  c = model.config
  parts = decoding.decode_step_of(model, variables, source, length)
  return method(
    *parts,
    bos_token_id=c.bos_token_id,
    eos_token_id=c.eos_token_id,
    pad_token_id=c.pad_token_id,
    max_length=length,
    **options,
  )


def test_decoding_with_a_cache_is_decoding_without():
  """Greedy decoding by the whole decoder over the whole target, again for each token."""
  model, variables, source = translator()
  decoded = of_model(decoding.greedy, source)
  whole = jax.jit(lambda target: model.apply(variables, source, target)[0])
  target = np.full((4, 9), model.config.pad_token_id, np.int32)
  target[:, 0], done = model.config.bos_token_id, np.zeros(4, bool)
  for i in range(8):
    target[:, i + 1] = np.where(done, model.config.pad_token_id, np.asarray(whole(target)[:, i]).argmax(-1))
    done |= target[:, i + 1] == model.config.eos_token_id
  np.testing.assert_array_equal(decoded.sequences_BUT[:, 0], target[:, 1:])


@pytest.mark.parametrize(
  ("method", "options"), [(decoding.greedy, {}), (decoding.beam_search, dict(beam_size=3, n_best=2))]
)
def test_a_sequence_is_decoded_as_if_alone(method, options):
  _, _, source = translator()
  together = of_model(method, source, **options)
  for row, length in ((1, 4), (2, 1)):
    alone = of_model(method, source[row : row + 1, :length], **options)
    np.testing.assert_array_equal(together.sequences_BUT[row], alone.sequences_BUT[0])
    np.testing.assert_allclose(together.scores_BU[row], alone.scores_BU[0], rtol=1e-4)


def test_a_beam_follows_its_own_cache():
  """Scores of a beam are those of its tokens in one forward pass."""
  model, variables, source = translator()
  c = model.config
  decoded = of_model(decoding.beam_search, source, beam_size=4, n_best=4, length_penalty=0.0)
  for n in range(4):
    tokens = np.asarray(decoded.sequences_BUT[:, n])
    before = np.concatenate([np.full((4, 1), c.bos_token_id), tokens[:, :-1]], 1)
    logits, _ = model.apply(variables, source, before)
    gains = np.take_along_axis(log_softmax(np.asarray(logits)), tokens[..., None], -1)[..., 0]
    real = np.cumsum(tokens == c.eos_token_id, 1) - (tokens == c.eos_token_id) == 0
    np.testing.assert_allclose(decoded.scores_BU[:, n], (gains * real).sum(1), rtol=1e-4)


@pytest.mark.parametrize("length", [4, 8, 16])
def test_the_cost_of_a_step_is_that_of_one_token(length):
  """One program for all positions; its work grows with the longest target by two products with its keys alone."""
  model, variables, source = translator()
  _, memory, cache = decoding.decode_step_of(model, variables, source, length)
  token_B, c = source[:, 0], model.config
  step = jax.jit(functools.partial(model.apply, method="decode_step"))
  for index in range(length):
    _, cache = step(variables, memory, cache, token_B, jnp.int32(index))
  assert step._cache_size() == 1
  D, S = c.width, source.shape[1]
  of_itself, of_memory, mlp = 4 * D * D + 2 * length * D, 2 * D * D + 2 * S * D, 2 * D * c.mlp_dim
  wanted = len(source) * (c.decoder_depth * (of_itself + of_memory + mlp) + D * c.vocab_size)
  assert macs.count_macs(step, variables, memory, cache, token_B, jnp.int32(length - 1)) == wanted


def test_a_model_s_beam_of_one_is_greedy():
  _, _, source = translator()
  beam, greedy = (
    of_model(decoding.beam_search, source, beam_size=1, length_penalty=0.0),
    of_model(decoding.greedy, source),
  )
  np.testing.assert_array_equal(beam.sequences_BUT, greedy.sequences_BUT)
  np.testing.assert_allclose(beam.scores_BU, greedy.scores_BU, rtol=1e-5)


def test_decoding_stays_within_the_model():
  with raises(ValueError, "max_length", 17, 1, 16):
    of_model(decoding.greedy, translator()[2], length=17)
