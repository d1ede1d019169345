"""The non-autoregressive Transformer: attention, target lengths, loss, decoding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import raises

import zoo
from train import data
from train.objectives import nat, seq2seq
from train.step import init_state, make_step
from zoo import decoding, partitioning
from zoo.models.nat import length_class, uniform_copy

PAD, EOS, V, MAX = 0, 3, 29, 16
SMALL = dict(width=16, mlp_dim=20, depth=1, decoder_depth=1)
LENGTHS = ((7, 6), (4, 5), (5, 2))


def batch(lengths=LENGTHS, size=(7, 6), valid=None):
  """One pair a row, each ending with </s>; the same tokens whatever the size."""
  B = len(lengths)
  made = dict(valid=np.ones(B, bool) if valid is None else np.array(valid), id=np.arange(B))
  for which, side in enumerate(("source", "target")):
    position = np.arange(size[which])[None].repeat(B, 0)
    length = np.array([pair[which] for pair in lengths])[:, None]
    tokens = np.random.default_rng(which).integers(4, V, (B, MAX))[:, : size[which]]
    tokens = np.where(position == length - 1, EOS, np.where(position < length, tokens, PAD)).astype(np.int32)
    real = (position < length).astype(np.int32)
    made |= {f"{side}_ids": tokens, f"{side}_segment_ids": real, f"{side}_position_ids": position * real}
  return made


@functools.cache
def drawn(**overrides):
  """A small model, all of its parameters random; biases are small, for else every position predicts the same."""
  model = zoo.create("nat/test", **SMALL | overrides)
  pair = batch()
  shapes = jax.eval_shape(model.init, {"params": jax.random.key(0)}, pair["source_ids"], pair["target_ids"])
  draw = np.random.default_rng(2)

  def parameter(path, shape):
    value = draw.normal(0, 0.05 if path.endswith("bias") else 0.4, shape.shape)
    return jnp.asarray(value + path.endswith("scale"), jnp.float32)

  return model, partitioning.map_with_path(parameter, shapes)


@functools.cache
def applied(**overrides):
  """The same, compiled: outputs of sources and targets."""
  model, variables = drawn(**overrides)
  return functools.partial(jax.jit(model.apply), variables)


def log_softmax(x):
  return np.asarray(jax.nn.log_softmax(jnp.asarray(x)))


# ---- the model


def test_source_tokens_are_copied_evenly():
  """Round(S t / T) by floats, which are exact here; halves go up."""
  for S, T in ((7, 6), (4, 5), (5, 2), (3, 9), (9, 3), (6, 6), (1, 4), (4, 1), (2, 16)):
    found = np.asarray(uniform_copy(jnp.array([S]), jnp.array([T]), 16))[0]
    wanted = [max(1, int(np.floor(S * t / T + 0.5))) - 1 for t in range(1, T + 1)]
    assert found[:T].tolist() == wanted
    assert wanted[-1] == S - 1 and found.max() == S - 1 and (np.diff(found) >= 0).all()
    if S == T:
      assert wanted == list(range(S))


@pytest.mark.parametrize("length", ["classifier", "none"])
def test_no_target_is_read(length):
  apply, pair = applied(length_prediction=length), batch()
  other = np.where(pair["target_ids"] > 0, 9, 0)
  one, two = (apply(pair["source_ids"], target)[0] for target in (pair["target_ids"], other))
  np.testing.assert_array_equal(one, two)
  assert one.shape == (3, MAX if length == "none" else 6, V)


@pytest.mark.parametrize("positions", ["sincos", "t5"])
def test_every_position_attends_to_every_copied_token(positions):
  """By gradients of every output to every row of the decoder's table; the source's table is another."""
  model, variables = drawn(tie_embeddings="none", position_embedding=positions)
  source, target = np.arange(4, 10)[None], np.ones((1, 6), np.int32)

  def read(table):
    params = variables["params"] | {"target_embed": {"embedding": table}}
    return model.apply({"params": params}, source, target)[0][0].sum(-1)

  influence_TV = np.abs(jax.jit(jax.jacobian(read))(variables["params"]["target_embed"]["embedding"])).max(-1)
  assert (influence_TV[:, 4:10] > 1e-6).all() and not influence_TV[:, 10:].any()
  # Positions are distinguished on both sides: reversed tokens give another output at each.
  apply = applied(tie_embeddings="none", position_embedding=positions)
  before, after = (np.asarray(apply(s, target)[0]) for s in (source, source[:, ::-1]))
  assert np.abs(before - after[:, ::-1]).max() > 1e-3


@pytest.mark.parametrize("length", ["classifier", "none"])
def test_padding_changes_no_output(length):
  _, variables = drawn(length_prediction=length)
  one, two = (
    applied(length_prediction=length)(b["source_ids"], b["target_ids"]) for b in (batch(), batch(size=(11, 9)))
  )
  for row, (_, T) in enumerate(LENGTHS):
    T = MAX if length == "none" else T
    np.testing.assert_allclose(one[0][row, :T], two[0][row, :T], rtol=1e-4, atol=1e-5)
  if length == "classifier":
    np.testing.assert_allclose(one[1]["length"], two[1]["length"], rtol=1e-4, atol=1e-5)
    tokens = np.asarray(one[1]["tokens"])
    means = np.stack([tokens[row, :S].mean(0) for row, (S, _) in enumerate(LENGTHS)])
    head = variables["params"]["length"]
    np.testing.assert_allclose(one[1]["length"], means @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-5)


# ---- the loss


class Model:
  """Predicts fixed logits."""

  decode_lengths = None

  def __init__(self, logits, length_logits=None, length_prediction="classifier"):
    self.config = zoo.create("nat/test", length_prediction=length_prediction).config
    self.out = logits, {"length": length_logits}

  def apply(self, variables, source, target, source_row, target_row, rngs=None, mutable=None):
    return self.out if mutable is None else (self.out, {})


def test_the_loss_is_the_likelihood_of_length_and_tokens():
  rng = np.random.default_rng(0)
  logits, lengths = rng.normal(size=(3, 6, V)).astype("f"), rng.normal(size=(3, 7)).astype("f")
  lengths[0, 2] = 9  # the first sentence's is predicted correctly: one less than the source's
  pair = batch(valid=(True, True, False))
  loss = nat.Objective()(Model(logits, lengths), {}, pair)
  nll = -sum(log_softmax(logits)[b, t, pair["target_ids"][b, t]] for b, n in ((0, 6), (1, 5)) for t in range(n))
  length_nll = -sum(log_softmax(lengths)[b, c] for b, c in ((0, 3 - 1), (1, 3 + 1)))
  assert loss.weight == 11
  np.testing.assert_allclose([loss.total, loss.metrics["nll"]], [nll + length_nll, nll], rtol=1e-5)
  right = [lengths[0].argmax() == 2, lengths[1].argmax() == 4]
  assert loss.metrics["length_accuracy"] == 6 * right[0] + 5 * right[1] and right[0]
  twice = nat.Objective(length_weight=2.0)(Model(logits, lengths), {}, pair)
  np.testing.assert_allclose(twice.total, nll + 2 * length_nll, rtol=1e-5)
  smooth = nat.Objective(label_smoothing=0.1)(Model(logits, lengths), {}, pair, jax.random.key(0))
  target = 0.9 * np.eye(V)[pair["target_ids"]] + 0.1 / V
  wanted = -(target * log_softmax(logits)).sum(-1)[:2][pair["target_segment_ids"][:2] > 0].sum()
  np.testing.assert_allclose(smooth.total, wanted + length_nll, rtol=1e-5)
  # Differences of length beyond those of the classifier are clipped to them.
  assert length_class(jnp.array([9, 1, 5]), jnp.array([2, 8, 6]), 3).tolist() == [0, 6, 4]


def test_without_length_prediction_padding_is_predicted_as_eos():
  logits = np.random.default_rng(0).normal(size=(3, MAX, V)).astype("f")
  logits[1, :, EOS] = -9
  logits[1, 4, EOS] = 9  # so the second sentence's length is predicted correctly
  logits[0, 0, EOS] = 9  # and the first one's is not
  pair = batch(valid=(True, True, False))
  loss = nat.Objective()(Model(logits, length_prediction="none"), {}, pair)
  target = np.full((2, MAX), EOS)
  for b, n in ((0, 6), (1, 5)):
    target[b, :n] = pair["target_ids"][b, :n]
  nll = -np.take_along_axis(log_softmax(logits)[:2], target[..., None], -1)[..., 0]
  np.testing.assert_allclose(loss.total, nll.sum(), rtol=1e-5)
  # Metrics and weight are of the target's own tokens, and so comparable with other models'.
  np.testing.assert_allclose(loss.metrics["nll"], nll[0, :6].sum() + nll[1, :5].sum(), rtol=1e-5)
  assert loss.weight == 11 and loss.metrics["length_accuracy"] == 5


@pytest.mark.parametrize("length", ["classifier", "none"])
def test_the_sum_over_rows_is_the_whole_whatever_the_padding(length):
  model, variables = drawn(length_prediction=length)
  loss = jax.jit(lambda b: nat.Objective()(model, variables, b))
  whole = loss(batch())
  wide = batch(size=(11, 9))
  rows = [loss({k: v[i : i + 1] for k, v in wide.items()}) for i in range(3)]
  np.testing.assert_allclose(whole.total, sum(r.total for r in rows), rtol=1e-5)
  for name, value in whole.metrics.items():
    np.testing.assert_allclose(value, sum(r.metrics[name] for r in rows), rtol=1e-5, err_msg=name)


def test_incompatible_data_and_models():
  pairs = data.make("translation", dataset="verses_en_es", batching="pack", source_length=16, target_length=16)
  config = zoo.create("nat/test", vocab_size=4000).config
  with raises(ValueError, "data.batching='pack'"):
    pairs.check_fit(config, nat.Objective())
  pairs.check_fit(config, seq2seq.Objective())
  model = zoo.create("transformer/test")
  with raises(ValueError, "'nat'"):
    nat.Objective()(model, {}, batch())
  with raises(ValueError, "length_prediction", "'cutt'"):
    zoo.create("nat/test", length_prediction="cutt")
  with raises(ValueError, "label_smoothing", 1.0, 0, 1):
    nat.Objective(label_smoothing=1.0)


# ---- decoding


def decoded(lengths=1, max_length=8, **overrides):
  model, variables = drawn(**overrides)
  run = jax.jit(functools.partial(decoding.non_autoregressive, model, max_length=max_length, num_lengths=lengths))
  return jax.tree.map(np.asarray, run(variables, batch()["source_ids"]))


@pytest.mark.parametrize("lengths", [1, 3])
def test_the_most_probable_token_of_each_position_at_the_most_probable_lengths(lengths):
  """Each length by itself."""
  source = batch()["source_ids"]
  tokens, scores = decoded(lengths)
  for row, (S, _) in enumerate(LENGTHS):
    found = []
    length_logits = np.asarray(applied()(source, np.ones((3, 8), np.int32))[1]["length"][row])
    for number in np.argsort(-length_logits)[:lengths]:
      T = min(max(S + number - 3, 1), 8)
      positions = (np.arange(8) < T).astype(np.int32)[None].repeat(3, 0)
      gains = log_softmax(applied()(source, positions)[0][row, :T])
      best = gains.argmax(-1).tolist()
      T = best.index(EOS) + 1 if EOS in best else T
      found.append((gains.max(-1)[:T].mean(), [*best[:T], *[PAD] * (8 - T)]))
    found.sort(reverse=True)
    np.testing.assert_allclose(scores[row], [score for score, _ in found], rtol=1e-4)
    assert tokens[row].tolist() == [best for _, best in found]


def test_without_length_prediction_a_sequence_ends_at_its_first_eos():
  source = batch()["source_ids"]
  logits = np.asarray(applied(length_prediction="none")(source, source)[0])
  end = int(logits[0, 2].argmax())  # any word may be the end: this one is not in all rows
  for max_length in (5, MAX):
    tokens, scores = decoded(4, max_length, length_prediction="none", eos_token_id=end)
    assert tokens.shape == (3, 1, max_length)
    lengths = []
    for row in range(3):
      best = logits[row, :max_length].argmax(-1).tolist()
      n = best.index(end) + 1 if end in best else max_length
      lengths.append(n)
      assert tokens[row, 0].tolist() == [*best[:n], *[PAD] * (max_length - n)]
      np.testing.assert_allclose(scores[row, 0], log_softmax(logits)[row, :n].max(-1).mean(), rtol=1e-4)
    assert len(set(lengths)) > 1, "the test shows nothing"


def test_invalid_decoding():
  with raises(ValueError, "max_length", 17, 1, 16):
    decoded(max_length=17)
  with raises(ValueError, "lengths", 8, 7):
    decoded(lengths=8)
  model, variables = drawn()
  with raises(ValueError, "zoo.decoding.non_autoregressive"):
    decoding.decode_step_of(model, variables, batch()["source_ids"], 8)


@pytest.mark.parametrize("length", ["classifier", "none"])
def test_it_learns_a_word_by_word_translation(length):
  """A language of other words, one more at the end: from the step to the decoder."""
  model = zoo.create("nat/test", width=32, mlp_dim=64, depth=1, decoder_depth=1, length_prediction=length, max_length=8)
  rng = np.random.default_rng(0)

  def language(count=32):
    made = batch([(n, n + 1) for n in rng.integers(2, 7, count)], size=(6, 7))
    words = np.where(
      made["source_ids"] > EOS, rng.integers(4, 12, made["source_ids"].shape), made["source_ids"]
    ).astype(np.int32)
    other = np.pad(np.where(words == EOS, 25, np.where(words > EOS, words + 10, PAD)), ((0, 0), (0, 1)))
    return made | dict(source_ids=words, target_ids=np.where(made["target_ids"] == EOS, EOS, other).astype(np.int32))

  pair = language()
  variables = jax.jit(model.init)({"params": jax.random.key(0)}, pair["source_ids"], pair["target_ids"])
  optimizer = optax.adam(5e-3)
  step, state = jax.jit(make_step(nat.Objective(), model, optimizer)), init_state(variables, optimizer)
  for _ in range(200):
    state, metrics = step(state, language(), jax.random.key(0))
  assert metrics["accuracy"] > 0.9 and metrics["length_accuracy"] > 0.9
  new = language()
  found = jax.jit(lambda v, s: decoding.non_autoregressive(model, v, s, 7))({"params": state.params}, new["source_ids"])
  assert (found.sequences_BUT[:, 0] == new["target_ids"]).all(1).mean() > 0.7
