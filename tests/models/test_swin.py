"""Swin: windows are full attention with a mask, at any size and however they are shifted; costs; tables of offsets."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import check_gradients, random_model, random_variables

import zoo
from train.plan.macs import count_macs
from train.plan.models import describe_models
from zoo.layers.attention import Attention, cosine, dot_product_scores
from zoo.layers.position_embeddings import ContinuousRelativePositionBias, WindowRelativePositionBias, resample
from zoo.layers.stack import stack_params
from zoo.layers.windows import WindowLayout, msa_macs, shift_ratio, wmsa_macs
from zoo.models import swin
from zoo.weights import WeightsError


def normal(*shape, seed=0):
  return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


# ---- Windows ----


def places(size):
  """Rows and columns of all tokens of a map, [Y X, 2]."""
  return np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1).reshape(-1, 2)


def together(size, window, shift):
  """Which tokens of a plane share a window, [Y X, Y X], by the definition alone: no rolling, no padding."""
  of = (places(size) - np.array(shift)) // np.array(window)
  return (of[:, None] == of).all(-1)


SIZES = {
  "whole": ((6, 9), (3, 3)),
  "uneven": ((7, 5), (3, 3)),
  "even window": ((5, 9), (4, 4)),
  "smaller than a window": ((2, 3), (4, 4)),
  "oblong window": ((5, 8), (2, 3)),
}
HEADS, WIDTH = 2, 6


@functools.cache
def attention():
  """Of full maps and of windows, with a random score for every offset."""
  layer = Attention(HEADS)
  shapes = jax.eval_shape(layer.init, jax.random.key(0), normal(1, 1, WIDTH))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda s: rng.normal(0, 0.5, s.shape).astype(np.float32), shapes)
  table = WindowRelativePositionBias(HEADS, 9)
  scores = {"params": {"table": normal(17, 17, HEADS)}}
  return layer, params, lambda window: table.apply(scores, window)[None]


def in_windows(windows, x_BYXD):
  layer, params, bias = attention()
  y, *_ = layer.apply(
    params, windows.window_partition(x_BYXD), mask=windows.mask(len(x_BYXD)), bias=bias(windows.window_size)
  )
  return windows.window_reverse(y)


def in_full(x_BYXD, mask):
  """Every token of the map with every other, where the mask says so: quadratic, and without windows."""
  layer, params, bias = attention()
  B, Y, X, D = x_BYXD.shape
  y, *_ = layer.apply(params, x_BYXD.reshape(B, -1, D), mask=mask[None, None], bias=bias((Y, X)))
  return y.reshape(B, Y, X, D)


@pytest.mark.parametrize("method", ["roll", "pad"])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("case", SIZES)
def test_windows_are_full_attention_with_a_mask(case, shifted, method):
  size, window = SIZES[case]
  shift = tuple(side // 2 for side in window) if shifted else (0, 0)
  x_BYXD = normal(2, *size, WIDTH)
  windows = WindowLayout(size, window, shift, method)
  wanted = jax.jit(in_full)(x_BYXD, together(size, window, shift))
  found = jax.jit(functools.partial(in_windows, windows))(x_BYXD)
  np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shifted", [False, True])
def test_padding_that_is_attended_to_is_a_map_of_zeros_around(shifted):
  size, window = SIZES["uneven"]
  shift = (1, 1) if shifted else (0, 0)
  x_BYXD = normal(2, *size, WIDTH)
  whole = np.zeros((2, 9, 6, WIDTH), np.float32)
  whole[:, :7, :5] = x_BYXD
  wanted = jax.jit(in_full)(whole, together((9, 6), window, shift))[:, :7, :5]
  for method in ("roll", "pad"):
    found = in_windows(WindowLayout(size, window, shift, method, mask_padding=False), x_BYXD)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
  masked = in_windows(WindowLayout(size, window, shift), x_BYXD)
  assert np.abs(masked - wanted).max() > 0.01


def test_no_gradient_crosses_a_border():
  size, window, shift = (7, 5), (3, 3), (1, 1)

  def run(x_PD):
    return in_windows(WindowLayout(size, window, shift), x_PD.reshape(1, *size, WIDTH)).reshape(-1, WIDTH).sum(-1)

  jacobian = jax.jit(jax.jacobian(run))(normal(35, WIDTH))  # [P, P, D]
  np.testing.assert_array_equal(np.abs(jacobian).max(-1) > 0, together(size, window, shift))


def test_what_fits_needs_no_mask_and_the_rest_a_small_constant():
  assert WindowLayout((6, 9), (3, 3)).mask(2) is None
  for windows in (WindowLayout((6, 9), (3, 3), (1, 1)), WindowLayout((5, 9), (3, 3))):
    mask = windows.mask(2)
    assert mask.shape == (2 * windows.count, 1, 9, 9) and mask.dtype == bool and not mask.all()
    # Two numbers a token, and none a pair of tokens: the mask is made where it is used.
    constants = jax.make_jaxpr(lambda w=windows: w.mask(2))().consts
    assert sum(map(np.size, constants)) == 2 * windows.count * 9


@pytest.mark.parametrize("method", ["roll", "pad"])
def test_join_is_the_inverse_of_cut(method):
  x = normal(2, 7, 5, 3)
  windows = WindowLayout((7, 5), (3, 4), (1, 2), method)
  cut = windows.window_partition(x)
  assert cut.shape == (2 * windows.count, 12, 3)
  np.testing.assert_array_equal(windows.window_reverse(cut), x)


@pytest.mark.parametrize("windows", [1, 2, 5])
def test_nine_windows_for_four(windows):
  """Figure 4, and 3.2: from (h / M) (w / M) to (h / M + 1) (w / M + 1)."""
  assert shift_ratio((7 * windows, 7 * windows), 7) == (windows + 1) ** 2 / windows**2
  # That of 8 rows fills up to 14.
  assert shift_ratio((8, 14), 7) == 9 / 4
  model = functools.partial(zoo.create, "swin/test", depths=(2,), num_heads=(2,), image_size=(24, 24))
  rolled, padded = (count_macs(in_model(model(shift=shift)), spec(1, 24, 24, 3)) for shift in ("roll", "pad"))
  one = wmsa_macs(3, 3, 24, 3)
  assert padded - rolled == 5 * one  # one of the two blocks has windows of 3 x 3 tokens, 9 instead of 4


def spec(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def in_model(model):
  """A function of the image, with the parameters as they may be."""
  return lambda image: model.init_with_output({"params": jax.random.key(0)}, image)[0]


@pytest.mark.parametrize(
  ("shrink", "size", "window", "shift"),
  [
    ("both", (8, 14), (7, 7), (3, 3)),
    ("both", (7, 14), (7, 7), (0, 0)),
    ("both", (14, 5), (5, 5), (0, 0)),
    ("each", (7, 14), (7, 7), (0, 3)),
    ("each", (14, 5), (7, 5), (3, 0)),
    ("never", (14, 5), (7, 7), (3, 3)),
  ],
)
def test_windows_of_small_maps(shrink, size, window, shift):
  c = zoo.create("swin/t", clamp_window=shrink).config
  assert c.window_layout(size) == WindowLayout(size, window)
  assert c.window_layout(size, shifted=True) == WindowLayout(size, window, shift)


# ---- Any size ----

SMALL = dict(width=8, depths=(2, 2), num_heads=(2, 2))


def test_parameters_do_not_depend_on_the_size():
  for offsets in ("table", "continuous"):
    trees = []
    for size in ((32, 40), (17, 90), (1, 1), (12, 300)):
      model = zoo.create("swin/test", relative_position_bias=offsets, image_size=size)
      variables = jax.eval_shape(model.init, {"params": jax.random.key(0)}, spec(1, 64, 64, 3))
      assert set(variables) == {"params"}  # no mask is kept
      output, aux = jax.eval_shape(model.apply, variables, spec(2, *size, 3))
      Y, X = -(-size[0] // 4), -(-size[1] // 4)
      assert output.shape == (2, 7)
      assert aux["embedded"].shape == aux["stage_0"].shape == (2, Y, X, 24)
      assert aux["stage_1"].shape == aux["tokens"].shape == (2, -(-Y // 2), -(-X // 2), 48)
      trees.append(jax.tree.map(lambda a: a.shape, variables))
    assert all(tree == trees[0] for tree in trees)


@pytest.mark.parametrize(
  ("size", "overrides"),
  [((17, 50), {}), ((5, 3), {}), ((28, 28), dict(clamp_window="never", mask_padding=False, **swin.V2))],
)
def test_both_ways_to_shift_are_the_same_at_any_size(size, overrides):
  image = normal(2, *size, 3)
  _, variables, _ = random_model("swin/test", **SMALL, **overrides)
  outputs = []
  for shift in ("roll", "pad"):
    output, aux = jax.jit(zoo.create("swin/test", shift=shift, **SMALL, **overrides).apply)(variables, image)
    outputs.append((output, {k: a for k, a in aux.items() if not k.endswith("weights")}))
    assert np.isfinite(output).all()
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *outputs)


def test_a_part_of_an_image_that_has_its_own_windows_is_seen_alone():
  """Nothing is known of what is outside the window: of the first block's 3 x 3 patches, 12 x 12 pixels."""
  model, variables, _ = random_model("swin/test", **SMALL)
  apply = jax.jit(lambda image: model.apply(variables, image)[1]["stage_0/block_00/regular"])
  image = normal(1, 28, 28, 3)
  other = image.copy()
  other[:, 12:] += 1
  before, after = apply(image), apply(other)
  np.testing.assert_array_equal(before[:, :3], after[:, :3])
  assert (np.abs(before - after).max(-1) > 1e-3)[:, 3:].all()


# ---- Offsets ----


def test_a_table_of_offsets_by_hand():
  table_YXN = normal(5, 5, 2)
  layer = WindowRelativePositionBias(2, 3)
  for window in ((3, 3), (2, 3), (1, 2)):
    bias_NTT = layer.apply({"params": {"table": table_YXN}}, window)
    for (t, query), (s, key) in itertools.product(enumerate(places(window)), repeat=2):
      row, column = query - key + 2  # a smaller window reads the middle
      np.testing.assert_array_equal(bias_NTT[:, t, s], table_YXN[row, column])
  with pytest.raises(ValueError, match="a window of 4 x 3 has offsets beyond a table made for 3"):
    layer.apply({"params": {"table": table_YXN}}, (4, 3))


def test_continuous_offsets_by_hand():
  """V2, eq. 4, with the released code's -8 to 8; the same offset in another window has the same score."""
  layer = ContinuousRelativePositionBias(2, (4, 3), hidden=5)
  params = {"up": {"kernel": normal(2, 5), "bias": normal(5)}, "down": {"kernel": normal(5, 2)}}
  for window in ((4, 3), (2, 2), (7, 5)):
    bias_NTT = layer.apply({"params": params}, window)
    for (t, query), (s, key) in itertools.product(enumerate(places(window)), repeat=2):
      far = (query - key) * 8 / np.array([3, 2])
      logarithm = np.sign(far) * np.log(1 + np.abs(far)) / np.log(8)
      hidden = np.maximum(logarithm @ params["up"]["kernel"] + params["up"]["bias"], 0)
      wanted = 16 / (1 + np.exp(-hidden @ params["down"]["kernel"]))
      np.testing.assert_allclose(bias_NTT[:, t, s], wanted, rtol=1e-4, atol=1e-5)


def test_which_windows_continuous_offsets_were_trained_with():
  c = zoo.create("swin/v2_t", window_size=16).config
  assert [c.trained_window(stage) for stage in range(4)] == [(16, 16)] * 3 + [(8, 8)]
  c = zoo.create("swin/v2_t", window_size=24, image_size=384, pretrained_window_sizes=(12, 12, 12, 6)).config
  assert [c.trained_window(stage) for stage in range(4)] == [(12, 12)] * 3 + [(6, 6)]


LAYOUTS = ("zoo", "huggingface", "timm", "microsoft")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tables_of_another_window_are_resampled_when_asked_for(layout, tmp_path):
  _, variables = random_variables("swin/test")
  zoo.save(tmp_path / "w.safetensors", "swin/test", {}, variables, layout=layout)
  load = functools.partial(zoo.load, tmp_path / "w.safetensors", "swin/test", layout=layout, window_size=5)
  with pytest.raises(WeightsError, match=r"holds positions of another image size or window.*resample=True"):
    load()
  _, again = load(resample=True)
  resampled = 0

  def check(path, old, new):
    nonlocal resampled
    if path[-1].key == "table":
      resampled += 1
      np.testing.assert_allclose(new, resample(old, (9, 9), "bicubic"), rtol=1e-5, atol=1e-6)
    else:
      np.testing.assert_array_equal(new, old)

  jax.tree_util.tree_map_with_path(check, variables, again)
  assert resampled == 6


# ---- Cosines ----


def test_cosine_scores_are_the_formula():
  q, k, log_scale = normal(2, 5, 2, 3), normal(2, 4, 2, 3, seed=1), np.array([0.5, 9.0], np.float32)
  length = functools.partial(np.linalg.norm, axis=-1)
  cosines = np.einsum("btnh,bsnh->bnts", q, k) / np.einsum("btn,bsn->bnts", length(q), length(k))
  wanted = cosines * np.array([np.exp(0.5), 100.0])[:, None, None]  # tau is never below 0.01
  np.testing.assert_allclose(dot_product_scores(*cosine(q, k, log_scale)), wanted, rtol=1e-4, atol=1e-4)


def test_vectors_of_zero_have_no_direction():
  q, k, log_scale = np.zeros((1, 1, 1, 3), np.float32), normal(1, 4, 1, 3), np.zeros(1, np.float32)

  def scores(q, k):
    return jnp.square(dot_product_scores(*cosine(q, k, log_scale)) + 1).sum()

  assert scores(q, k) == 4
  for gradient in jax.grad(scores, (0, 1))(q, k):
    np.testing.assert_array_equal(gradient, 0)


def test_keys_have_no_bias_with_cosines():
  params = jax.eval_shape(Attention(2, cosine=True).init, jax.random.key(0), spec(1, 3, 4))["params"]
  assert set(params) == {"q", "k", "v", "out", "log_scale"}
  assert set(params["k"]) == {"kernel"} and set(params["q"]) == set(params["v"]) == {"kernel", "bias"}


# ---- The model ----


@pytest.mark.parametrize(
  "overrides",
  [
    dict(**swin.V2),
    dict(norm_position="res_post", head="none", clamp_window="never"),
    dict(attention_score="cosine", head="none", mask_padding=False, scan=True),
    dict(relative_position_bias="continuous", num_classes=0, shift="pad", num_channels=1),
  ],
  ids=str,
)
def test_combinations(overrides):
  output, aux = check_gradients("swin/test", **SMALL, **overrides)
  c = zoo.create("swin/test", **SMALL, **overrides).config
  assert aux["embedded"].shape == aux["stage_0"].shape == (2, 8, 10, 8)
  assert aux["stage_1"].shape == (2, 4, 5, 16) and aux["features"].shape == (2, 16)
  if c.head == "classification":
    assert output.shape == (2, c.num_classes or 16)
  else:
    np.testing.assert_array_equal(output, aux["tokens"])
  np.testing.assert_array_equal(aux["stage_1"], aux["stage_1/block_00/shifted"])
  np.testing.assert_allclose(aux["features"], aux["tokens"].mean((1, 2)), rtol=1e-4, atol=1e-5)


def test_maps_of_a_backbone_have_norms():
  model, variables, inputs = random_model("swin/test", **SMALL, head="features")
  output, aux = model.apply(variables, *inputs)
  np.testing.assert_array_equal(output, aux["stage_1"])
  for stage in range(2):
    norm = variables["params"]["encoder"][f"stage_{stage}"]["head_norm"]
    x = np.asarray(aux[f"stage_{stage}/block_00/shifted"])
    normal_x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    wanted = normal_x * norm["scale"] + norm["bias"]
    np.testing.assert_allclose(aux[f"stage_{stage}"], wanted, rtol=1e-3, atol=1e-4)


def test_a_probe_judges_the_features():
  model, variables, inputs = random_model("swin/test", **SMALL)
  _, aux = model.apply(variables, *inputs)
  np.testing.assert_allclose(swin.features(model, variables, *inputs), aux["features"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("overrides", [{}, swin.V2], ids=["V1", "V2"])
def test_a_scan_is_a_loop(overrides):
  overrides = dict(SMALL, depths=(2, 4), **overrides)
  model, variables, inputs = random_model("swin/test", **overrides)
  wanted = jax.jit(model.apply)(variables, *inputs)
  stacked = {"params": stack_params(variables["params"])}
  scanned = zoo.create("swin/test", scan=True, remat="dots_saveable", **overrides)
  shapes = jax.eval_shape(scanned.init, {"params": jax.random.key(0)}, *inputs)
  assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, shapes)
  found = jax.jit(scanned.apply)(stacked, *inputs)
  assert jax.tree.structure(found) == jax.tree.structure(wanted)  # also: the same intermediates, by the same names
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, wanted)


@pytest.mark.parametrize("scan", [False, True])
def test_stochastic_depth_grows_over_all_stages(scan):
  """A block whose two branches are dropped hands its input on: so of rate^2 of the examples."""
  overrides = dict(width=4, depths=(2, 4), num_heads=(1, 1), image_size=(4, 4), scan=scan)
  _, variables, (image,) = random_model("swin/test", batch=600, **overrides)
  model = zoo.create("swin/test", drop_path_rate=0.8, **overrides)
  _, aux = jax.jit(model.apply)(variables, image, rngs={"dropout": jax.random.key(0)})
  same = [
    (aux[a] == aux[b]).all((1, 2, 3)).mean()
    for a, b in [
      ("embedded", "stage_0/block_00/regular"),
      ("stage_0/block_00/regular", "stage_0/block_00/shifted"),
      ("stage_1/block_00/regular", "stage_1/block_00/shifted"),
      ("stage_1/block_00/shifted", "stage_1/block_01/regular"),
      ("stage_1/block_01/regular", "stage_1/block_01/shifted"),
    ]
  ]
  np.testing.assert_allclose(same, np.array([0, 0.16, 0.48, 0.64, 0.8]) ** 2, atol=0.06)
  assert same[0] == 0
  without, _ = model.apply(variables, image)
  np.testing.assert_array_equal(without, zoo.create("swin/test", **overrides).apply(variables, image)[0])


def test_a_new_v2_begins_with_blocks_that_do_nothing():
  for overrides, same in ((swin.V2, True), ({}, False)):
    config = zoo.create("swin/test", **SMALL, **overrides).config
    x_BYXD = normal(1, 3, 3, 8)
    (found, _), _ = swin.Block(config, 0, False).init_with_output(jax.random.key(0), x_BYXD)
    assert (found == x_BYXD).all() == same


# ---- Costs ----


def macs_of_attention(side, width, window):
  """Of the traced program; `window=0` for all tokens at once."""
  layer = Attention(1)
  params = jax.eval_shape(layer.init, jax.random.key(0), spec(1, 1, width))
  if not window:
    return count_macs(lambda p, x: layer.apply(p, x)[0], params, spec(1, side * side, width))
  windows = WindowLayout((side, side), (window, window), (window // 2, window // 2))

  def run(p, x_BYXD):
    return windows.window_reverse(layer.apply(p, windows.window_partition(x_BYXD), mask=windows.mask(1))[0])

  return count_macs(run, params, spec(1, side, side, width))


def test_costs_are_equations_1_and_2():
  sides = (14, 28, 56, 112)
  msa = [macs_of_attention(side, 8, 0) for side in sides]
  wmsa = [macs_of_attention(side, 8, 7) for side in sides]
  assert msa == [msa_macs(side, side, 8) for side in sides]
  assert wmsa == [wmsa_macs(side, side, 8, 7) for side in sides]
  pixels = np.log(np.square(sides))
  assert np.polyfit(pixels, np.log(wmsa), 1)[0] == pytest.approx(1)
  assert np.polyfit(pixels, np.log(msa), 1)[0] == pytest.approx(2, abs=0.05)


# MODELHUB of the released code, in billions; T, S, B and L at 224 px as FACTS have them, to two digits.
@pytest.mark.parametrize(
  ("name", "gmacs", "digits"),
  [
    *(("t", 4.49, 2), ("s", 8.74, 2), ("b", 15.43, 2), ("l", 34.48, 2)),
    *(("b_w12_384", 47.1, 1), ("l_w12_384", 103.9, 1)),
    *(("v2_t", 5.9, 1), ("v2_s", 11.5, 1), ("v2_b", 20.3, 1)),
  ],
)
def test_operations_are_as_published(name, gmacs, digits):
  (facts,) = describe_models(f"swin/{name}")
  assert round(facts.macs / 1e9, digits) == gmacs


# ---- What cannot be ----


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    (dict(depths=(2, 3)), r"depths is \(2, 3\); wanted even numbers"),
    (dict(depths=()), r"depths is \(\); wanted even numbers"),
    (dict(depths=(2, 2, 2)), r"num_heads is \(2, 6\); wanted at least 1 for each of the 3 stages"),
    (dict(depths=4), r"depths is 4 \(int\); wanted tuple"),
    (dict(depths=(2, "2")), r"depths is \(2, '2'\), with '2' \(str\); wanted int"),
    (dict(num_heads=(2, 5)), "5 heads do not divide the width 48"),
    (dict(window_size=0, mlp_ratio=0.0), "window_size is 0; wanted at least 1\nmlp_ratio is 0.0; wanted more than 0"),
    (
      dict(pretrained_window_sizes=(3,)),
      r"pretrained_window_sizes is \(3,\); wanted none, or 0 or more for each stage",
    ),
    (dict(shift="rol"), "shift is 'rol'; did you mean 'roll'"),
    (dict(head="tokens"), "head is 'tokens'.*There are: classification, none, features"),
    (dict(norm_position="post"), "norm_position is 'post'.*did you mean 'res_post'"),
  ],
)
def test_fields_that_cannot_be(overrides, message):
  with pytest.raises(ValueError, match=message):
    zoo.create("swin/test", **overrides)


def test_images_that_cannot_be():
  model = zoo.create("swin/test")
  with pytest.raises(ValueError, match="the images have 1 channels, the model takes 3"):
    jax.eval_shape(model.init, jax.random.key(0), spec(1, 32, 32, 1))
  with pytest.raises(ValueError, match="an image of 0 x 5 pixels"):
    jax.eval_shape(model.init, jax.random.key(0), spec(1, 0, 5, 3))


def test_lists_are_tuples():
  model = zoo.create("swin/test", depths=[2, 2], num_heads=[2, 2])
  assert model.config.depths == (2, 2) and model.config.depth == 4 and hash(model.config)
