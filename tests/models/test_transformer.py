"""The Transformer: dependence of outputs on inputs, packing, what the decoder reads, copies."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import raises

import zoo
from train.objectives import seq2seq
from train.step import init_state, make_step
from zoo import partitioning
from zoo.layers import pointer
from zoo.layers.sequence_info import SequenceInfo

SOURCE = np.random.default_rng(0).integers(4, 29, (3, 7)).astype(np.int32)
TARGET = np.random.default_rng(1).integers(4, 29, (3, 6)).astype(np.int32)
SMALL = dict(width=16, mlp_dim=20, depth=2, decoder_depth=2)


@functools.cache
def drawn(**overrides):
  """A small model, all of its parameters random."""
  model = zoo.create("transformer/test", **SMALL | overrides)
  shapes = jax.eval_shape(model.init, {"params": jax.random.key(0)}, SOURCE, TARGET)
  draw = np.random.default_rng(2)
  return model, jax.tree.map(lambda s: draw.normal(0, 0.4, s.shape).astype(np.float32), shapes)


def logits(source=SOURCE, target=TARGET, rows=(), **overrides):
  model, variables = drawn(**overrides)
  return np.asarray(model.apply(variables, source, target, *rows)[0])


@pytest.mark.parametrize("order", ["post", "pre"])
def test_no_output_depends_on_later_tokens(order):
  """By gradients of every output to every embedded target."""
  model, variables = drawn(norm_position=order, final_norm=order == "pre", tie_embeddings="none")

  def read(table):
    params = variables["params"] | {"target_embed": {"embedding": table}}
    target = jnp.arange(6)[None]  # every position has a token, and a row of the table, of its own
    return model.apply({"params": params}, SOURCE[:1], target)[0][0].sum(-1)

  influence_TV = np.abs(jax.jacobian(read)(variables["params"]["target_embed"]["embedding"])).max(-1)[:, :6]
  assert (influence_TV[np.triu_indices(6, 1)] == 0).all()
  assert (influence_TV[np.tril_indices(6)] > 1e-6).all()


def test_padding_changes_no_output():
  source = SOURCE.copy()
  source[0, 4:] = 0
  np.testing.assert_allclose(logits(source)[:1], logits(SOURCE[:1, :4], TARGET[:1]), rtol=1e-4, atol=1e-5)
  assert np.abs(logits(source)[0] - logits()[0]).max() > 1e-3


def test_packed_sequences_are_independent():
  """Packed, two pairs and padding give what each gives alone."""
  source = np.array([[*SOURCE[0, :3], *SOURCE[1, :2], 0, 0]], np.int32)
  target = np.array([[*TARGET[0, :2], *TARGET[1, :3], 0]], np.int32)
  of_source = SequenceInfo(np.array([[1, 1, 1, 2, 2, 0, 0]]), np.array([[0, 1, 2, 0, 1, 0, 0]]))
  of_target = SequenceInfo(np.array([[1, 1, 2, 2, 2, 0]]), np.array([[0, 1, 0, 1, 2, 0]]))
  for overrides in (
    dict(),
    dict(position_embedding="learned", cross_attention="mix"),
    dict(position_embedding="t5"),
    dict(position_embedding="rotary"),
  ):
    packed = logits(source, target, (of_source, of_target), **overrides)[0]
    one, two = (logits(SOURCE[i : i + 1, : 3 - i], TARGET[i : i + 1, : 2 + i], **overrides)[0] for i in (0, 1))
    np.testing.assert_allclose(packed[:2], one, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(packed[2:5], two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("positions", ["sincos", "learned", "rotary", "alibi", "t5", "none"])
def test_decode_step_is_a_position_of_the_forward_pass(positions):
  model, variables = drawn(position_embedding=positions)
  wanted, _ = model.apply(variables, SOURCE, TARGET)
  memory, cache = model.apply(variables, SOURCE, 8, method="init_cache")
  step = jax.jit(functools.partial(model.apply, method="decode_step"))
  for i in range(6):
    logits_BV, cache = step(variables, memory, cache, TARGET[:, i], jnp.int32(i))
    np.testing.assert_allclose(logits_BV, wanted[:, i], rtol=1e-4, atol=1e-5)


def test_the_encoder_depends_on_positions():
  """Unless there are no positions; only the encoder, since the causal mask of the decoder also gives positions."""
  order = np.array([2, 0, 1, 3, 4, 5, 6])
  for positions in ("sincos", "learned", "rotary", "alibi", "t5", "none"):
    model, variables = drawn(position_embedding=positions)
    one, two = (np.asarray(model.apply(variables, s, method="encode")[0].memory) for s in (SOURCE, SOURCE[:, order]))
    difference = np.abs(one[:, order] - two).max()
    assert difference < 1e-5 if positions == "none" else difference > 1e-3, positions


@pytest.mark.parametrize(
  ("norm", "scan"),
  [("rms", True), *itertools.product(("batch", "power"), (False, True))],  # these keep statistics
)
def test_norms_other_than_by_layer(norm, scan):
  """Trained by the step: those that keep statistics change them, forward and backward; padding is in none of them."""
  overrides = SMALL | dict(norm=norm, norm_position="pre", final_norm=True, scan=scan)
  model = zoo.create("transformer/test", **overrides)
  variables = jax.jit(model.init)({"params": jax.random.key(0)}, SOURCE, TARGET)
  optimizer = optax.sgd(0.1)
  valid, zeros = np.ones(3, bool), np.zeros((3, 1), int)
  batch = dict(source_ids=SOURCE, target_ids=TARGET, valid=valid, id=np.arange(3))
  for side, length in (("source", 7), ("target", 6)):
    batch |= {f"{side}_segment_ids": np.ones((3, length), int), f"{side}_position_ids": zeros + np.arange(length)}
  step = jax.jit(make_step(seq2seq.Objective(), model, optimizer))
  state, metrics = step(init_state(variables, optimizer), batch, jax.random.key(1))
  state, later = step(state, batch, jax.random.key(1))
  assert later["loss"] < metrics["loss"]
  statistics = partitioning.flatten(state.model_state)
  assert bool(statistics) == (norm != "rms")
  begun = partitioning.flatten({k: v for k, v in variables.items() if k != "params"})
  for path, value in statistics.items():
    assert np.abs(value - begun[path]).max() > 1e-6, path  # "gradient" too, which comes from the backward pass
  apply, trained = jax.jit(model.apply), {"params": state.params, **state.model_state}
  wanted, _ = apply(trained, SOURCE, TARGET)
  again, _ = apply(trained, np.pad(SOURCE, ((0, 0), (0, 4))), TARGET)
  np.testing.assert_allclose(again, wanted, rtol=1e-4, atol=1e-5)


def test_the_encoder_layer_that_the_decoder_reads():
  """All choices by hand: a decoder over given memories, as its cross-attention finds them in aux."""
  for cross in ("last", "layer", "mix"):
    model, variables = drawn(cross_attention=cross)
    encoded, aux = model.apply(variables, SOURCE, method="encode")
    blocks = [np.asarray(aux["block_00"]), np.asarray(aux["block_01"])]
    if cross == "last":
      np.testing.assert_array_equal(encoded.memory, aux["tokens"])
      np.testing.assert_allclose(aux["tokens"], blocks[1], rtol=1e-6)  # post-norm: the last block has normalised
    elif cross == "layer":
      for memory, block in zip(encoded.memory, blocks, strict=True):
        np.testing.assert_array_equal(memory, block)
    else:
      share = jax.nn.softmax(variables["params"]["mix"])
      for memory, s in zip(encoded.memory, share, strict=True):
        np.testing.assert_allclose(memory, s[0] * blocks[0] + s[1] * blocks[1], rtol=1e-5, atol=1e-6)
  assert np.abs(logits(cross_attention="last") - logits(cross_attention="layer")).max() > 1e-3


def test_scan_is_a_loop():
  for overrides in (
    dict(),
    dict(cross_attention="mix", num_kv_heads=1),
    dict(cross_attention="layer", norm_position="pre", final_norm=True),
  ):
    model, variables = drawn(**overrides)
    stacked = {"params": zoo.layers.stack.stack_params(variables["params"])}
    scanned = zoo.create("transformer/test", **SMALL | overrides, scan=True, remat="dots_saveable")
    output, aux = scanned.apply(stacked, SOURCE, TARGET)
    wanted, wanted_aux = model.apply(variables, SOURCE, TARGET)
    np.testing.assert_allclose(output, wanted, rtol=1e-4, atol=1e-5)
    assert jax.tree.structure(aux) == jax.tree.structure(wanted_aux)


def test_shared_matrices():
  for shared, count in (("all", 1), ("target", 2), ("none", 3)):
    _, variables = drawn(tie_embeddings=shared)
    tables = [p for p in jax.tree.leaves(variables) if 29 in p.shape]
    assert len(tables) == count


def test_copies_are_a_mixture_of_two_distributions():
  rng = np.random.default_rng(0)
  words, state = rng.normal(size=(2, 3, 5)).astype(np.float32), rng.normal(size=(2, 3, 4)).astype(np.float32)
  source = np.array([[1, 6, 1, 4], [0, 0, 5, 2]])  # 5 and 6 are outside the vocabulary
  weights = np.asarray(jax.nn.softmax(rng.normal(size=(2, 3, 4)).astype(np.float32)))
  layer = pointer.PointerGenerator(slots=2)
  variables = layer.init(jax.random.key(0), words, weights, source, state)
  mixed = np.exp(layer.apply(variables, words, weights, source, state))
  np.testing.assert_allclose(mixed.sum(-1), 1, rtol=1e-5)
  gate = jax.nn.sigmoid(state @ variables["params"]["gate"]["kernel"] + variables["params"]["gate"]["bias"])
  wanted = np.concatenate([gate * jax.nn.softmax(words), np.zeros((2, 3, 2))], -1)
  for b, t, s in np.ndindex(2, 3, 4):
    wanted[b, t, source[b, s]] += (1 - gate[b, t, 0]) * weights[b, t, s]
  np.testing.assert_allclose(mixed, wanted, rtol=1e-4, atol=1e-6)


def test_a_word_outside_the_vocabulary_can_be_copied():
  """The model gives it probability, reads it as unknown, and learns: all gradients are finite."""
  model, variables = drawn(head="copy", copy_slots=2)
  source, target = SOURCE.copy(), TARGET.copy()
  source[0, 2], target[0, 3] = 29, 29

  def loss(variables):
    log_probability, _ = model.apply(variables, source, target)
    return log_probability[0, 2, 29], log_probability

  grads, log_probability = jax.grad(loss, has_aux=True)(variables)
  assert log_probability.shape == (3, 6, 31)
  assert log_probability[0, 2, 29] > -10 > -50 > log_probability[1, 2, 29]  # the second source does not have it
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
  unknown = source.copy()
  unknown[0, 2] = 1
  encoded = [model.apply(variables, s, method="encode")[0].memory for s in (source, unknown)]
  np.testing.assert_array_equal(*encoded)


def test_scheduled_sampling_predicts_from_the_reference():
  model, variables = drawn(norm_position="pre", final_norm=True)
  own = np.random.default_rng(5).uniform(size=(3, 6)) < 0.5
  own[:, 0] = False
  mixed = np.asarray(model.apply(variables, SOURCE, TARGET, own, method="scheduled_sampling_inputs"))
  predicted = logits(norm_position="pre", final_norm=True).argmax(-1)
  assert (predicted[:, 1:] != predicted[:, :-1]).any(1).all()
  for b, t in np.ndindex(3, 6):
    assert mixed[b, t] == (predicted[b, t - 1] if own[b, t] else TARGET[b, t])


@pytest.mark.parametrize(
  ("overrides", "named"),
  [
    (dict(cross_attention="layer", decoder_depth=3), ("depth", 2, "decoder_depth", 3)),
    (dict(norm_position="pre"), ("norm_position='pre'", "final_norm=True")),
    (dict(norm_position="prae"), ("norm_position", "'prae'", "'pre'")),
    (dict(eos_token_id=29), ("eos_token_id", 29)),
    (dict(copy_slots=3), ("copy_slots", 3)),
    (dict(num_heads=5), (5, "heads", 16)),
    (dict(num_kv_heads=3), (4, 3, "heads")),
  ],
)
def test_invalid_configs(overrides, named):
  with raises(ValueError, *named):
    logits(**overrides)


def test_a_row_that_is_too_long():
  with raises(ValueError, "source", 17, "max_length", 16):
    logits(np.ones((1, 17), np.int32))


def test_a_source_of_padding_alone_gives_finite_outputs_and_gradients():
  """Padding of a batch: there is nothing to attend to. The other rows do not change."""
  model, variables = drawn(head="copy", copy_slots=2)
  source = np.concatenate([SOURCE, np.zeros((1, 7), np.int32)])
  target = np.concatenate([TARGET, TARGET[:1]])

  def loss(variables):
    output, aux = model.apply(variables, source, target)
    return jnp.square(jnp.maximum(output, -50)).sum(), (output, aux["decoder/alignment"])

  grads, (output, alignment) = jax.jit(jax.grad(loss, has_aux=True))(variables)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads)) and np.isfinite(output).all()
  assert (alignment[3] == 0).all()
  np.testing.assert_allclose(output[:3], model.apply(variables, SOURCE, TARGET)[0], rtol=1e-4, atol=1e-5)
