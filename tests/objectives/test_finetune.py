"""A small BERT learns labels, tags and answers, and loads pretrained encoders; losses in closed form."""

import json
import re

import jax
import numpy as np
import pytest
from labelled_texts import write_squad, write_tsv, write_vocabulary
from support import raises

import zoo
from train import cli, experiment, loop, objectives, optim
from train import config as configuration
from train.data.text import labelled
from train.evaluation import registry as evaluations
from train.objectives.question_answering import Objective as Span
from train.objectives.sequence_classification import Objective as Label
from train.objectives.token_classification import Objective as Tag
from zoo.layers.stack import unstack_params
from zoo.partitioning import flatten
from zoo.weights import load_into

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
  return write_vocabulary(tmp_path_factory.mktemp("vocabulary"))


def test_learning_rates_of_bert_decay_with_depth():
  model = zoo.create("bert/test", head="sequence_classification", num_classes=2)
  params = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 4), np.int32))["params"]
  scales = optim.layer_scales(params, 0.5, model)
  rates = {re.sub(r"(encoder/block_\d+|encoder/\w+|^\w+).*", r"\1", path): float(rate) for path, rate in scales.items()}
  below = dict.fromkeys(("encoder/embed", "encoder/position", "encoder/token_type", "encoder/embed_norm"), 0.125)
  assert rates == below | {"encoder/block_00": 0.25, "encoder/block_01": 0.5, "pooler": 1.0, "head": 1.0}


@pytest.mark.parametrize("name", ["glue:cola", "squad:v1", "conll2003"])  # one with each head
def test_recipes_load_every_parameter_of_a_pretrained_encoder(name, tmp_path):
  small = dict(width=16, depth=2, mlp_dim=24, num_heads=2, vocab_size=29, max_length=16, mask_token_id=4)
  path = tmp_path / "bert.safetensors"
  config = configuration.load(name, [*(f"model.{k}={v}" for k, v in small.items()), f"init.path={path}"])
  pretrained = zoo.create("bert/base", **small)
  pretrained_variables = jax.jit(pretrained.init)(jax.random.key(0), np.zeros((1, 4), np.int32))
  model = zoo.create(config.model.name, **configuration.kwargs(config.model))
  fresh = jax.jit(model.init)(jax.random.key(1), np.zeros((1, 4), np.int32))
  for layout in ("zoo", "huggingface"):
    zoo.save(path, "bert/base", small, pretrained_variables, layout=layout)
    options = configuration.kwargs(config.init) | ({} if layout == "zoo" else {"layout": layout})
    variables = load_into(model, fresh, **options)
    encoder = flatten(unstack_params(variables["params"]["encoder"]))
    for key, leaf in flatten(pretrained_variables["params"]["encoder"]).items():
      np.testing.assert_array_equal(leaf, encoder[key], err_msg=key)
    np.testing.assert_array_equal(variables["params"]["head"]["kernel"], fresh["params"]["head"]["kernel"])


def tiny(name, kind, steps=60, **model):
  config = configuration.defaults()
  config.model = dict(name="bert/test", depth=1, **model)
  config.data = dict(name=name, buckets=1, **kind)
  config.objective = dict(name=name)
  config.batch_size, config.steps = 16, steps
  config.optimizer = dict(name="adamw", learning_rate=1e-2, schedule="linear", warmup=0.1)
  config.log_every_steps, config.plots = 20, ()
  return config


def sentences(rng, count):
  """Texts of random letters, and the position of the word to replace."""
  for i in range(count):
    words = list(rng.choice([*"abcdefghijklm"], rng.integers(2, 8)))
    yield i, words, int(rng.integers(len(words)))


@pytest.mark.parametrize("task", ["class", "number", "choice"])
def test_labels_are_learned(tmp_path, vocabulary, task):
  rng, rows = np.random.default_rng(0), []
  for _, words, position in sentences(rng, 192):
    label = int(rng.integers(2))
    other = [*words]
    words[position], other[position] = ("good", "bad") if label else ("bad", "good")
    rows.append(
      dict(text="no", x=" ".join(words), y=" ".join(other), label=[-1.5, 1.5][label] if task == "number" else 1 - label)
    )
  for name, part in dict(train=rows[:128], val=rows[128:]).items():
    (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
  kind = dict(dataset=str(tmp_path), vocab_file=vocabulary, eval_split="val", length=16, text="x")
  kind |= dict(number=dict(regression=True), choice=dict(text="text", choices=("x", "y"))).get(task, {})
  head = dict(head="multiple_choice") if task == "choice" else dict(num_classes=1 + (task == "class"))
  config = tiny("sequence_classification", kind, **dict(head="sequence_classification") | head)
  config.evals = dict(val=dict(name="loss"), labels=dict(name="sequence_classification", batch_size=24))
  result = loop.train(config, tmp_path / "run")
  if task == "number":
    assert result["labels"]["pearson"] > 0.95 and result["labels"]["combined_score"] > 0.8
    assert result["val"]["loss"] < 0.4 < result["val"]["absolute_error"] + 0.4
  else:
    assert (
      result["labels"] == {"accuracy": pytest.approx(result["val"]["accuracy"])} and result["val"]["accuracy"] > 0.95
    )
  assert result["val"]["examples"] == 64


def test_tags_are_learned(tmp_path, vocabulary):
  rng, lines = np.random.default_rng(0), []
  for _, words, position in sentences(rng, 160):
    words[position] = str(rng.choice(["ann", "bob", "paris"]))
    kind = lambda word: {"ann": "B-PER", "bob": "B-PER", "paris": "B-LOC"}.get(word, "O")  # noqa: E731
    lines.append("".join(f"{word} x {kind(word)}\n" for word in words))
  (tmp_path / "train.txt").write_text("\n".join(lines))
  options = dict(dataset=str(tmp_path), vocab_file=vocabulary, length=16, train_split="train[:128]")
  config = tiny(
    "token_classification", options | dict(eval_split="train[128:]"), head="token_classification", num_classes=3
  )
  config.evals = dict(val=dict(name="loss"), found=dict(name="token_classification"))
  result = loop.train(config, tmp_path / "run")
  assert result["found"]["f1"] > 0.95 and result["val"]["accuracy"] == pytest.approx(result["found"]["accuracy"])


def test_answers_are_learned(tmp_path, vocabulary):
  rng, rows = np.random.default_rng(0), []
  for i, words, position in sentences(rng, 256):
    there = i % 4 > 0
    words[position] = "paris" if there else "no"
    begin = len(" ".join([*words[:position], ""]))
    rows.append((str(i), "is", " ".join(words), [("paris", begin)] if there else []))
  write_squad(tmp_path / "train.json", rows[:192])
  write_squad(tmp_path / "val.json", rows[192:])
  options = dict(dataset=str(tmp_path), vocab_file=vocabulary, length=10, doc_stride=3, max_query_length=2)
  config = tiny("question_answering", options | dict(eval_split="val"), head="question_answering", steps=100)
  config.evals = dict(val=dict(name="loss"), answers=dict(name="question_answering"))
  result = loop.train(config, tmp_path / "run")
  assert result["val"]["exact"] > 0.9
  assert result["answers"]["exact"] > 90 and result["answers"]["NoAns_f1"] > 80
  assert result["answers"]["best_exact"] >= result["answers"]["exact"]
  # The command evaluates the run, and another run takes over its vocabulary.
  assert cli.main(["eval", str(tmp_path / "run"), "answers", "--json", str(tmp_path / "scores.json")]) == 0
  assert json.loads((tmp_path / "scores.json").read_text())["answers"] == pytest.approx(result["answers"])
  assert labelled.open_vocabulary(str(tmp_path / "run")).digest == labelled.open_vocabulary(vocabulary).digest


def test_an_evaluation_of_another_kind_of_data_is_an_error(tmp_path, vocabulary):
  write_tsv(tmp_path / "train.tsv", [("a", 0), ("b", 1)] * 8)
  kind = dict(dataset=str(tmp_path), vocab_file=vocabulary, text="text", length=16, eval_split="train")
  config = tiny("sequence_classification", kind, head="sequence_classification", num_classes=2)
  for evaluation, named in (
    (
      dict(name="question_answering"),
      ("'question_answering'", "'sequence_classification'"),
    ),
    (dict(name="sequence_classification", metrics=("f2",)), ("'f2'", "'f1'")),
    (dict(name="sequence_classification", metrics=("pearson",)), ("'pearson'", "matthews_correlation")),
  ):
    config.evals = dict(judge=evaluation)
    with raises(ValueError, *named):
      evaluations.make(experiment.Experiment(config))


def random_batch(kind, length, rng):
  B = 4
  token, segment = np.zeros((2, B, length), np.int32)
  for i, size in enumerate((5, 8, 3, 6)):
    token[i, :size], segment[i, :size] = rng.integers(5, 29, size), 1
    token[i, 0] = 2
  position = np.where(segment, np.arange(length), 0).astype(np.int32)
  batch = dict(input_ids=token, segment_ids=segment, position_ids=position, token_type_ids=segment * (position > 3))
  batch |= dict(valid=np.array([True, True, True, False]), id=np.arange(B))
  if kind == "tag":
    batch["label"] = np.where((segment > 0) & (position % 2 == 1), token % 3, -1)
  elif kind == "span":
    batch |= dict(start_positions=np.array([1, 0, 2, 0]), end_positions=np.array([3, 0, 2, 1]))
  elif kind == "number":
    batch["label"] = np.array([0.5, -1.0, np.nan, 3.0], np.float32)
  elif kind == "choice":
    batch |= {
      name: batch[name].reshape(2, 2, length) for name in ("input_ids", "segment_ids", "position_ids", "token_type_ids")
    }
    batch |= dict(valid=np.ones(2, bool), id=np.arange(2), label=np.array([1, 0]))
  else:
    batch["label"] = np.array([1, 0, -1, 1])
  return batch


OBJECTIVES = dict(
  label=(Label(), "sequence_classification", 3),
  number=(Label(), "sequence_classification", 1),
  choice=(Label(), "multiple_choice", 0),
  tag=(Tag(), "token_classification", 3),
  span=(Span(), "question_answering", 0),
)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_loss_is_its_closed_form_and_padding_changes_nothing(kind):
  objective, head, classes = OBJECTIVES[kind]
  model = zoo.create("bert/test", head=head, num_classes=classes)
  batch = random_batch(kind, 8, np.random.default_rng(0))
  longer = random_batch(kind, 14, np.random.default_rng(0))
  variables = jax.jit(model.init)(jax.random.key(0), batch["input_ids"].reshape(-1, 8))
  variables = jax.tree.map(lambda a: a + 0.3 * jax.random.normal(jax.random.key(1), a.shape), variables)
  loss, other = objective(model, variables, batch), objective(model, variables, longer)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), loss[:3], other[:3])
  flat = {name: batch[name].reshape(-1, 8) for name in ("input_ids", "token_type_ids", "segment_ids", "position_ids")}
  row = zoo.layers.sequence_info.SequenceInfo(flat["segment_ids"], flat["position_ids"])
  output, _ = model.apply(variables, flat["input_ids"], flat["token_type_ids"], row)
  output = np.asarray(output, np.float64)
  log = lambda x, axis=-1: x - np.log(np.exp(x).sum(axis, keepdims=True))  # noqa: E731
  if kind == "label":
    wanted, weight = -log(output)[0, 1] - log(output)[1, 0], 2
  elif kind == "number":
    wanted, weight = (output[0, 0] - 0.5) ** 2 + (output[1, 0] + 1) ** 2, 2
  elif kind == "choice":
    scores = output.reshape(2, 2)
    wanted, weight = -log(scores)[0, 1] - log(scores)[1, 0], 2
  elif kind == "tag":
    positions = np.argwhere((batch["label"] >= 0) & batch["valid"][:, None])
    wanted, weight = -sum(log(output)[i, t, batch["label"][i, t]] for i, t in positions), len(positions)
  else:
    sides = [
      (batch[side][i], output[i, : (5, 8, 3)[i], s])
      for s, side in enumerate(("start_positions", "end_positions"))
      for i in range(3)
    ]
    wanted, weight = -sum(log(x)[position] for position, x in sides) / 2, 3
  assert float(loss.total) == pytest.approx(wanted, rel=1e-4) and float(loss.weight) == weight


def test_label_smoothing_applies_to_training_only():
  model = zoo.create("bert/test", head="sequence_classification", num_classes=3)
  batch = random_batch("label", 8, np.random.default_rng(0))
  variables = jax.jit(model.init)(jax.random.key(0), batch["input_ids"])
  plain, smooth = (Label(s)(model, variables, batch, jax.random.key(0)).total for s in (0.0, 0.3))
  output, _ = model.apply(variables, batch["input_ids"], batch["token_type_ids"])
  log = jax.nn.log_softmax(output)[:2]
  assert float(smooth) == pytest.approx(0.7 * float(plain) - 0.3 * float(log.mean(1).sum()), rel=1e-3)
  assert Label(0.3)(model, variables, batch).total == Label()(model, variables, batch).total
  with raises(ValueError, "label_smoothing", 1.5):
    objectives.make("sequence_classification", label_smoothing=1.5)
