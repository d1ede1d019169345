"""Sequences to copy, reverse or sort: their definition, that they are learned exactly, and the copy mechanism."""

import itertools
import json
import subprocess
import sys
from collections import Counter

import jax
import numpy as np
import pytest
from support import raises

import zoo
from train import cli, data, optim
from train.inference import translate
from train.objectives import seq2seq as objective
from train.step import init_state, make_step
from zoo import decoding

pytestmark = pytest.mark.usefixtures("one_device")


def made(task="reverse", **kwargs):
  return data.make("algorithmic", **dict(task=task, symbols=5, max_length=5, train_size=300, eval_size=60) | kwargs)


def test_targets_of_each_task():
  texts = {task: list(made(task).texts("train")) for task in ("copy", "reverse", "sort")}
  assert all(target == source for source, target in texts["copy"])
  assert all(target == source[::-1] for source, target in texts["reverse"])  # a symbol is one letter
  for source, target in texts["sort"]:
    symbols = target.split()
    assert all(a <= b for a, b in itertools.pairwise(symbols)) and Counter(symbols) == Counter(source.split())


def test_training_and_evaluation_have_no_sequence_in_common():
  sequences = made()
  train, evaluation = (list(sequences.texts(split)) for split in ("train", "eval"))
  assert (len(train), len(evaluation)) == (300, 60) == (sequences.num_train, sequences.num_eval())
  assert len({*train, *evaluation}) == 360
  assert list(made(train_size=20).texts("eval")) == evaluation  # does not depend on the training size
  assert {len(source.split()) for source, _ in train} == {3, 4, 5}
  assert {symbol for source, _ in train for symbol in source.split()} == set("abcde")
  assert list(made(sequence_seed=1).texts("eval")) != evaluation


def test_all_lengths_and_symbols_are_equally_frequent():
  sources = [source.split() for source, _ in made(symbols=26, unseen=4, train_size=20_000, max_length=8).texts("train")]
  lengths = np.bincount([len(source) for source in sources])[3:]
  assert abs(lengths / lengths.mean() - 1).max() < 0.1
  symbols, counts = np.unique(np.concatenate(sources), return_counts=True)
  assert len(symbols) == 30 and {len(symbol) for symbol in symbols} == {2} and sorted(symbols)[:2] == ["aa", "ab"]
  assert abs(counts / counts.mean() - 1).max() < 0.1


def test_a_batch_is_the_tokens_of_its_texts():
  sequences = made()
  batch = next(sequences.train_batches(16, seed=1))
  again = next(made().train_batches(16, seed=1))
  decode, texts = sequences.tokenizer.decode, dict(sequences.texts("train"))
  for source, target, same in zip(batch["source_ids"], batch["target_ids"], again["source_ids"], strict=True):
    assert texts[decode(source)] == decode(target)
    np.testing.assert_array_equal(source, same)
  assert sequences.vocab_size == 4 + 5
  shapes = sequences.shapes(dict(name="algorithmic", task="reverse", max_length=5), None, 16)
  assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {k: (v.shape, v.dtype) for k, v in shapes.items()}


def test_unknown_symbols_are_numbered_by_first_occurrence():
  sequences = made(symbols=2, unseen=6, copy_slots=2)
  a, b, V = 4, 5, 6
  encoded, unknown = sequences.encode(["c a d c", "h b", "a c d e e"])
  assert encoded == [[V, a, V + 1, V, 3], [V, b, 3], [a, V, V + 1, 1, 1, 3]]  # no slot is left for "e"
  assert unknown == [["c", "d"], ["h"], ["c", "d"]]
  assert sequences.encode(["d c e"], unknown[:1])[0] == [[V + 1, V, 1, 3]]  # a target, by its source
  rows = [[V + 1, a, V, 3, a], [b, V, V + 1, 3], [1, V, 0, 0]]
  # A number without a word in the source is unknown.
  assert translate.detokenise(sequences, rows, ["c a d c", "h b", "a c d e e"]) == ["d a c", "b h", "<unk> c"]
  batch = next(sequences.eval_batches(60))
  texts = list(sequences.texts("eval"))
  assert translate.detokenise(sequences, batch["source_ids"].tolist(), [source for source, _ in texts]) == [
    " ".join("<unk>" if symbol in "cdefgh" and symbol not in words else symbol for symbol in source.split())
    for (source, _), words in zip(texts, sequences.encode([source for source, _ in texts])[1], strict=True)
  ]
  for source, target in zip(batch["source_ids"].tolist(), batch["target_ids"].tolist(), strict=True):
    assert source[: source.index(3)][::-1] == target[: target.index(3)]


def test_an_incompatible_model_is_an_error():
  model = zoo.create("transformer/test", vocab_size=9, head="copy", copy_slots=3).config
  made(unseen=3, copy_slots=3).check_fit(model, None)
  with raises(ValueError, "model.copy_slots", 3, "data.copy_slots", 2):
    made(copy_slots=2).check_fit(model, None)
  with raises(ValueError, "model.copy_slots", "data.copy_slots", 0):
    made().check_fit(model, None)
  with raises(ValueError, "model.vocab_size=9", 12):
    made(copy_slots=3).check_fit(zoo.create("transformer/test", vocab_size=12, head="copy", copy_slots=3).config, None)
  with raises(ValueError, "model.vocab_size=9", 8):
    made().check_fit(zoo.create("transformer/test", vocab_size=8).config, None)


@pytest.mark.parametrize(
  ("kwargs", "named"),
  [
    (dict(task="srot"), ["data.task", "'srot'", "'sort'"]),
    (dict(task="sort", unseen=2), ["data.unseen", 2, 0]),
    (dict(min_length=6), ["data.max_length", 5, 6]),
    (dict(copy_slots=-1), ["data.copy_slots", -1, 0]),
    (dict(symbols=2, max_length=3), [360, 4, 3, 2]),
  ],
)
def test_an_invalid_config_is_an_error_that_names_the_fault(kwargs, named):
  with raises(ValueError, *named):
    made(**kwargs)
  with raises(ValueError, "'evl'", "'eval'"):
    list(made().texts("evl"))


# ---- learned


def learn(sequences, steps, **overrides):
  """Exact match of a small model on the evaluation sequences after some steps."""
  sizes = dict(width=32, depth=1, decoder_depth=1, mlp_dim=64, vocab_size=sequences.vocab_size)
  model = zoo.create("transformer/test", **sizes, **overrides)
  batches = sequences.train_batches(32, seed=0)
  batch = next(batches)
  variables = jax.jit(model.init)({"params": jax.random.key(0)}, batch["source_ids"], batch["target_ids"])
  optimizer, _ = optim.make(variables["params"], steps, model=model, learning_rate=5e-3, warmup=0.1, b2=0.98)
  step = jax.jit(make_step(objective.Objective(), model, optimizer))
  state = init_state(variables, optimizer)
  for _ in range(steps):
    state, _ = step(state, next(batches), jax.random.key(0))
  batches.close()
  batch, texts = next(sequences.eval_batches(sequences.eval_size)), sequences.references()
  special = dict(bos_token_id=2, eos_token_id=3, pad_token_id=0, max_length=sequences.target_length)
  parts = decoding.decode_step_of(model, {"params": state.params}, batch["source_ids"], special["max_length"])
  tokens = decoding.greedy(*parts, **special).sequences_BUT[:, 0].tolist()
  return translate.score(
    translate.detokenise(sequences, tokens, [source for source, _ in texts]), [target for _, target in texts]
  )["exact"]


def test_unknown_symbols_can_only_be_copied():
  """Most of the symbols are unknown: a model that copies predicts nearly all, another only known ones."""
  few = dict(task="copy", symbols=6, unseen=20, max_length=4, train_size=5000, eval_size=100)
  known = np.mean([set(source.split()) <= set("abcdef") for source, _ in made(**few).texts("eval")])
  assert learn(made(**few, copy_slots=4), 150, head="copy", copy_slots=4) > 0.9
  assert learn(made(**few), 150, head="copy") <= known < 0.1  # it copies, but has no numbers for unknown symbols


@pytest.mark.slow
def test_sorting_is_learned_exactly(tmp_path, capfd, as_users_have_it):
  """By the commands, trained with optimised machine code; then on new sequences. No task is harder."""
  small = "data.task=sort data.symbols=8 data.max_length=5 data.train_size=5000 data.eval_size=200"
  small += " model.vocab_size=12 model.max_length=6 batch_size=64 steps=400 evals.eval.every_steps=0"

  result = tmp_path / "result.json"
  command = [sys.executable, "-m", "train", "train", "sort", *small.split()]
  command += ["--workdir", str(tmp_path / "run"), "--json", str(result)]
  subprocess.run(command, env=as_users_have_it, check=True, timeout=600)
  assert json.loads(result.read_text())["eval"]["exact"] == 1.0
  assert cli.main(["translate", str(tmp_path / "run"), "b g c"]) == 0
  assert capfd.readouterr().out.splitlines()[-1] == "b c g"
