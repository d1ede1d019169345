import functools
import itertools
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from support import random_model

import zoo
from train import config as configuration
from train import data, experiment, metrics, plots
from train.images import normalise
from train.objectives import simmim
from train.plots import registry, token_attention
from zoo.layers.patch_embed import patchify

pytestmark = pytest.mark.usefixtures("one_device")


@functools.cache
def model_and_variables(name, **overrides):
  model = zoo.create(name, **overrides)
  inputs = zoo.family(name).inputs(model.config, 1)
  zeros = [jnp.zeros(i.shape, i.dtype) for i in inputs]
  return model, jax.jit(model.init)({"params": jax.random.key(0), "mask": jax.random.key(1)}, *zeros)


def images(model, count=2):
  shape = (count, *model.config.image_size, model.config.num_channels)
  return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def drawn(path):
  """A written picture is one that shows something."""
  pixels = imread(path)
  assert min(pixels.shape[:2]) > 200 and pixels.std() > 0.05
  return pixels


# ---- rollout


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


# ---- attention within windows


def test_attention_that_places_receive():
  """By a walk over all windows and their queries; each gives away 1, and padding gives and gets none."""
  model, variables, _ = random_model("swin/test", width=12)
  image = images(model)
  maps = plots.attention_received(model, variables, image)
  _, aux = jax.jit(model.apply)(variables, normalise(image, (0.5,), (0.5,)))
  assert [m.shape for m in maps] == [(2, 8, 10), (2, 4, 5)]  # in windows of 3
  for stage, (found, last) in enumerate(zip(maps, (0, 1), strict=True)):
    weights = np.asarray(aux[f"stage_{stage}/block_{last:02d}/shifted/weights"]).mean(1)
    _, Y, X = found.shape
    windows = model.config.window_layout((Y, X), shifted=True)
    places = np.arange(1, Y * X + 1).reshape(1, Y, X, 1)
    numbers = np.asarray(windows.window_partition(places))[..., 0]  # 0 is padding
    wanted = np.zeros((2, Y * X + 1))
    for window, number_T in enumerate([*numbers] * 2):
      for t in np.flatnonzero(number_T):
        np.add.at(wanted[window // len(numbers)], number_T, weights[window, t])
    np.testing.assert_allclose(found.reshape(2, -1), wanted[:, 1:], rtol=1e-5)
    np.testing.assert_allclose(wanted[:, 0], 0, atol=1e-6)
    np.testing.assert_allclose(found.mean((1, 2)), 1, rtol=1e-5)
    assert found.std() > 1e-4


def test_attention_maps_of_a_swin(tmp_path):
  """Also of one that learned by hiding: nothing is hidden then."""
  small = dict(width=8, depths=(2, 2), num_heads=(1, 2), scan=True)
  hiding, params, _ = random_model("simmim/test", **small)
  encoder = params["params"]["encoder"]
  first = {k: v for k, v in encoder["stage_0"].items() if k != "mask"}
  model, variables = (
    zoo.create("swin/test", num_classes=0, **small),
    {"params": {"encoder": encoder | {"stage_0": first}}},
  )
  figure = plots.attention_maps(model, variables, images(model), path=tmp_path / "a.png")
  drawn(tmp_path / "a.png")
  assert [axis.get_title() for axis in figure.axes[:3]] == ["image", "stage 0", "stage 1"] and len(figure.axes) == 6
  other = plots.attention_maps(hiding, params, images(model))
  for a, b in zip(figure.axes, other.axes, strict=True):
    np.testing.assert_allclose(a.images[0].get_array(), b.images[0].get_array(), atol=1e-4)
  with pytest.raises(ValueError, match="no attention among all patches"):
    plots.attention_rollout(model, variables, images(model))


# ---- maps and tables


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
  model, variables = model_and_variables(name, scan=scan)
  weights = plots.attention_weights(model, variables, images(model))
  tokens = model.config.grid[0] * model.config.grid[1] + 1  # nothing is hidden
  assert weights.shape == (model.config.depth, 2, model.config.num_heads, tokens, tokens)
  np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)


def test_attention_of_an_autoencoder_keeps_the_patches_in_order():
  model, variables = model_and_variables("mae/test", position_embedding="none", depth=1, decoder_depth=1)
  one = images(model, 1)
  other = one.copy()
  other[:, :4, 8:12] = 255 - other[:, :4, 8:12]  # the third patch
  first, second = (np.log(plots.attention_weights(model, variables, x)[0, 0, 0, 0, 1:]) for x in (one, other))
  change = first - second  # of the first block's scores for the class token, up to a constant
  np.testing.assert_array_equal(np.flatnonzero(np.abs(change - np.median(change)) > 1e-4), [2])


@pytest.mark.parametrize("positions", ["learned_1d", "learned_2d", "sincos_2d"])
def test_position_table_is_what_the_encoder_adds(positions):
  model, variables = model_and_variables("vit/test", position_embedding=positions, depth=1)
  blank = jnp.zeros((1, *model.config.image_size, 3))
  embedded = model.apply(variables, blank)[1]["embedded"][0, 1:]
  bias = variables["params"]["encoder"]["patch"]["bias"]
  table = plots.position_table(model, variables)
  np.testing.assert_allclose(table.reshape(-1, model.config.width), embedded - bias, atol=1e-6)


def test_no_positions_is_an_error():
  with pytest.raises(ValueError, match="position_embedding='none'"):
    plots.position_table(*model_and_variables("vit/test", position_embedding="none"))


def test_similarity_by_hand():
  table = np.array([[[1.0, 0.0], [0.0, 2.0]], [[-3.0, 0.0], [4.0, 4.0]]])
  half = math.sqrt(0.5)
  np.testing.assert_allclose(plots.similarity(table)[0, 0], [[1, 0], [-1, half]], atol=1e-12)
  np.testing.assert_allclose(plots.similarity(table)[1, 1], [[half, half], [-half, 1]], atol=1e-12)


# ---- reconstructions


class Oracle:
  """A model that predicts the right patches, standardised or not."""

  def __init__(self, model, standardise):
    self.config, self.standardise = model.config, standardise

  def apply(self, variables, image_BYXC, noise_BP, *, mask_ratio):
    target = patchify(image_BYXC, self.config.patch_size).reshape(*noise_BP.shape, -1)
    if self.standardise:
      mean, var = target.mean(-1, keepdims=True), target.var(-1, keepdims=True, ddof=1)
      target = (target - mean) / jnp.sqrt(var + 1e-6)
    return target, {"masked": noise_BP > 1 - mask_ratio}


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_perfect_prediction_is_the_image(standardise, channels):
  model = zoo.create("mae/test", num_channels=channels)
  image = images(model)
  noise = jax.random.uniform(jax.random.key(0), (2, 15))
  kwargs = dict(norm_pix_loss=standardise, mean=(0.3,) * channels, std=(0.2,) * channels)
  result, hidden = plots.reconstruct(Oracle(model, standardise), {}, image, noise, mask_ratio=0.5, **kwargs)
  np.testing.assert_array_equal(result, image)
  np.testing.assert_array_equal(hidden[:, ::4, ::4, 0].reshape(2, 15), noise > 0.5)
  assert hidden.shape == (*image.shape[:3], 1)


@pytest.mark.parametrize(
  ("name", "fields", "count", "options"),
  [
    ("mae/test", dict(depth=1, decoder_depth=1), 15, {}),
    ("simmim/test", dict(depths=(2,), num_heads=(2,)), 20, dict(mask_patch_size=8)),
  ],
)
def test_hidden_pixels_are_what_the_model_did_not_see(name, fields, count, options):
  model, variables = model_and_variables(name, **fields)
  image = images(model, 1)
  noise = jax.random.uniform(jax.random.key(1), (1, count))
  predict = functools.partial(plots.reconstruct, model, variables, noise=noise, norm_pix_loss=False, **options)
  result, hidden = predict(image)
  np.testing.assert_array_equal(predict(np.where(hidden, 0, image).astype(np.uint8))[0], result)
  assert (predict(np.where(hidden, image, 0).astype(np.uint8))[0] != result).any()


def test_hidden_squares_are_those_of_the_objective(tmp_path):
  model, variables = model_and_variables("simmim/test", depths=(2,), num_heads=(2,))
  run = SimpleNamespace(model=model, objective=simmim.Objective(mask_patch_size=8, mask_ratio=0.7))
  figure = registry.PLOTS["reconstructions"].function(run, variables, None, images(model), path=tmp_path / "a.png")
  drawn(tmp_path / "a.png")
  assert "Reconstructed from 6 of 20 squares" in [t.get_text() for t in figure.texts]
  seen = figure.axes[2].images[0].get_array().reshape(4, 8, 5, 8, -1)
  assert (seen == plots.MASKED).all((1, 3, 4)).sum() == 14


# ---- curves


def test_smoothing_has_no_lag_and_passes_over_nan():
  line = np.arange(50.0)
  np.testing.assert_allclose(plots.smooth(line, 3)[20:-20], line[20:-20])
  np.testing.assert_array_equal(plots.smooth(line, 0), line)
  noise = np.random.default_rng(0).normal(size=400)
  assert plots.smooth(noise, 5).std() < 0.4 * noise.std()
  holed = np.where(line == 20, np.nan, 1.0)
  np.testing.assert_allclose(plots.smooth(holed, 3), holed)


def written(path, *, evals=True, rate=True, nan=False):
  with metrics.Log(path, 40, every_seconds=1e9) as log:
    for step in range(1, 41):
      extra = {"learning_rate": 1e-3 * step} if rate else {}
      log.train(step, {"loss": math.nan if nan and step > 30 else 2 / step, **extra})
      if evals and step % 20 == 0:
        log.eval(step, "test", {"loss": 3 / step, "accuracy": step / 50})
        log.note("half way")
  return path


def test_loss_curve_draws_what_was_logged(tmp_path):
  figure = plots.loss_curve(written(tmp_path), path=tmp_path / "deep" / "loss.png")
  drawn(tmp_path / "deep" / "loss.png")
  loss, share, rate = figure.axes
  raw, smoothed, test = (line.get_xydata() for line in loss.lines)
  np.testing.assert_allclose(raw, [(s, 2 / s) for s in range(1, 41)])
  assert len(smoothed) == 40
  np.testing.assert_allclose(test, [(20, 3 / 20), (40, 3 / 40)])
  np.testing.assert_allclose(share.lines[0].get_xydata(), [(20, 40), (40, 80)])
  np.testing.assert_allclose(rate.lines[0].get_xydata()[:, 1], 1e-3 * np.arange(1, 41))
  assert [t.get_text() for t in loss.texts] == ["training", "test"]


@pytest.mark.parametrize("kwargs", [dict(evals=False), dict(rate=False, evals=False), dict(nan=True)])
def test_loss_curve_of_other_logs(tmp_path, kwargs):
  figure = plots.loss_curve(written(tmp_path, **kwargs) / "metrics.jsonl", path=tmp_path / "loss.png")
  drawn(tmp_path / "loss.png")
  assert len(figure.axes) == 1 + kwargs.get("rate", True) + kwargs.get("evals", True)
  assert ("10 not finite" in " ".join(t.get_text() for t in figure.texts)) == kwargs.get("nan", False)


def test_names_at_the_ends_of_lines_do_not_touch(tmp_path):
  with metrics.Log(tmp_path, 10, every_seconds=1e9) as log:
    for step in (1, 10):
      log.train(step, {"loss": 1 / step})
      for name in "abcd":
        log.eval(step, name, {"loss": 1 / step})
  figure = plots.loss_curve(tmp_path)
  figure.canvas.random_model()
  boxes = sorted((t.get_window_extent() for t in figure.axes[0].texts), key=lambda box: box.y0)
  assert len(boxes) == 5 and all(a.y1 <= b.y0 + 2 for a, b in itertools.pairwise(boxes))


def test_a_log_without_training_is_an_error(tmp_path):
  (tmp_path / "metrics.jsonl").write_text('{"step": 1, "note": "x"}\n')
  with pytest.raises(ValueError, match="no training loss"):
    plots.loss_curve(tmp_path)


# ---- every picture


def test_plots_of_models(tmp_path):
  small = dict(num_channels=3, depth=2)
  mae = model_and_variables("mae/test", decoder_depth=1, **small)
  vit = model_and_variables("vit/test", class_token=False, pool="gap", **small)
  image = images(mae[0], 3)
  plots.reconstructions(*mae, image, path=tmp_path / "a.png")
  plots.attention_maps(*mae, image, path=tmp_path / "b.png", max_heads=1)
  plots.attention_rollout(*vit, image, path=tmp_path / "c.png")
  for path in tmp_path.glob("*.png"):
    drawn(path)


def test_position_similarity_thins_out_large_grids(tmp_path):
  model = model_and_variables("mae/test")
  figure = plots.position_similarity(plots.position_table(*model), path=tmp_path / "d.png")
  drawn(tmp_path / "d.png")
  assert len(figure.axes) == 5 * 3 + 1  # a map a patch, and the scale
  assert len(plots.position_similarity(np.ones((30, 10, 4))).axes) == 10 * 4 + 1


def test_without_a_path_nothing_is_written(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  model, variables = model_and_variables("vit/test")
  assert isinstance(plots.attention_rollout(model, variables, images(model)), Figure)
  assert not list(tmp_path.iterdir())


# ---- texts


def test_heads_shows_every_head_of_every_block(tmp_path):
  weights = np.random.default_rng(0).dirichlet(np.ones(4), size=(2, 3, 5))
  figure = plots.attention_heads(weights, list("abcde"), list("wxyz"), path=tmp_path / "heads.png")
  drawn(tmp_path / "heads.png")
  shown = [axis.images[0].get_array() for axis in figure.axes]
  np.testing.assert_array_equal(shown, weights.reshape(6, 5, 4))
  assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == list("abcde")
  assert [t.get_text() for t in figure.axes[2].get_xticklabels()] == list("wxyz")


def test_a_strip_for_each_number_of_the_tokens(tmp_path):
  numbers = {"type": [0, 0, 1], "position": [0, 1, 2]}
  figure = plots.token_inputs(["[CLS]", "a", "b"], numbers, path=tmp_path / "row.png")
  drawn(tmp_path / "row.png")
  first, second = figure.axes
  assert [t.get_text() for t in first.get_xticklabels()] == ["[CLS]", "a", "b"]
  for axis, values in zip(figure.axes, numbers.values(), strict=True):
    assert [t.get_text() for t in axis.texts][:3] == [str(value) for value in values]
    assert len({patch.get_facecolor() for patch in axis.patches}) == len({*values})
  assert [axis.texts[3].get_text() for axis in (first, second)] == [*numbers]


def test_what_is_hidden_is_told_apart(tmp_path):
  tokens = ["[CLS]", "a", "b", "c"]
  seen = [["[CLS]", "[MASK]", "x", "c"], tokens]
  chosen = np.array([[0, 1, 1, 1], [0, 0, 0, 1]], bool)
  figure = plots.masked_tokens(tokens, seen, chosen, path=tmp_path / "hidden.png")
  drawn(tmp_path / "hidden.png")
  (axis,) = figure.axes
  assert [t.get_text() for t in axis.texts] == [*seen[0], *seen[1]]
  assert [t.get_text() for t in axis.get_yticklabels()] == tokens
  colours = [patch.get_facecolor() for patch in axis.patches]
  plain, hidden, other, stays = colours[:4]
  assert len({*colours[:4]}) == 4 and colours[4:] == [plain] * 3 + [stays]
  legend = dict(
    zip([t.get_text() for t in figure.legends[0].get_texts()], figure.legends[0].get_patches(), strict=True)
  )
  assert {name: patch.get_facecolor() for name, patch in legend.items()} == {
    "masked": hidden, "random token": other, "unchanged": stays,
  }  # fmt: skip


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
  figure = registry.random_model("attention_heads", run, variables, tmp_path, tmp_path / "heads.png")
  assert imread(tmp_path / "heads.png").std() > 0.03  # untrained heads look everywhere
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


def test_heads_of_images_are_none():
  with pytest.raises(ValueError, match=r"attention_heads.*'image_classification'"):
    registry.check("attention_heads", experiment.Experiment(configuration.load("quickstart")))


def test_beam_tree_has_a_node_for_each_beginning_and_no_crossing(tmp_path):
  followed = [[("a",), ("b",)], [("b", "c"), ("a", "d"), ("b", "e")], [("a", "d", "."), ("b", "e", ".")]]
  figure = plots.beam_tree(followed, ("b", "e", "."), path=tmp_path / "tree.png")
  drawn(tmp_path / "tree.png")
  words = {t.get_text(): t for t in figure.axes[0].texts if t.get_text() != "."}
  assert {*words} == {"<s>", *"abcde"} and len(figure.axes[0].texts) == 8
  assert {w for w, t in words.items() if t.get_weight() == "bold"} == {"<s>", "b", "e"}
  heights = {w: t.get_position()[1] for w, t in words.items()}
  assert heights["d"] == heights["a"] < heights["c"] < heights["e"]  # children under their own parents
  with pytest.raises(ValueError, match="extends none"):
    plots.beam_tree([[("a",)], [("b", "c")]], ("a",))
