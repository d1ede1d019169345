"""BERT's objective: which tokens are masked, how often, and the loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import raises

import zoo
from train import rng
from train.objectives import mlm_nsp

VOCAB, MASK, CLS, SEP, WORDS = 29, 4, 2, 3, 5


def rows(lengths, length, pieces=1, seed=0):
  """Rows of sequences of these lengths, [CLS] word word ... [SEP], a list per row; a word has up to `pieces` pieces."""
  draw = np.random.default_rng(seed)
  token, segment, position, word = np.zeros((4, len(lengths), length), np.int32)
  for i, sequences in enumerate(lengths):
    start = last = 0
    for number, n in enumerate(sequences, 1):
      here = slice(start, start + n)
      token[i, here] = [CLS, *draw.integers(WORDS, VOCAB, n - 2), SEP]
      segment[i, here], position[i, here] = number, np.arange(n)
      begins = draw.integers(0, pieces, n - 2) == 0
      begins[:1] = True
      word[i, start + 1 : start + n - 1] = last + np.cumsum(begins)
      last, start = word[i, here].max(), here.stop
  return dict(input_ids=token, segment_ids=segment, position_ids=position, word_ids=word)


def keys(count, seed=0):
  return rng.per_example(rng.root(seed), jnp.arange(count))


@functools.partial(jax.jit, static_argnames=("most", "whole_words"))
def mask_tokens(key_B, arrays, most=20, whole_words=False):
  objective = mlm_nsp.Objective(max_predictions=most, whole_words=whole_words)
  names = ("input_ids", "word_ids", "segment_ids")
  arguments = key_B, *(arrays[name] for name in names)
  return mlm_nsp.mask_tokens(*arguments, objective=objective, mask_token=MASK, vocab_size=VOCAB)


def chosen_of(masked, shape):
  """[B, T] bool, where a token is predicted."""
  chosen = np.zeros(shape, bool)
  for i, (positions, mask) in enumerate(
    zip(np.asarray(masked.position_BI), np.asarray(masked.label_mask_BI), strict=True)
  ):
    assert (np.diff(positions[mask]) > 0).all()
    chosen[i, positions[mask]] = True
  return chosen


@pytest.mark.parametrize("whole_words", [False, True])
def test_the_number_of_masked_tokens(whole_words):
  """15 % of each sequence, rounded, one at least; never a special token or padding."""
  lengths = [[3], [40, 24], [64], [9, 30, 3, 20], [5] * 12, [1 + 17]] * 40
  arrays = rows(lengths, 64, pieces=3)
  masked = mask_tokens(keys(len(lengths)), arrays, whole_words=whole_words)
  chosen = chosen_of(masked, arrays["input_ids"].shape)
  assert not (chosen & (arrays["word_ids"] == 0)).any()
  missed = 0
  for i, sequences in enumerate(lengths):
    for number, n in enumerate(sequences, 1):
      here = arrays["segment_ids"][i] == number
      found, wanted = (chosen[i] & here).sum(), max(round(0.15 * n), 1)
      assert found <= wanted and (whole_words or found == wanted)
      # The shortest word may be longer than what is still to be masked.
      words = np.bincount(arrays["word_ids"][i, here & ~chosen[i]])[1:]
      missed += (words[words > 0] <= wanted - found).any()
  assert missed <= 0.005 * sum(map(len, lengths))


def test_whole_words_are_masked():
  arrays = rows([[64]] * 200, 64, pieces=3)
  chosen = chosen_of(mask_tokens(keys(200), arrays, whole_words=True), (200, 64))
  for word, one in zip(arrays["word_ids"], chosen, strict=True):
    for number in range(1, word.max() + 1):
      assert len(set(one[word == number])) == 1
  by_piece = chosen_of(mask_tokens(keys(200), arrays), (200, 64))
  assert any(len(set(one[word == 1])) == 2 for word, one in zip(arrays["word_ids"], by_piece, strict=True))


def test_all_words_are_equally_likely_to_be_masked():
  arrays = rows([[42]] * 3000, 42)
  share = chosen_of(mask_tokens(keys(3000), arrays), (3000, 42))[:, 1:-1].mean(0)
  expected = 6 / 40
  assert np.abs(share - expected).max() < 4.5 * np.sqrt(expected * (1 - expected) / 3000)


def test_shares_of_mask_random_and_unchanged_tokens():
  """80 % become [MASK], 10 % a random token, 10 % stay; all others are unchanged."""
  arrays = rows([[64]] * 2000, 64)
  masked = mask_tokens(keys(2000), arrays)
  token, old = np.asarray(masked.input_ids_BT), arrays["input_ids"]
  chosen = chosen_of(masked, old.shape)
  np.testing.assert_array_equal(token[~chosen], old[~chosen])
  n = chosen.sum()
  random = 0.1 * np.bincount(old[chosen], minlength=VOCAB) / n  # by chance the token itself, or [MASK]
  for share, expected in (
    ((token[chosen] == MASK).mean(), 0.8 + 0.1 / VOCAB),
    ((token[chosen] == old[chosen]).mean(), 0.1 + (random / VOCAB).sum()),
  ):
    assert abs(share - expected) < 4.5 * np.sqrt(expected * (1 - expected) / n)
  others = np.bincount(token[chosen & (token != old) & (token != MASK)], minlength=VOCAB)
  others = np.delete(others, MASK)  # any token may come, each as likely
  assert np.abs(others - others.mean()).max() < 5 * np.sqrt(others.mean())


def test_a_row_has_at_most_max_predictions():
  arrays = rows([[64], [20, 20, 24], [5] * 12], 64)
  masked = mask_tokens(keys(3), arrays, most=4)
  chosen = chosen_of(masked, (3, 64))
  assert masked.position_BI.shape == (3, 4) and (chosen.sum(1) == 4).all()
  # Only tokens that are predicted are replaced.
  np.testing.assert_array_equal(np.asarray(masked.input_ids_BT)[~chosen], arrays["input_ids"][~chosen])
  assert mask_tokens(keys(3), arrays, most=100).position_BI.shape == (3, 64)


def test_masks_depend_on_the_example_only():
  arrays = rows([[64], [30]], 64)
  first = mask_tokens(keys(2), arrays)
  swapped = mask_tokens(keys(2)[::-1], {k: v[::-1] for k, v in arrays.items()})
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[::-1]), first, swapped)
  assert (mask_tokens(keys(2, seed=1), arrays).position_BI != first.position_BI).any()


# ---- The loss ----


def batch(lengths, length=16, sequences=3, seed=0):
  arrays = rows(lengths, length, pieces=2, seed=seed)
  first, next_BK = np.zeros((2, len(lengths), sequences), np.int32)
  next_BK[:] = -1
  draw = np.random.default_rng(seed)
  for i in range(len(lengths)):
    starts = np.flatnonzero(arrays["input_ids"][i] == CLS)
    first[i, : len(starts)], next_BK[i, : len(starts)] = starts, draw.integers(0, 2, len(starts))
  size = np.maximum(arrays["position_ids"].max(1, keepdims=True), 1)
  arrays |= dict(
    token_type_ids=(arrays["position_ids"] > size // 2).astype(np.int32),
    cls_positions=first,
    next_sentence_label=next_BK,
  )
  ids = np.arange(len(lengths), dtype=np.int32)
  return arrays | dict(valid=np.ones(len(lengths), bool), id=ids, example=ids + 100)


@functools.cache
def model_of(head="pretraining"):
  model = zoo.create("bert/test", head=head)
  return model, jax.jit(model.init)(jax.random.key(3), jnp.zeros((1, 16), jnp.int32))


def compute(arrays, key=None, head="pretraining", **fields):
  model, variables = model_of(head)
  variables = jax.tree.map(lambda a: 5 * a, variables)  # far from uniform
  objective = mlm_nsp.Objective(max_predictions=6, **fields)
  return jax.jit(lambda v, b: objective(model, v, b, key))(variables, arrays)


def test_the_loss_is_the_mean_of_tokens_plus_that_of_pairs():
  """Of pairs of one length, as published, from predictions at every position."""
  arrays = batch([[14]] * 5, sequences=1)
  loss = compute(arrays)
  model, variables = model_of()
  variables = jax.tree.map(lambda a: 5 * a, variables)
  key_B = rng.per_example(rng.streams(rng.root(0), "mask")["mask"], arrays["id"])
  masked = mask_tokens(key_B, arrays, most=6)
  row = mlm_nsp.SequenceInfo(arrays["segment_ids"], arrays["position_ids"])
  logits, aux = model.apply(variables, masked.input_ids_BT, arrays["token_type_ids"], row)
  chosen = chosen_of(masked, arrays["input_ids"].shape)
  nll = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), arrays["input_ids"][..., None], -1)[..., 0]
  follows = arrays["next_sentence_label"][:, 0] == 1
  pairs = -np.asarray(jax.nn.log_softmax(aux["next_sentence"]))[np.arange(5), np.where(follows, 0, 1)]
  np.testing.assert_allclose(loss.total / loss.weight, nll[chosen].mean() + pairs.mean(), rtol=1e-5)
  np.testing.assert_allclose(loss.metrics["nll"] / loss.weight, nll[chosen].mean(), rtol=1e-5)
  predicted = np.asarray(aux["next_sentence"]).argmax(1) == np.where(follows, 0, 1)
  np.testing.assert_allclose(loss.metrics["next_accuracy"] / loss.weight, predicted.mean(), rtol=1e-5)
  assert loss.weight == chosen.sum() == 10


def test_losses_of_two_halves_add_up():
  arrays = batch([[14], [5, 9], [6, 4, 4], [16]])
  whole = compute(arrays)
  halves = [compute({k: v[part] for k, v in arrays.items()}) for part in (slice(2), slice(2, 4))]
  added = jax.tree.map(lambda a, b: a + b, *halves)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole, added)


def test_invalid_examples_have_no_weight():
  arrays = batch([[14], [5, 9], [6, 4, 4]])
  part = compute({k: v[:2] for k, v in arrays.items()})
  whole = compute(arrays | dict(valid=np.array([True, True, False])))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole, part)


def test_packing_does_not_change_predictions():
  """Three sequences packed into one row predict the same as in a row each, with the same tokens masked."""
  packed = batch([[6, 5, 5]])
  token = packed["input_ids"].copy()
  positions, model_and = np.array([[2, 7, 12]]), model_of()
  model, variables = model_and[0], jax.tree.map(lambda a: 5 * a, model_and[1])
  token[0, positions[0]] = MASK
  row = mlm_nsp.SequenceInfo(packed["segment_ids"], packed["position_ids"])
  words, aux = model.apply(variables, token, packed["token_type_ids"], row, positions, packed["cls_positions"])
  for k, (start, size) in enumerate(((0, 6), (6, 5), (11, 5))):
    alone = np.zeros((2, 1, 16), np.int32)
    alone[0, 0, :size], alone[1, 0, :size] = (
      token[0, start : start + size],
      packed["token_type_ids"][0, start : start + size],
    )
    one, own = model.apply(variables, *alone, masked_positions_BI=positions[:, k : k + 1] - start)
    np.testing.assert_allclose(words[0, k], one[0, 0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(aux["next_sentence"][0, k], own["next_sentence"][0], rtol=1e-5, atol=1e-5)


def test_without_a_next_sentence_head_there_is_no_loss_of_pairs():
  loss = compute(batch([[14], [5, 9]]), head="masked_lm")
  assert loss.metrics.keys() == {"accuracy", "nll"} and loss.total == loss.metrics["nll"]


def test_masks_are_dynamic_or_static():
  arrays, steps = batch([[16]] * 4), [rng.root(step) for step in (0, 1)]
  drawn, again, other = (compute(arrays, key) for key in (steps[0], steps[0], steps[1]))
  assert drawn.total == again.total != other.total
  first, second = (compute(arrays, key, static_masking=True) for key in steps)
  assert first.total == second.total
  # They depend on the example, not on its position.
  moved = compute(arrays | dict(id=arrays["id"] + 7), steps[0], static_masking=True)
  assert (
    moved.total
    == first.total
    != compute(arrays | dict(example=arrays["example"] + 1), steps[0], static_masking=True).total
  )
  assert compute(arrays).total == compute(arrays).total


@pytest.mark.parametrize(
  ("fields", "named"),
  [
    (dict(mask_prob=1.5), ("mask_prob", 1.5)),
    (dict(max_predictions=0), ("max_predictions", 0)),
    (dict(mask_token_prob=0.9, random_token_prob=0.2), ("mask_token_prob", "random_token_prob", 1.1)),
  ],
)
def test_invalid_fields_are_errors(fields, named):
  with raises(ValueError, *named):
    mlm_nsp.Objective(**fields)
