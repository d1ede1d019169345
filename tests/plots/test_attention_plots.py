"""Attention: rollout, windows, the attention of a query, and of every head of a text."""

import jax
import numpy as np
import pytest
from matplotlib.image import imread
from support import assert_plotted, initialized, raises, random_images, random_model

import zoo
from train import config as configuration
from train import data, experiment, plots
from train.images import normalise
from train.plots import registry, token_attention

pytestmark = pytest.mark.usefixtures("one_device")


def test_rollout_of_identity_is_identity():
  weights = np.broadcast_to(np.eye(5), (4, 2, 3, 5, 5))
  np.testing.assert_array_equal(plots.rollout(weights), np.broadcast_to(np.eye(5), (2, 5, 5)))


@pytest.mark.parametrize("depth", [1, 2, 7])
def test_rollout_of_uniform_attention(depth):
  # (I + U) / 2 to the power L, with U the uniform matrix, U U = U.
  result = plots.rollout(np.full((depth, 1, 2, 5, 5), 1 / 5))
  np.testing.assert_allclose(result[0], 0.5**depth * np.eye(5) + (1 - 0.5**depth) / 5, rtol=1e-12)


def test_rollout_multiplies_the_last_block_from_the_left():
  rng = np.random.default_rng(0)
  weights = rng.dirichlet(np.ones(6), size=(3, 2, 4, 6))
  result = plots.rollout(weights)
  np.testing.assert_allclose(result.sum(-1), 1, rtol=1e-12)
  a, b, c = (w.mean(1) / 2 + np.eye(6) / 2 for w in weights)
  np.testing.assert_allclose(result, c @ b @ a, rtol=1e-12)


def test_attention_received_by_each_position():
  """Summed over all windows and queries; the weights of a query sum to 1, padding has no part."""
  model, variables, _ = random_model("swin/test", width=12)
  image = random_images(model)
  maps = plots.attention_received(model, variables, image)
  _, aux = jax.jit(model.apply)(variables, normalise(image, (0.5,), (0.5,)))
  assert [m.shape for m in maps] == [(2, 8, 10), (2, 4, 5)]  # in windows of 3
  for stage, (found, last) in enumerate(zip(maps, (0, 1), strict=True)):
    weights = np.asarray(aux[f"stage_{stage}/block_{last:02d}/shifted/weights"]).mean(1)
    _, Y, X = found.shape
    windows = model.config.window_layout((Y, X), shifted=True)
    positions = np.arange(1, Y * X + 1).reshape(1, Y, X, 1)
    numbers = np.asarray(windows.window_partition(positions))[..., 0]  # 0 is padding
    wanted = np.zeros((2, Y * X + 1))
    for window, number_T in enumerate([*numbers] * 2):
      for t in np.flatnonzero(number_T):
        np.add.at(wanted[window // len(numbers)], number_T, weights[window, t])
    np.testing.assert_allclose(found.reshape(2, -1), wanted[:, 1:], rtol=1e-5)
    np.testing.assert_allclose(wanted[:, 0], 0, atol=1e-6)
    np.testing.assert_allclose(found.mean((1, 2)), 1, rtol=1e-5)
    assert found.std() > 1e-4


def test_attention_maps_of_a_swin(tmp_path):
  """Also of a SimMIM, without masked patches."""
  small = dict(width=8, depths=(2, 2), num_heads=(1, 2), scan=True)
  simmim, params, _ = random_model("simmim/test", **small)
  encoder = params["params"]["encoder"]
  first = {k: v for k, v in encoder["stage_0"].items() if k != "mask"}
  model, variables = (
    zoo.create("swin/test", num_classes=0, **small),
    {"params": {"encoder": encoder | {"stage_0": first}}},
  )
  figure = plots.attention_maps(model, variables, random_images(model), path=tmp_path / "a.png")
  assert_plotted(tmp_path / "a.png")
  assert [axis.get_title() for axis in figure.axes[:3]] == ["image", "stage 0", "stage 1"] and len(figure.axes) == 6
  other = plots.attention_maps(simmim, params, random_images(model))
  for a, b in zip(figure.axes, other.axes, strict=True):
    np.testing.assert_allclose(a.images[0].get_array(), b.images[0].get_array(), atol=1e-4)
  with raises(ValueError, "swin"):
    plots.attention_rollout(model, variables, random_images(model))


def test_query_map():
  weights = np.arange(2 * 7 * 7, dtype=float).reshape(2, 7, 7) + 1
  cls = plots.query_map(weights, (2, 3), "cls")
  np.testing.assert_allclose(cls[1].ravel(), weights[1, 0, 1:] / weights[1, 0, 1:].sum())
  mean = plots.query_map(weights[:, 1:, 1:], (2, 3), "gap")
  np.testing.assert_allclose(mean[0].ravel(), weights[0, 1:, 1:].mean(0) / weights[0, 1:, 1:].mean(0).sum())
  np.testing.assert_array_equal(plots.query_map(weights, (2, 3), "gap"), mean)  # a class token that nobody pools
  assert cls.shape == mean.shape == (2, 2, 3)


@pytest.mark.parametrize("name, scan", [("vit/test", True), ("mae/test", False)])
def test_attention_weights_of_every_block(name, scan):
  model, variables = initialized(name, scan=scan)
  weights = plots.attention_weights(model, variables, random_images(model))
  tokens = model.config.grid[0] * model.config.grid[1] + 1  # nothing is masked
  assert weights.shape == (model.config.depth, 2, model.config.num_heads, tokens, tokens)
  np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)


def test_attention_of_an_autoencoder_keeps_the_patches_in_order():
  model, variables = initialized("mae/test", position_embedding="none", depth=1, decoder_depth=1)
  one = random_images(model, 1)
  other = one.copy()
  other[:, :4, 8:12] = 255 - other[:, :4, 8:12]  # the third patch
  first, second = (np.log(plots.attention_weights(model, variables, x)[0, 0, 0, 0, 1:]) for x in (one, other))
  change = first - second  # of the first block's scores for the class token, up to a constant
  np.testing.assert_array_equal(np.flatnonzero(np.abs(change - np.median(change)) > 1e-4), [2])


def test_attention_heads_shows_every_head_of_every_block(tmp_path):
  weights = np.random.default_rng(0).dirichlet(np.ones(4), size=(2, 3, 5))
  figure = plots.attention_heads(weights, list("abcde"), list("wxyz"), path=tmp_path / "heads.png")
  assert_plotted(tmp_path / "heads.png")
  shown = [axis.images[0].get_array() for axis in figure.axes]
  np.testing.assert_array_equal(shown, weights.reshape(6, 5, 4))
  assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == list("abcde")
  assert [t.get_text() for t in figure.axes[2].get_xticklabels()] == list("wxyz")


@pytest.fixture(scope="module")
def book(tmp_path_factory):
  """A text of 30 documents, and a folder of its lines with a label each."""
  folder, draw = tmp_path_factory.mktemp("book"), np.random.default_rng(0)
  lines = [" ".join(draw.choice(["one", "two", "three", "four"], 5)) + "." for _ in range(90)]
  (folder / "book.txt").write_text("\n\n".join("\n".join(lines[i : i + 3]) for i in range(0, 90, 3)))
  for split in ("train", "val"):
    (folder / f"{split}.tsv").write_text("\n".join(["text\tlabel", *(f"{line}\t{len(line) % 2}" for line in lines)]))
  return folder


def bert_run(book, kind):
  """An untrained small BERT on pairs of texts, on packed pieces, or on texts with labels."""
  size = dict(width=24, depth=2, mlp_dim=40, num_heads=4, vocab_size=150)
  rows = ["batch_size=8", f"model={dict(name='bert/nano', **size)}", f"data.dataset={book / 'book.txt'}"]
  rows += ["data.vocab_size=150", "data.length=32", "data.dupe_factor=1"]
  pairs = kind == "pairs"
  rows += [f"model.head={'pretraining' if pairs else 'masked_lm'}", f"data.pairs={pairs}", f"data.pack={not pairs}"]
  if kind == "labels":
    made = data.make(**configuration.load("bert_quickstart", rows).data)
    made.vocabulary.save(book)
    size |= dict(head="sequence_classification", num_classes=2, vocab_size=made.vocabulary.size)
    rows = [f"model={dict(name='bert/nano') | size}"]
    rows += [f"data.dataset={book}", f"data.vocab_file={book / 'tokenizer.json'}", "data.length=16"]
    rows += ["evals={}", "batch_size=8"]
  run = experiment.Experiment(configuration.load("bert_sentiment" if kind == "labels" else "bert_quickstart", rows))
  return run, run.model.init(jax.random.key(0), np.zeros((1, 8), np.int32))


@pytest.mark.parametrize("kind", ["pairs", "packed", "labels"])
def test_heads_of_an_encoder_over_a_sequence_of_its_data(book, tmp_path, kind):
  run, variables = bert_run(book, kind)
  figure = registry.draw("attention_heads", run, variables, tmp_path, tmp_path / "heads.png")
  assert imread(tmp_path / "heads.png").std() > 0.03  # untrained heads attend to everything
  tokens = [t.get_text() for t in figure.axes[0].get_yticklabels()]
  assert tokens == [t.get_text() for t in figure.axes[0].get_xticklabels()]
  assert tokens[0] == "[CLS]" and 6 <= len(tokens) <= registry.MAX_TOKENS and "[PAD]" not in tokens
  assert tokens.count("[CLS]") == 1  # one sequence, though the row may have more
  if kind == "pairs":
    assert tokens.count("[SEP]") == 2 and tokens[-1] == "[SEP]"
  weights = np.stack([axis.images[0].get_array() for axis in figure.axes])
  assert weights.shape == (2 * 4, len(tokens), len(tokens))
  np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)


def test_attention_over_a_text_is_that_of_its_row(book):
  """The tokens, types and positions that the row has in a batch, where padding follows."""
  run, variables = bert_run(book, "pairs")
  weights, tokens = token_attention.attention_of_text(
    run.model, variables, run.data.vocabulary, "one two.", "three [MASK]."
  )
  assert tokens == ["[CLS]", "one", "two", ".", "[SEP]", "three", "[MASK]", ".", "[SEP]"]
  ids = [run.data.vocabulary.tokenizer.token_to_id(token) for token in tokens]
  kind = np.array([[0] * 5 + [1] * 4 + [0] * 3])
  _, aux = run.model.apply(variables, np.array([ids + [0] * 3]), kind)
  for block in range(2):
    np.testing.assert_allclose(weights[block], aux[f"block_{block:02d}/weights"][0][:, :9, :9], rtol=1e-5, atol=1e-7)


def test_attention_heads_of_image_models_are_an_error():
  with raises(ValueError, "attention_heads", "'image_classification'"):
    registry.check("attention_heads", experiment.Experiment(configuration.load("quickstart")))
