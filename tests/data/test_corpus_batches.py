"""Batches of masked-LM rows: contents, order, compatibility with models; and predicting masked tokens."""

import functools
import json

import jax
import numpy as np
import pytest
from support import raises
from tiny_config import get_config

import zoo
from train import cli, data, experiment, loop
from train.data.text import masked_lm
from train.data.text.masked_lm import MaskedLM, MaskedLMCorpus, Row
from train.inference.fill_mask import fill_mask

pytestmark = pytest.mark.usefixtures("one_device")

ANIMALS = ("cat", "dog", "cow", "hen", "fox", "owl")
PLACES = dict(cat="mat", dog="log", cow="grass", hen="nest", fox="hill", owl="tree")


@pytest.fixture(scope="module")
def book(tmp_path_factory):
  """Documents of sentences in which one word determines another."""
  draw = np.random.default_rng(0)
  documents = []
  for _ in range(60):
    chosen = [ANIMALS[i] for i in draw.integers(0, len(ANIMALS), 6)]
    documents.append("\n".join(f"the {animal} sat on the {PLACES[animal]}" for animal in chosen))
  path = tmp_path_factory.mktemp("text") / "book.txt"
  path.write_text("\n\n".join(documents))
  return str(path)


@functools.cache
def verses(**fields):
  return MaskedLM("verses_en_es", train_split="val", eval_split="test", length=48, vocab_size=900, **fields)


def batches(kind, count, **arguments):
  stream = kind.train_batches(arguments.pop("batch_size", 8), **dict(seed=3) | arguments)
  return [next(stream) for _ in range(count)]


@pytest.mark.parametrize("fields", [{}, dict(pack=True, sequences=5), dict(pairs=False)], ids=str)
def test_arrays_of_a_batch_describe_its_rows(fields):
  kind = verses(**fields)
  words = kind.vocabulary
  shapes = MaskedLM.shapes(dict(name="masked_lm", dataset="verses_en_es", length=48, **fields), None, 8)
  for batch in batches(kind, 5):
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {k: (s.shape, s.dtype) for k, s in shapes.items()}
    for i, number in enumerate(batch["example"]):
      row = kind.examples("val")[number]
      token, segment = batch["input_ids"][i], batch["segment_ids"][i]
      assert (token[segment == 0] == words.pad).all() and (segment > 0).sum() == len(row.input_ids)
      start = 0
      for k, (end, split, follows) in enumerate(zip(row.ends, row.second_starts, row.next_sentence_label, strict=True)):
        here = slice(start, end)
        assert token[start] == words.cls and token[end - 1] == words.sep and (segment[here] == k + 1).all()
        np.testing.assert_array_equal(batch["position_ids"][i, here], np.arange(end - start))
        np.testing.assert_array_equal(batch["token_type_ids"][i, here], np.arange(start, end) >= split)
        if k < kind.sequences:
          assert batch["cls_positions"][i, k] == start and batch["next_sentence_label"][i, k] == follows
        start = end
      assert (batch["next_sentence_label"][i, len(row.ends) :] == -1).all()
      # A word is a run of pieces: its number rises by one where a piece begins one.
      word = batch["word_ids"][i]
      assert ((word == 0) == np.isin(token, [words.pad, words.cls, words.sep])).all()
      for position in np.flatnonzero(word):
        piece = words.tokenizer.id_to_token(int(token[position]))
        if word[position - 1] and piece.startswith("##"):
          assert word[position] == word[position - 1]
        elif word[position - 1]:
          assert word[position] == word[position - 1] + 1
  assert (batch["next_sentence_label"] >= 0).any() == kind.pairs and batch["token_type_ids"].any() == kind.pairs


def test_an_epoch_has_every_row_once_for_any_number_of_processes():
  kind = verses()
  count = kind.num_train
  size = 4
  stream = batches(kind, 2 * (-(-count // size)), batch_size=size)
  order = np.concatenate([b["example"] for b in stream])
  assert sorted(order[:count]) == list(range(count)) and (order[:count] != order[count : 2 * count][:count]).any()
  parts = [batches(kind, 3, batch_size=size, process_index=i, process_count=2, first_step=5) for i in range(2)]
  for step, step_parts in enumerate(zip(*parts, strict=True), 5):
    for key, whole in stream[step].items():
      np.testing.assert_array_equal(np.concatenate([part[key] for part in step_parts]), whole)


def test_evaluation_has_every_row_once_in_order():
  kind = verses()
  found = [*kind.eval_batches(16)]
  number = np.concatenate([b["example"][b["valid"]] for b in found])
  np.testing.assert_array_equal(number, np.arange(kind.num_eval()))
  assert not found[-1]["valid"].all() and not (found[-1]["segment_ids"][~found[-1]["valid"]]).any()
  assert sum(b["valid"].sum() for b in kind.eval_batches(16, limit=21)) == 21


def test_a_token_after_a_special_token_begins_a_word():
  """Also where it is a later piece of one: a text may be truncated within a word."""
  words = verses().vocabulary
  rest = next(i for i in range(words.size) if words.tokenizer.id_to_token(i).startswith("##"))
  whole = words.encode(["the"])[0][0]
  token = np.array([words.cls, rest, rest, words.sep, rest, whole, rest, words.sep])
  row = Row(token, np.array([8]), np.array([4]), np.array([1]))
  batch = masked_lm.collate(words, [row, None], [0, 1], 10, 1)
  assert batch["word_ids"].tolist() == [[0, 1, 1, 0, 2, 3, 3, 0, 0, 0], [0] * 10]
  assert not batch["segment_ids"][1].any()


def test_duplicates_differ_and_are_for_training_alone():
  once, twice = verses(), verses(dupe_factor=2)
  assert 1.8 * once.num_train < twice.num_train < 2.2 * once.num_train and once.num_eval() == twice.num_eval()
  first = {tuple(row.input_ids) for row in (once.examples("val")[i] for i in range(once.num_train))}
  assert sum(tuple(twice.examples("val")[i].input_ids) in first for i in range(twice.num_train)) < 1.2 * once.num_train


def test_documents_of_a_file_are_held_out_for_validation(book):
  kind = MaskedLM(book, length=32, vocab_size=200, hold_out=10)
  documents = [kind._documents(split) for split in ("train", "val")]
  assert [len(some) for some in documents] == [54, 6] and kind.num_eval("val") >= 6
  with raises(ValueError, "'vall'", "'val'"):
    kind.num_eval("vall")
  with raises(ValueError, book, 100):
    MaskedLM(book, length=32, hold_out=100).num_eval()


@pytest.mark.parametrize(
  "fields, named",
  [
    (dict(length=3), ("data.length", 3)),
    (dict(sequences=0), ("data.sequences", 0)),
    (dict(tokenizer="wordpeace"), ("data.tokenizer", "'wordpeace'", "'wordpiece'")),
    (dict(dupe_factor=0), ("data.dupe_factor", 0)),
  ],
)
def test_invalid_fields_are_errors(fields, named):
  with raises(ValueError, *named):
    MaskedLM("verses_en_es", **fields)


@pytest.mark.parametrize(
  "model, fields, named",
  [
    (dict(), {}, (29, "model.vocab_size=900")),
    (dict(), {}, ("max_length", 16, 48)),
    (
      dict(vocab_size=900, max_length=48, mask_token_id=7),
      {},
      ("model.mask_token_id", 4, 7),
    ),
    (
      dict(vocab_size=900, max_length=48, head="question_answering"),
      {},
      ("model.head", "'question_answering'", "'pretraining'"),
    ),
    (dict(vocab_size=900, max_length=48), dict(pairs=False), ("model.head='masked_lm'",)),
    (dict(vocab_size=900, max_length=48, type_vocab_size=1), {}, ("model.type_vocab_size=2",)),
  ],
)
def test_an_incompatible_model_is_an_error(model, fields, named):
  with raises(ValueError, *named):
    verses(**fields).check_fit(zoo.create("bert/test", **model).config, None)


# ---- A corpus that was prepared ----


@pytest.fixture(scope="module")
def prepared(book, tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")
  options = ["--vocab-size", "200", "--length", "32", "--pack", "--validation", "0.1"]
  assert cli.main(["prepare", "corpus/book", "--source", book, "--data-dir", str(folder), *options]) == 0
  return str(folder)


def test_a_prepared_corpus_equals_one_made_in_memory(prepared, book):
  kind = MaskedLMCorpus("corpus/book", length=32, sequences=4, data_dir=prepared)
  made = MaskedLM(book, length=32, vocab_size=200, pack=True, sequences=4)
  assert kind.vocabulary.size == made.vocabulary.size and "padding" in kind.about(8, 0)
  found = [*kind.eval_batches(8)]
  documents = {kind.vocabulary.decode(b["input_ids"][i][b["segment_ids"][i] == 1]) for b in found for i in range(8)}
  assert all("sat on the" in text for text in documents if text) and len(documents) >= 3
  assert kind.num_train > 5 * kind.num_eval() > 0
  shapes = MaskedLMCorpus.shapes(dict(name="masked_lm_corpus", dataset="corpus/book", length=32, sequences=4), None, 8)
  assert {k: v.shape for k, v in next(kind.train_batches(8, 0)).items()} == {k: s.shape for k, s in shapes.items()}
  # Rows of a batch may be longer than those that were prepared.
  longer = next(MaskedLMCorpus("corpus/book", length=40, sequences=4, data_dir=prepared).train_batches(8, 0))
  np.testing.assert_array_equal(longer["input_ids"][:, :32], next(kind.train_batches(8, 0))["input_ids"])


@pytest.mark.parametrize(
  "fields, named",
  [
    (dict(length=24), (32, "data.length", 24)),
    (dict(length=32, pairs=False), ("data.pairs", False)),
    (dict(length=32, train_split="tain"), ("'tain'", "'train'")),
    (dict(dataset="verses_en_es"), ("'verses_en_es'", "zoo prepare corpus/NAME --source verses_en_es")),
    (dict(dataset="corpus/books"), ("corpus/books",)),
  ],
)
def test_a_config_that_contradicts_the_preparation_is_an_error(prepared, fields, named):
  with raises(ValueError, *named):
    _ = MaskedLMCorpus(**dict(dataset="corpus/book", data_dir=prepared) | fields).num_train


# ---- Training, and prediction of masked tokens ----


@pytest.fixture(scope="module")
def trained(book, tmp_path_factory):
  config = get_config()
  config.model = dict(name="bert/test", vocab_size=200, max_length=32, head="masked_lm")
  config.data = dict(name="masked_lm", dataset=book, length=32, vocab_size=200, pairs=False, pack=True)
  config.objective = dict(name="mlm_nsp", max_predictions=5)
  config.optimizer = dict(name="adamw", learning_rate=1e-2, warmup=0.1)
  config.batch_size, config.steps, config.log_every_steps, config.checkpoint.every_steps = 32, 400, 50, 0
  config.evals = dict(val=dict(name="loss"))
  config.plots = ()
  workdir = tmp_path_factory.mktemp("run")
  return workdir, loop.train(config, workdir)


def test_training_learns_which_words_occur_together(trained):
  """The animal determines where it sits and vice versa; all other words of a sentence are constant."""
  _, result = trained
  assert result["val"]["accuracy"] > 0.8


def test_fill_mask_predicts_masked_words(trained, tmp_path, capsys):
  workdir, _ = trained
  texts = [f"the {animal} sat on the [MASK]" for animal in ANIMALS]
  assert cli.main(["fill-mask", str(workdir), *texts, "--top-k", "3", "--json", str(tmp_path / "found.json")]) == 0
  found = json.loads((tmp_path / "found.json").read_text())
  best = [one["masks"][0][0]["token"] for one in found]
  assert sum(word == PLACES[animal] for word, animal in zip(best, ANIMALS, strict=True)) >= 4
  assert found[0]["masks"][0][0]["text"] == f"the cat sat on the {best[0]}"
  shares = [guess["probability"] for guess in found[0]["masks"][0]]
  assert len(shares) == 3 and shares == sorted(shares, reverse=True) and 0 < shares[0] <= 1
  assert "the cat sat on the [MASK]" in capsys.readouterr().out


def test_invalid_texts_and_models_of_fill_mask_are_errors(trained, capsys):
  workdir, _ = trained
  for text, named in (("the cat", ("[MASK]", "'the cat'")), ("[MASK] " * 40, ("42 tokens", "[CLS]", "[SEP]"))):
    assert cli.main(["fill-mask", str(workdir), text]) == 2
    error = capsys.readouterr().err
    assert all(name in error for name in named), error
  model = zoo.create("bert/test", head="question_answering")
  with raises(ValueError, "'pretraining'", "'masked_lm'"):
    fill_mask(model, {}, verses().vocabulary, ["[MASK]"])


def test_several_masks_of_several_texts(trained):
  """Texts of different lengths in one batch give the same predictions as each by itself."""
  run, variables, _ = experiment.open_run(str(trained[0]))
  arguments = run.model, jax.device_get(variables), run.data.vocabulary
  texts = ["the [MASK] sat on the log", "[MASK] cat sat on [MASK] mat", "the owl sat on the [MASK]"]
  together = fill_mask(*arguments, texts)
  assert [len(masks) for masks in together] == [1, 2, 1]
  for text, masks in zip(texts, together, strict=True):
    for one, other in zip(fill_mask(*arguments, [text])[0], masks, strict=True):
      assert [g.token for g in one] == [g.token for g in other]
      np.testing.assert_allclose([g.probability for g in one], [g.probability for g in other], rtol=1e-4)


def test_both_kinds_are_registered():
  assert data.kind("masked_lm") is MaskedLM and data.kind("masked_lm_corpus") is MaskedLMCorpus
