"""Every epoch has every pair once, complete, and aligned with its translation."""

import re
import types

import numpy as np
import pytest
from batches import assert_equal, take
from support import raises

from train import config as configuration
from train import data, loop
from train.data import order
from train.data.text import seq2seq
from train.data.text import tokenizers as tokenizers
from train.data.text.translation import Translation
from zoo.weights.sources import read

pytestmark = pytest.mark.usefixtures("one_device")


def small(**kwargs):
  """A part of the bundled set."""
  return data.make(
    "translation", **dict(dataset="verses_en_es", train_split="train[:700]", eval_split="val[:90]") | kwargs
  )


def sequences(batch, side):
  """The tokens of every segment of every row, {(row, segment): tokens}; positions are checked on the way."""
  found = {}
  for i, (tokens, segments, positions) in enumerate(
    zip(batch[f"{side}_ids"], batch[f"{side}_segment_ids"], batch[f"{side}_position_ids"], strict=True)
  ):
    used = np.flatnonzero(segments)
    # One after the other from the left, numbered 1, 2, ...: so none overlaps another; the rest is padding.
    assert used.tolist() == list(range(len(used))) and (np.diff(segments[used]) >= 0).all()
    assert sorted(set(segments[used])) == list(range(1, segments.max() + 1))
    assert not tokens[len(used) :].any() and not positions[len(used) :].any()
    assert bool(len(used)) == batch["valid"][i]
    for segment in range(1, segments.max() + 1):
      here = segments == segment
      assert positions[here].tolist() == list(range(here.sum()))
      found[i, segment] = tuple(tokens[here].tolist())
  return found


def batch_pairs(batch):
  """The pairs of a batch, (source tokens, target tokens)."""
  source, target = sequences(batch, "source"), sequences(batch, "target")
  assert source.keys() == target.keys()
  return [(source[key], target[key]) for key in source]


def corpus_pairs(corpus):
  return [(tuple(corpus.source[i].tolist()), tuple(corpus.target[i].tolist())) for i in range(len(corpus))]


def test_unknown_words_of_a_source_are_copied_to_its_target():
  """By name in the texts, by number in the batch; what was truncated from the source cannot be copied."""
  copying = small(word_vocab_size=1500, copy_slots=3, source_length=20, target_length=40)
  assert copying.vocab_size == 1500 and tokenizers.is_word_level(copying.tokenizer)
  texts = copying.references("val[:90]")
  batch = next(copying.eval_batches(90))
  _, unknown = copying.encode([source for source, _ in texts])
  shared = 0
  for (source, target), words, s, t in zip(texts, unknown, batch["source_ids"], batch["target_ids"], strict=True):
    numbered = {1500 + slot for slot in range(len(words))}
    assert len(words) <= 3 and set(s[s >= 1500]) == numbered and set(t[t >= 1500]) <= numbered
    copied = [word for slot, word in enumerate(words) if 1500 + slot in t]
    assert all(re.search(rf"\b{word}\b", text) for word in copied for text in (source, target))
    shared += len(copied)
  assert shared > 10  # names, for the most part
  model = types.SimpleNamespace(
    vocab_size=4000, max_length=128, pad_token_id=0, bos_token_id=2, eos_token_id=3, copy_slots=3
  )
  with raises(ValueError, "data.word_vocab_size"):
    small(copy_slots=3).check_fit(model, None)


@pytest.mark.parametrize("batching", seq2seq.BATCHING)
def test_every_epoch_has_every_pair_once_whole_and_beside_its_translation(batching):
  pairs = small(batching=batching, source_length=64, target_length=72)
  expected = sorted(corpus_pairs(pairs.corpus()))
  steps = -(-pairs.num_train // 48)
  stream = take(pairs.train_batches(48, seed=1), 2 * steps)
  epochs = [stream[:steps], stream[steps:]]
  orders = [[pair for batch in epoch for pair in batch_pairs(batch)] for epoch in epochs]
  assert sorted(orders[0]) == sorted(orders[1]) == expected
  assert orders[0] != orders[1]
  assert batch_pairs(take(pairs.train_batches(48, seed=2), 1)[0]) != batch_pairs(stream[0])
  for epoch in epochs:
    assert sum(batch["valid"].sum() for batch in epoch) == pairs.num_train
  for batch in stream:
    assert (batch["source_ids"].shape[1], batch["target_ids"].shape[1]) in pairs.batch_shapes
    for key, array in batch.items():
      assert array.dtype == (bool if key == "valid" else np.int32) and len(array) == 48
    assert batch["id"].tolist() == list(range(48))


def test_the_tokens_are_those_of_the_texts():
  pairs = small(source="es", target="en", too_long="truncate")
  texts = pairs.references("train[:700]")
  assert texts[0] == ("EN el principio crió Dios los cielos y la tierra.", texts[0][1])
  decode = pairs.tokenizer.decode
  assert [(decode(s), decode(t)) for s, t in corpus_pairs(pairs.corpus())] == texts
  lower = small(lowercase=True)
  assert lower.references()[0] == tuple(text.lower() for text in small().references()[0])
  assert decode(lower.corpus("val[:90]").source[0]) == lower.references()[0][0]


def test_packing_fills_rows_and_buckets_waste_less_than_padding():
  share, rows = {}, {}
  for batching in seq2seq.BATCHING:
    pairs = small(batching=batching)
    share[batching], rows[batching] = pairs.padding_share(32, seed=3, epoch=1), pairs.num_train
    steps = -(-pairs.num_train // 32)
    batches = take(pairs.train_batches(32, 3, first_step=steps), steps)
    tokens = sum((batch[f"{side}_segment_ids"] > 0).sum() for batch in batches for side in ("source", "target"))
    slots = sum(batch["source_ids"].size + batch["target_ids"].size for batch in batches)
    np.testing.assert_allclose(share[batching], 1 - tokens / slots)
    assert pairs.unit == ("rows" if batching == "pack" else "pairs")
    assert f"{pairs.padding_share(32, seed=3):.1%} padding" in pairs.about(32, seed=3)
  assert share["pack"] < 0.2 < share["bucket"] < 0.4 < share["pad"]
  assert rows["pack"] < rows["bucket"] / 3 and rows["bucket"] == rows["pad"]


def test_packing_is_first_fit_on_both_sides(monkeypatch):
  rng = np.random.default_rng(0)
  lengths = rng.integers(1, 30, (2, 500))
  monkeypatch.setattr(seq2seq, "OPEN_ROWS", 7)
  pairs, ends = seq2seq.pack(*lengths, 40, 50)
  rows = np.split(pairs, ends[:-1])
  assert sorted(pairs) == list(range(500)) and all(len(row) for row in rows)
  for row in rows:
    assert lengths[0, row].sum() <= 40 and lengths[1, row].sum() <= 50
  naive = []
  for pair in np.random.default_rng(0).permutation(500).tolist():
    for row in naive[-7:]:
      if (lengths[:, [*row, pair]].sum(1) <= (40, 50)).all():
        row.append(pair)
        break
    else:
      naive.append([pair])
  assert [row.tolist() for row in rows] == naive


def test_bucket_edges_minimise_padding():
  rng = np.random.default_rng(0)
  for buckets in (1, 2, 3, 9):
    counts = np.concatenate([[0], rng.integers(0, 20, 7)])
    edges = order.cheapest_edges(counts, buckets)

    def cost(edges, counts=counts):
      return sum(n * min(e for e in edges if e >= size) for size, n in enumerate(counts))

    subsets = [[s for s in range(1, 7) if mask >> s & 1] + [7] for mask in range(0, 128, 2)]
    assert cost(edges) == min(cost(s) for s in subsets if len(s) <= buckets) and len(edges) <= buckets
  shapes = small(buckets=3, source_length=100, target_length=50).batch_shapes
  assert len(shapes) == 3 and shapes[-1] == (100, 50) and shapes == sorted(shapes)


@pytest.mark.parametrize("batching", seq2seq.BATCHING)
def test_any_number_of_processes_makes_the_same_batch_from_any_step_on(batching):
  pairs = small(batching=batching)
  steps = -(-pairs.num_train // 24) + 3  # into the second epoch, through a batch that is not full
  whole = take(pairs.train_batches(24, seed=5), steps)
  for count in (2, 4):
    parts = [take(pairs.train_batches(24, 5, 0, process, count), steps) for process in range(count)]
    for step in range(steps):
      assert_equal({key: np.concatenate([part[step][key] for part in parts]) for key in whole[step]}, whole[step])
  for first in (1, steps - 1):
    assert_equal(take(small(batching=batching).train_batches(24, 5, first), 1)[0], whole[first])


@pytest.mark.parametrize(("batch_size", "limit"), [(16, None), (200, None), (16, 40)])
def test_evaluation_sees_every_pair_once_in_order_over_all_processes(batch_size, limit):
  pairs = small(batching="pack")
  expected = corpus_pairs(pairs.corpus("val[:90]"))[:limit]
  for count in (1, 2, 4):
    parts = [list(pairs.eval_batches(batch_size, None, p, count, limit)) for p in range(count)]
    batches = [{k: np.concatenate([part[k] for part in step]) for k in step[0]} for step in zip(*parts, strict=True)]
    assert [pair for batch in batches for pair in batch_pairs(batch)] == expected
    for batch in batches:
      assert batch["source_ids"].shape == batch["target_ids"].shape == (batch_size, 128)
      assert batch["id"].tolist() == list(range(batch_size)) and batch["source_segment_ids"].max() == 1
  assert len(expected) == (limit or pairs.num_eval()) == (limit or len(pairs.references()))


@pytest.mark.parametrize("batching", seq2seq.BATCHING)
def test_shapes_need_no_data(batching, tmp_path):
  config = dict(name="translation", dataset="verses_en_es", batching=batching, source_length=40, target_length=56)
  shapes = Translation.shapes(config | dict(dataset="nowhere", data_dir=str(tmp_path)), None, 8)
  pairs = data.make(**config)
  for batch in (
    next(pairs.eval_batches(8)),
    max(take(pairs.train_batches(8, 0), 30), key=lambda b: b["source_ids"].size),
  ):
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {k: (v.shape, v.dtype) for k, v in shapes.items()}


@pytest.mark.parametrize(
  ("kwargs", "named"),
  [
    (dict(dataset="verses_en_e"), ["'verses_en_e'", "verses_en_es"]),
    (dict(dataset="fashion_mnist_small"), ["'fashion_mnist_small'"]),
    (dict(source="eng"), ["'eng'", "'en'", "es"]),
    (dict(target="en"), ["data.source", "data.target", "'en'"]),
    (dict(train_split="trian"), ["trian", "'train'", "val"]),
    (dict(batching="packed"), ["data.batching", "'packed'", "'pack'"]),
    (dict(too_long="dorp"), ["data.too_long", "'dorp'", "'drop'"]),
    (dict(source_length=1), ["data.source_length", "1"]),
    (dict(buckets=0), ["data.buckets", "0"]),
    (dict(soruce="en"), ["'soruce'", "'source'"]),
    (dict(source_length=2), ["'train[:700]'", 700, "data.source_length=2"]),
  ],
  ids=lambda value: str(value)[:60],
)
def test_an_invalid_config_is_an_error_that_names_the_fault(kwargs, named):
  with raises(ValueError, *named):
    _ = small(**kwargs).num_train


def test_invalid_batch_sizes_are_errors_before_the_first_batch():
  pairs = small(train_split="train[:50]")
  with raises(ValueError, "batch_size", 64, "'verses_en_es' 'train[:50]'"):
    pairs.train_batches(64, 0)
  with raises(ValueError, "batch_size", 6, 4):
    pairs.eval_batches(6, process_count=4)


def test_a_closed_stream_ends():
  batches = small().train_batches(8, 0)
  next(batches)
  batches.close()
  with pytest.raises(StopIteration):
    next(batches)


@pytest.mark.parametrize("batching", ["bucket", "pack"])
def test_a_resumed_run_is_bit_identical(batching, tmp_path):
  """In batches of several shapes, each with a program of its own; and in rows of several pairs."""
  config = configuration.load("translate_en_es", [f"data.batching={batching}", "data.train_split=train[:150]"])
  config.data.buckets = 2
  config.model.update(width=16, mlp_dim=16, depth=1, decoder_depth=1, dropout_rate=0.1, scan=False, remat="none")
  config.batch_size, config.evals, config.plots, config.checkpoint.every_steps = 8, {}, (), 3
  for steps, folder in ((7, "whole"), (3, "parts"), (7, "parts")):
    config.steps = steps
    config.optimizer.schedule, config.optimizer.warmup = "constant", 0
    loop.train(config, tmp_path / folder, override_config=True)
  whole, parts = (read(tmp_path / folder).tensors for folder in ("whole", "parts"))
  for path, value in whole.items():
    np.testing.assert_array_equal(parts[path], value, err_msg=path)
