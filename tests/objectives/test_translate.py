"""The translation objective: cross-entropy of the right tokens, and each training trick by its effect."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import raises

import zoo
from train.objectives import seq2seq
from zoo.layers.sequence_info import SequenceInfo

B, S, T, V = 3, 7, 6, 29


def batch(lengths=((7, 6), (4, 3), (5, 5)), valid=(True, True, True)):
  """One pair a row, each ending with </s>."""
  made = dict(valid=np.array(valid), id=np.arange(B))
  for side, size, which in (("source", S, 0), ("target", T, 1)):
    position = np.arange(size)[None].repeat(B, 0)
    real = position < np.array([pair[which] for pair in lengths])[:, None]
    tokens = np.random.default_rng(which).integers(4, V, (B, size))
    made |= {
      f"{side}_ids": np.where(real, tokens, 0),
      f"{side}_segment_ids": real.astype(int),
      f"{side}_position_ids": position * real,
    }
  return made


OWN = 1  # the token that the model below samples, which no target has


class Model:
  """Records its inputs, and returns fixed logits."""

  def __init__(self, logits, alignment=None):
    self.config, self.calls, self.logits = zoo.create("transformer/test").config, [], logits
    self.aux = {} if alignment is None else {"decoder/alignment": alignment}

  def apply(self, variables, source, inputs, *rest, rngs=None, mutable=None, method=None):
    self.calls.append(np.asarray(inputs))
    out = self.logits, self.aux
    if method == "scheduled_sampling_inputs":
      own, *rest = rest
      out = jnp.where(own, OWN, inputs)
    assert all(isinstance(row, SequenceInfo) for row in rest) and len(rest) == 2
    return out if mutable is None else (out, {})


def draw(*shape):
  return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


def log_softmax(x):
  return np.asarray(jax.nn.log_softmax(x))


def test_cross_entropy_over_target_tokens():
  logits, data = draw(B, T, V), batch(valid=(True, True, False))
  model = Model(logits)
  loss = seq2seq.Objective(label_smoothing=0.3)(model, {}, data)  # evaluation: not smoothed
  wanted = [-log_softmax(logits)[b, t, data["target_ids"][b, t]] for b, n in ((0, 6), (1, 3)) for t in range(n)]
  assert loss.weight == len(wanted) == 9
  np.testing.assert_allclose([loss.total, loss.metrics["nll"]], sum(wanted), rtol=1e-5)
  hits = sum(logits[b, t].argmax() == data["target_ids"][b, t] for b, n in ((0, 6), (1, 3)) for t in range(n))
  assert loss.metrics["accuracy"] == hits
  np.testing.assert_array_equal(model.calls[0][:, 0], model.config.bos_token_id)
  np.testing.assert_array_equal(model.calls[0][0, 1:], data["target_ids"][0, :-1])


def test_every_sequence_of_a_packed_row_begins_with_bos():
  position = np.array([[0, 1, 2, 0, 1, 0]])
  assert seq2seq.shift(np.array([[5, 6, 3, 7, 3, 0]]), position, 2).tolist() == [[2, 5, 6, 2, 7, 2]]


def test_label_smoothing_is_uniform_over_the_vocabulary():
  logits, data = draw(B, T, V), batch()
  loss = seq2seq.Objective(label_smoothing=0.1)(Model(logits), {}, data, jax.random.key(0))
  target = 0.9 * np.eye(V)[data["target_ids"]] + 0.1 / V
  wanted = -(target * log_softmax(logits)).sum(-1)[data["target_segment_ids"] > 0].sum()
  np.testing.assert_allclose(loss.total, wanted, rtol=1e-5)
  assert loss.metrics["nll"] != loss.total


def test_scheduled_sampling_reads_its_own_tokens():
  """At its rate, and never where a sequence begins; not in evaluation."""
  logits, data = draw(B, T, V), batch(((S, T),) * B)
  true = np.concatenate([np.full((B, 1), 2), data["target_ids"][:, :-1]], 1)
  swapped = []
  for seed in range(60):
    model = Model(logits)
    seq2seq.Objective(scheduled_sampling=0.3)(model, {}, data, jax.random.key(seed))
    first, second = model.calls
    np.testing.assert_array_equal(first, true)
    assert ((second == true) | (second == OWN)).all() and (second[:, 0] == 2).all()
    swapped.append(second[:, 1:] == OWN)
  assert abs(np.mean(swapped) - 0.3) < 0.05
  model = Model(logits)
  seq2seq.Objective(scheduled_sampling=0.3)(model, {}, data)
  assert len(model.calls) == 1


SMALL = {
  "transformer/test": dict(width=8, num_heads=2, mlp_dim=8, depth=1, decoder_depth=1),
  "seq2seq/test": dict(width=8, embed_dim=6, depth=1),
}


@functools.cache
def small(name):
  model, data = zoo.create(name, **SMALL[name]), batch()
  arrays = [jnp.asarray(data[f"{side}_ids"]) for side in ("source", "target")]
  return model, jax.jit(model.init)({"params": jax.random.key(0)}, *arrays)


@pytest.mark.parametrize("name", SMALL)
def test_no_gradient_flows_through_sampled_tokens(name):
  """With a model: the gradient equals that of teacher forcing with the sampled tokens."""
  (model, variables), data = small(name), batch()

  class Spy:
    config = model.config

    def apply(self, *arguments, **options):
      out = model.apply(*arguments, **options)
      if options.get("method"):
        self.mixed = out[0]
      return out

  class Reader(Spy):
    def apply(self, variables, source, inputs, *rest, **options):
      return model.apply(variables, source, mixed, *rest, **options)

  @functools.partial(jax.jit, static_argnums=1)
  @functools.partial(jax.grad, has_aux=True)
  def gradient(variables, case):
    objective, model = (seq2seq.Objective(scheduled_sampling=0.5), Spy()) if case else (seq2seq.Objective(), Reader())
    return objective(model, variables, data, jax.random.key(3)).total, getattr(model, "mixed", None)

  found, mixed = gradient(variables, True)
  assert (mixed != seq2seq.shift(data["target_ids"], data["target_position_ids"], 2)).any()
  wanted, _ = gradient(variables, False)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, wanted)


def test_guided_attention_prefers_the_diagonal():
  data = batch(((6, 6), (6, 6), (6, 6)))
  rows = seq2seq.rows(data)
  far = np.asarray(seq2seq.off_diagonal(*rows, 0.2))
  assert far.shape == (B, T, S)
  np.testing.assert_allclose(far[0].diagonal(), 0, atol=1e-6)
  np.testing.assert_allclose(far[0, 0, 3], 1 - np.exp(-((3 / 6) ** 2) / (2 * 0.2**2)), rtol=1e-5)
  straight, crossed = np.eye(T, S)[None].repeat(B, 0), np.eye(T, S)[None, ::-1].repeat(B, 0)
  objective, logits = seq2seq.Objective(guided_attention=2.0), np.zeros((B, T, V), np.float32)
  key = jax.random.key(0)
  losses = [objective(Model(logits, alignment=a), {}, data, key).total for a in (straight, crossed)]
  assert losses[0] < losses[1]
  np.testing.assert_allclose(losses[0], 18 * np.log(V), rtol=1e-5)
  with raises(ValueError, "guided_width", 0.0):
    seq2seq.Objective(guided_width=0.0)
  with raises(ValueError, "guided_attention"):
    objective(Model(logits), {}, data, key)


def test_guided_attention_is_per_sequence_of_a_packed_row():
  rows = [SequenceInfo(np.array([[1, 1, 2, 2, 2]]), np.array([[0, 1, 0, 1, 2]]))] * 2
  far = np.asarray(seq2seq.off_diagonal(*rows, 0.2))[0]
  np.testing.assert_allclose(far[:2, :2].diagonal(), 0, atol=1e-6)
  np.testing.assert_allclose(far[2:, 2:].diagonal(), 0, atol=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_padding_and_packing_do_not_change_the_loss(name):
  """With a model: a packed row's loss is the sum of its pairs'."""
  (model, variables), data = small(name), batch()
  loss = jax.jit(lambda data: seq2seq.Objective()(model, variables, data).total)
  whole = loss(data)
  pairs = [{k: v[b : b + 1] for k, v in data.items()} for b in range(B)]
  np.testing.assert_allclose(whole, sum(loss(pair) for pair in pairs), rtol=1e-5)
  packed = dict(valid=np.array([True]), id=np.arange(1))
  for side in ("source", "target"):
    real = [data[f"{side}_segment_ids"][b] > 0 for b in range(B)]
    packed[f"{side}_ids"] = np.concatenate([data[f"{side}_ids"][b][real[b]] for b in range(B)])[None]
    packed[f"{side}_position_ids"] = np.concatenate([np.arange(r.sum()) for r in real])[None]
    packed[f"{side}_segment_ids"] = np.concatenate([np.full(r.sum(), b + 1) for b, r in enumerate(real)])[None]
  np.testing.assert_allclose(loss(packed), whole, rtol=1e-5)


def test_an_invalid_label_smoothing_is_an_error():
  with raises(ValueError, "label_smoothing", 1.5, "0 <= label_smoothing < 1"):
    seq2seq.Objective(label_smoothing=1.5)
