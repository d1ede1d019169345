"""Minimum-risk training: BLEU by sacrebleu, the gradient in closed form, and that training raises BLEU."""

import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sacrebleu
from support import raises

import zoo
from train import data
from train.objectives import minimum_risk
from train.step import init_state, make_step
from zoo import decoding

PAD, BOS, EOS = 0, 2, 3


def pair_batch(targets, S=5, T=6, vocab_size=29):
  B = len(targets)
  made = dict(valid=np.ones(B, bool), id=np.arange(B))
  source = np.random.default_rng(0).integers(4, vocab_size, (B, S)).astype(np.int32)
  target = np.array([[*t, EOS, *[PAD] * (T - 1 - len(t))] for t in targets], np.int32)
  for side, tokens in (("source", source), ("target", target)):
    real = (tokens != PAD).astype(np.int32)
    made |= {
      f"{side}_ids": tokens,
      f"{side}_segment_ids": real,
      f"{side}_position_ids": np.arange(tokens.shape[1]) * real,
    }
  return made


# ---- BLEU


def test_bleu_equals_sacrebleu():
  """Of random sentences of few words, so that many match, and some match several times."""
  rng = np.random.default_rng(0)
  B, T, S = 300, 9, 11
  candidate, reference = rng.integers(4, 8, (B, T)), rng.integers(4, 8, (B, S))
  reference[: B // 2, :T] = candidate[: B // 2]
  reference[: B // 2, 4] = 5
  lengths, reference_lengths = rng.integers(0, T + 1, B), rng.integers(1, S + 1, B)
  lengths[:40] = reference_lengths[:40] = np.arange(40) % T
  lengths[0] = reference_lengths[1] = 3
  found = jax.jit(minimum_risk.sentence_bleu)(candidate, lengths, reference, reference_lengths)
  bleu = sacrebleu.BLEU(tokenize="none", smooth_method="add-k", smooth_value=1, force=True)
  for b in range(B):
    ours, theirs = (
      " ".join(map(str, tokens[b, : n[b]])) for tokens, n in ((candidate, lengths), (reference, reference_lengths))
    )
    wanted = bleu.sentence_score(ours, [theirs]).score / 100
    np.testing.assert_allclose(found[b], wanted, rtol=1e-4, atol=1e-6, err_msg=f"{ours} / {theirs}")
  assert 0.2 < np.mean(found) < 0.8 and (np.asarray(found)[lengths == 0] == 0).all()


def test_length_ends_before_the_first_eos():
  tokens = np.array([[5, 6, EOS, PAD], [EOS, 5, EOS, 6], [5, PAD, 6, 7]])
  assert minimum_risk.length_before(jnp.asarray(tokens), EOS).tolist() == [2, 0, 4]


# ---- the risk, where every sequence can be listed

WORDS, T = (4, 5), 3


class Bigrams:
  """Logits of the next token by the last one; only two words and the end ever come."""

  config = types.SimpleNamespace(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, max_length=T, scan=False)

  def apply(self, variables, *inputs, method=None, rngs=None, mutable=None):
    logits_VV = jnp.where(np.isin(np.arange(6), [EOS, *WORDS]), variables["params"], -1e9)
    if method == "init_cache":
      return dict(source_ids=inputs[0]), jnp.zeros((len(inputs[0]), 1))
    if method == "decode_step":
      return logits_VV[inputs[2]], inputs[1]
    out = logits_VV[inputs[1]], {}
    return out if mutable is None else (out, {})


def every_sequence():
  for n in range(T + 1):
    for words in itertools.product(WORDS, repeat=n):
      yield (*words, *[EOS] * (n < T))


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_risk_and_gradient_equal_their_closed_forms(alpha):
  """With samples enough to have drawn every sequence; eq. 4 to 6, and eq. 8 for the gradient."""
  table = np.random.default_rng(1).normal(0, 0.3, (6, 6)).astype(np.float32)
  batch = pair_batch([[4, 5], [5]], T=T)
  objective = minimum_risk.Objective(num_samples=500, sharpness=alpha, reference=False)

  def risk(table):
    loss = objective(Bigrams(), {"params": table}, batch, jax.random.key(0))
    return loss.total, loss

  gradient, loss = jax.jit(jax.grad(risk, has_aux=True))(table)
  assert loss.metrics["candidates"] == 2 * 15 and loss.weight == 2

  masked = np.where(np.isin(np.arange(6), [EOS, *WORDS]), table.astype(np.float64), -np.inf)
  probability = np.exp(masked) / np.exp(masked).sum(-1, keepdims=True)
  bleu = sacrebleu.BLEU(tokenize="none", smooth_method="add-k", smooth_value=1, force=True)
  total, wanted, expected_bleu = 0.0, 0.0, 0.0
  for reference in ("4 5", "5"):
    P, risks, slopes = [], [], []
    for sequence in every_sequence():
      steps = list(zip((BOS, *sequence[:-1]), sequence, strict=True))
      P.append(np.prod([probability[step] for step in steps]))
      slope = np.zeros((6, 6))
      for last, token in steps:  # of log P
        slope[last] += np.eye(6)[token] - probability[last]
      slopes.append(slope)
      words = " ".join(str(token) for token in sequence if token != EOS)
      risks.append(1 - bleu.sentence_score(words, [reference]).score / 100)
    P, risks = np.array(P), np.array(risks)
    np.testing.assert_allclose(P.sum(), 1)
    Q = P**alpha / (P**alpha).sum()
    total, expected_bleu = total + Q @ risks, expected_bleu + P @ (1 - risks)
    wanted = wanted + alpha * np.einsum("n,nij->ij", Q * (risks - Q @ risks), np.array(slopes))
  np.testing.assert_allclose(loss.total, total, rtol=1e-4)
  np.testing.assert_allclose(gradient, wanted, rtol=1e-3, atol=1e-5)
  np.testing.assert_allclose(loss.metrics["bleu"], expected_bleu, atol=0.06)  # an estimate, from 500 samples


def test_the_reference_is_a_candidate_and_each_counts_once():
  """Where the model generates only one sequence, there are two candidates: that and the reference."""
  table = np.full((6, 6), -20, np.float32)
  table[BOS, 4] = table[4, EOS] = 0.0
  batch = pair_batch([[4, 5], [4]], T=T)
  loss = minimum_risk.Objective(num_samples=5, sharpness=0.1)(Bigrams(), {"params": table}, batch)
  assert loss.metrics["candidates"] == 2 + 1  # for the second pair the sample is the reference
  scores = np.log([1, np.exp(-20)])  # "4 </s>", and "4 5 </s>" with an unlikely 5 ...
  scores[1] += np.log(1 / 3)  # ... after which all is equally likely
  Q = np.exp(0.1 * scores) / np.exp(0.1 * scores).sum()
  one_word = sacrebleu.BLEU(tokenize="none", smooth_method="add-k", smooth_value=1, force=True)
  bleu = one_word.sentence_score("4", ["4 5"]).score / 100
  np.testing.assert_allclose(loss.total, Q[0] * (1 - bleu), rtol=1e-3)
  np.testing.assert_allclose(loss.metrics["bleu"], bleu + 1, rtol=1e-4)


# ---- with a Transformer


def transformer(batch, **overrides):
  model = zoo.create("transformer/test", width=16, mlp_dim=20, depth=1, decoder_depth=1, **overrides)
  init = jax.jit(model.init)
  return model, init({"params": jax.random.key(0)}, batch["source_ids"], batch["target_ids"])


def test_the_expected_bleu_rises():
  """Also of a scanned model, whose caches differ; padding has no weight."""
  targets = [[4, 5, 6, 7], [8, 9, 10], [11, 12, 13, 14, 15]]
  batch = pair_batch([*targets, [4]], vocab_size=17)
  batch["valid"][3] = False
  model, variables = transformer(batch, scan=True, vocab_size=17)
  judge = jax.jit(lambda v: minimum_risk.Objective(num_samples=40)(model, v, batch))
  before = judge(variables)
  assert before.weight == 3 and before.metrics["bleu"] / 3 < 0.15
  optimizer = optax.adam(5e-3)
  objective = minimum_risk.Objective(num_samples=10, sharpness=0.5)
  step, state = jax.jit(make_step(objective, model, optimizer)), init_state(variables, optimizer)
  for _ in range(60):
    state, metrics = step(state, batch, jax.random.key(1))
  after = judge({"params": state.params})
  assert after.metrics["bleu"] / 3 > before.metrics["bleu"] / 3 + 0.25
  assert metrics["loss"] < 0.6


@pytest.mark.parametrize("name", ["transformer/test", "seq2seq/test"])
def test_samples_do_not_depend_on_the_batch(name):
  """Parts of a batch add up to the whole, in training too, for all autoregressive models."""
  batch = pair_batch([[4, 5, 6, 7], [8, 9, 10]])
  model = zoo.create(name)
  variables = jax.jit(model.init)({"params": jax.random.key(0)}, batch["source_ids"], batch["target_ids"])
  loss = jax.jit(lambda b, key: minimum_risk.Objective(num_samples=3, sharpness=0.5)(model, variables, b, key))
  whole = loss(batch, jax.random.key(3))
  rows = [loss({k: v[i : i + 1] for k, v in batch.items()}, jax.random.key(3)) for i in range(2)]
  np.testing.assert_allclose(whole.total, sum(r.total for r in rows), rtol=1e-4)
  np.testing.assert_allclose(whole.metrics["bleu"], sum(r.metrics["bleu"] for r in rows), rtol=1e-4)
  assert whole.total != loss(batch, jax.random.key(4)).total


def test_sampling_takes_a_key_per_sequence():
  """A sample of a batch is the one its key gives by itself."""
  logits = jax.random.normal(jax.random.key(0), (4, 12))
  step = lambda memory, cache, token_B, index: (memory, cache)  # noqa: E731
  special = dict(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, max_length=5)
  keys = jax.random.split(jax.random.key(1), 4)
  together = decoding.sample(step, logits, logits, keys, **special).sequences_BUT
  for row in range(4):
    alone = decoding.sample(step, logits[row : row + 1], logits[:1], keys[row : row + 1], **special).sequences_BUT
    np.testing.assert_array_equal(together[row], alone[0])
  same = decoding.sample(step, logits[:1].repeat(4, 0), logits, keys, **special).sequences_BUT
  assert (same[0] != same[1]).any()


def test_incompatible_data_options_and_models_are_errors():
  pairs = data.make("translation", dataset="verses_en_es", batching="pack", source_length=16, target_length=16)
  with raises(ValueError, "data.batching", "'pack'"):
    pairs.check_fit(zoo.create("transformer/test", vocab_size=4000).config, minimum_risk.Objective())
  for wrong in (dict(num_samples=0), dict(num_samples=1, reference=False), dict(sharpness=0.0)):
    with raises(ValueError, "num_samples", "sharpness", "reference=True", next(iter(wrong.values()))):
      minimum_risk.Objective(**wrong)
  batch = pair_batch([[4, 5]])
  model = zoo.create("nat/test")
  with raises(ValueError, "zoo.decoding.non_autoregressive"):
    jax.eval_shape(
      lambda: minimum_risk.Objective()(
        model, model.init(jax.random.key(0), batch["source_ids"], batch["target_ids"]), batch
      )
    )
