"""Swin: any size of image, both ways to shift windows, combinations of fields, costs, faults. Windows: tests/layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import check_gradients, draw, raises, random_model

import zoo
from train.plan.models import describe_models
from zoo.layers.stack import stack_params
from zoo.layers.windows import WindowLayout
from zoo.models import swin


def spec(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.mark.parametrize(
  ("clamp_window", "size", "window", "shift"),
  [
    ("both", (8, 14), (7, 7), (3, 3)),
    ("both", (7, 14), (7, 7), (0, 0)),
    ("both", (14, 5), (5, 5), (0, 0)),
    ("each", (7, 14), (7, 7), (0, 3)),
    ("each", (14, 5), (7, 5), (3, 0)),
    ("never", (14, 5), (7, 7), (3, 3)),
  ],
)
def test_windows_of_small_maps(clamp_window, size, window, shift):
  c = zoo.create("swin/t", clamp_window=clamp_window).config
  assert c.window_layout(size) == WindowLayout(size, window)
  assert c.window_layout(size, shifted=True) == WindowLayout(size, window, shift)


# ---- Any size ----

SMALL = dict(width=8, depths=(2, 2), num_heads=(2, 2))


def test_parameters_do_not_depend_on_the_size():
  for bias in ("table", "continuous"):
    trees = []
    for size in ((32, 40), (17, 90), (1, 1), (12, 300)):
      model = zoo.create("swin/test", relative_position_bias=bias, image_size=size)
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
  image = draw(2, *size, 3)
  _, variables, _ = random_model("swin/test", **SMALL, **overrides)
  outputs = []
  for shift in ("roll", "pad"):
    output, aux = jax.jit(zoo.create("swin/test", shift=shift, **SMALL, **overrides).apply)(variables, image)
    outputs.append((output, {k: a for k, a in aux.items() if not k.endswith("weights")}))
    assert np.isfinite(output).all()
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *outputs)


def test_pixels_outside_a_window_do_not_matter_in_the_first_block():
  """Nothing is known of what is outside the window: of the first block's 3 x 3 patches, 12 x 12 pixels."""
  model, variables, _ = random_model("swin/test", **SMALL)
  apply = jax.jit(lambda image: model.apply(variables, image)[1]["stage_0/block_00/regular"])
  image = draw(1, 28, 28, 3)
  other = image.copy()
  other[:, 12:] += 1
  before, after = apply(image), apply(other)
  np.testing.assert_array_equal(before[:, :3], after[:, :3])
  assert (np.abs(before - after).max(-1) > 1e-3)[:, 3:].all()


def test_the_pretrained_windows_of_continuous_relative_position_bias():
  c = zoo.create("swin/v2_t", window_size=16).config
  assert [c.trained_window(stage) for stage in range(4)] == [(16, 16)] * 3 + [(8, 8)]
  c = zoo.create("swin/v2_t", window_size=24, image_size=384, pretrained_window_sizes=(12, 12, 12, 6)).config
  assert [c.trained_window(stage) for stage in range(4)] == [(12, 12)] * 3 + [(6, 6)]


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


def test_feature_maps_of_a_backbone_are_normalised():
  model, variables, inputs = random_model("swin/test", **SMALL, head="features")
  output, aux = model.apply(variables, *inputs)
  np.testing.assert_array_equal(output, aux["stage_1"])
  for stage in range(2):
    norm = variables["params"]["encoder"][f"stage_{stage}"]["head_norm"]
    x = np.asarray(aux[f"stage_{stage}/block_00/shifted"])
    normal_x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    wanted = normal_x * norm["scale"] + norm["bias"]
    np.testing.assert_allclose(aux[f"stage_{stage}"], wanted, rtol=1e-3, atol=1e-4)


def test_probe_features_are_the_features():
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
  """A block whose two branches are dropped is the identity: so of rate^2 of the examples."""
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


def test_blocks_of_a_new_v2_are_the_identity():
  for overrides, same in ((swin.V2, True), ({}, False)):
    config = zoo.create("swin/test", **SMALL, **overrides).config
    x_BYXD = draw(1, 3, 3, 8)
    (found, _), _ = swin.Block(config, 0, False).init_with_output(jax.random.key(0), x_BYXD)
    assert (found == x_BYXD).all() == same


# ---- Costs ----


# MODELHUB of the released code, in billions; T, S, B and L at 224 px as FACTS have them, to two digits.
@pytest.mark.parametrize(
  ("name", "gmacs", "digits"),
  [
    *(("t", 4.49, 2), ("s", 8.74, 2), ("b", 15.43, 2), ("l", 34.48, 2)),
    *(("b_w12_384", 47.1, 1), ("l_w12_384", 103.9, 1)),
    *(("v2_t", 5.9, 1), ("v2_s", 11.5, 1), ("v2_b", 20.3, 1)),
  ],
)
def test_macs_are_as_published(name, gmacs, digits):
  (facts,) = describe_models(f"swin/{name}")
  assert round(facts.macs / 1e9, digits) == gmacs


# ---- Faults ----


@pytest.mark.parametrize(
  ("overrides", "named"),
  [
    (dict(depths=(2, 3)), ("depths", (2, 3), "even")),
    (dict(depths=()), ("depths", "()")),
    (dict(depths=(2, 2, 2)), ("num_heads", (2, 6), 1, 3)),
    (dict(depths=4), ("depths", 4, "int", "tuple")),
    (dict(depths=(2, "2")), ("depths", "(2, '2')", "str", "int")),
    (dict(num_heads=(2, 5)), (5, "heads", 48)),
    (dict(window_size=0, mlp_ratio=0.0), ("window_size is 0", 1, "mlp_ratio is 0.0")),
    (dict(pretrained_window_sizes=(3,)), ("pretrained_window_sizes", (3,))),
    (dict(shift="rol"), ("shift", "'rol'", "'roll'")),
    (dict(head="tokens"), ("head", "'tokens'", "classification, none, features")),
    (dict(norm_position="post"), ("norm_position", "'post'", "'res_post'")),
  ],
)
def test_invalid_fields(overrides, named):
  with raises(ValueError, *named):
    zoo.create("swin/test", **overrides)


def test_invalid_images():
  model = zoo.create("swin/test")
  with raises(ValueError, "channels", 1, 3):
    jax.eval_shape(model.init, jax.random.key(0), spec(1, 32, 32, 1))
  with raises(ValueError, "0 x 5"):
    jax.eval_shape(model.init, jax.random.key(0), spec(1, 0, 5, 3))


def test_lists_become_tuples():
  model = zoo.create("swin/test", depths=[2, 2], num_heads=[2, 2])
  assert model.config.depths == (2, 2) and model.config.depth == 4 and hash(model.config)
