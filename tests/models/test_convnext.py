"""ConvNeXt: maps at every stage, receptive fields, depth, sizes, faults."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import raises

import zoo
from train.plan import models
from zoo.layers.stack import stack_params, unstack_params
from zoo.models import convnext

TINY = dict(widths=(4, 8), depths=(1, 2), patch_size=2, image_size=(8, 12))


def draw(batch=2, seed=0, **overrides):
  """A model, all of its parameters random, and images."""
  model = zoo.create("convnext/test", **TINY | overrides)
  inputs = zoo.family("convnext").inputs(model.config, batch)
  shapes = jax.eval_shape(model.init, {"params": jax.random.key(0)}, *inputs)
  rng = np.random.default_rng(seed)
  variables = jax.tree.map(lambda s: rng.normal(0.1, 0.3, s.shape).astype(np.float32), shapes)
  return model, variables, rng.normal(size=inputs[0].shape).astype(np.float32)


def test_every_stage_has_a_map():
  model = zoo.create("convnext/t", scan=True)
  image = jax.ShapeDtypeStruct((3, 224, 256, 3), jnp.float32)
  variables = jax.eval_shape(model.init, {"params": jax.random.key(0)}, image)
  logits, aux = jax.eval_shape(model.apply, variables, image)
  assert logits.shape == (3, 1000) and aux["features"].shape == (3, 768)
  assert model.config.strides == (4, 8, 16, 32)
  for i, (width, stride) in enumerate(zip(model.config.widths, model.config.strides, strict=True)):
    assert aux[f"stage_{i}"].shape == (3, 224 // stride, 256 // stride, width)
    blocks = [name for name in aux if name.startswith(f"stage_{i}/block_")]
    assert len(blocks) == model.config.depths[i]


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (33, 39)])
def test_any_size_that_is_large_enough(size):
  """A convolution without padding drops what is left over at the end of a row or column."""
  model, variables, _ = draw(**zoo.family("convnext").VARIANTS["test"])
  image = np.random.default_rng(0).normal(size=(1, *size, 3)).astype(np.float32)
  _, aux = jax.eval_shape(model.apply, variables, image)
  assert [aux[f"stage_{i}"].shape[1:3] for i in range(3)] == [(size[0] // s, size[1] // s) for s in (4, 8, 16)]


def test_maps_for_dense_prediction_are_normalised():
  model, variables, image = draw(head="features")
  for i in range(2):
    norm = variables["params"]["encoder"][f"stage_{i}"]["feature_norm"]
    norm["scale"], norm["bias"] = np.full_like(norm["scale"], 2), np.full_like(norm["bias"], 3)
  output, aux = model.apply(variables, image)
  assert output.shape == aux["stage_1"].shape == (2, 2, 3, 8) and output.dtype == jnp.float32
  np.testing.assert_array_equal(output, aux["stage_1"])
  for i, last in enumerate(("stage_0/block_00", "stage_1/block_01")):
    np.testing.assert_allclose(aux[f"stage_{i}"].mean(-1), 3, atol=1e-4)
    np.testing.assert_allclose(aux[f"stage_{i}"].std(-1), 2, rtol=1e-2)
    assert np.abs(aux[last].mean(-1)).max() > 0.1
  # The next stage is not made of what is normalised for others.
  plain, raw, _ = draw(num_classes=0)
  encoder = variables["params"]["encoder"]
  raw["params"]["encoder"] = {
    stage: {k: v for k, v in params.items() if k != "feature_norm"} for stage, params in encoder.items()
  }
  _, raw_aux = plain.apply(raw, image)
  np.testing.assert_allclose(raw_aux["stage_1"], aux["stage_1/block_01"], rtol=1e-5)


def test_the_classifier_reads_the_normalised_mean():
  model, variables, image = draw()
  logits, aux = model.apply(variables, image)
  params = variables["params"]
  mean = np.asarray(aux["stage_1"], np.float64).mean((1, 2))
  normed = (mean - mean.mean(1, keepdims=True)) / np.sqrt(mean.var(1, keepdims=True) + 1e-6)
  features = normed * params["norm"]["scale"] + params["norm"]["bias"]
  np.testing.assert_allclose(aux["features"], features, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(logits, features @ params["head"]["kernel"] + params["head"]["bias"], rtol=1e-4, atol=1e-4)
  found = convnext.features(model, variables, image)
  np.testing.assert_allclose(found, mean, rtol=1e-4, atol=1e-5)


def test_the_receptive_field_of_a_block_is_seven_by_seven():
  block = convnext.Block()
  x = np.random.default_rng(0).normal(size=(1, 11, 13, 4)).astype(np.float32)
  shapes = jax.eval_shape(block.init, {"params": jax.random.key(0)}, x)
  rng = np.random.default_rng(1)
  variables = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)
  gradient = jax.jit(jax.grad(lambda x: jnp.square(block.apply(variables, x)[0][0, 5, 6]).sum()))(x)[0]
  read = np.abs(gradient).max(-1) > 0
  wanted = np.zeros((11, 13), bool)
  wanted[2:9, 3:10] = True
  np.testing.assert_array_equal(read, wanted)
  # The convolution by hand, at a corner, where what is beyond the edge is 0: each feature by itself.
  p = variables["params"]
  padded = np.pad(x[0].astype(np.float64), ((3, 3), (3, 3), (0, 0)))
  by_hand = (padded[:7, :7] * p["conv"]["kernel"][:, :, 0]).sum((0, 1)) + p["conv"]["bias"]
  normed = (by_hand - by_hand.mean()) / np.sqrt(by_hand.var() + 1e-6) * p["norm"]["scale"] + p["norm"]["bias"]
  hidden = jax.nn.gelu(normed @ p["mlp"]["up"]["kernel"] + p["mlp"]["up"]["bias"], approximate=False)
  out = x[0, 0, 0] + p["layer_scale"] * (hidden @ p["mlp"]["down"]["kernel"] + p["mlp"]["down"]["bias"])
  np.testing.assert_allclose(block.apply(variables, x)[0][0, 0, 0], out, rtol=1e-4, atol=1e-5)


def test_layer_scale():
  """Blocks begin near the identity; without it there is no such parameter."""
  model = zoo.create("convnext/test", **TINY)
  image = np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype(np.float32)
  variables = jax.jit(model.init)({"params": jax.random.key(0)}, image)
  scales = [stage["block_00"]["layer_scale"] for stage in variables["params"]["encoder"].values()]
  assert len(scales) == 2 and all((scale == np.float32(1e-6)).all() for scale in scales)
  _, aux = model.apply(variables, image)
  np.testing.assert_allclose(aux["stage_1/block_01"], aux["stage_1/block_00"], atol=1e-4)
  _, none, _ = draw(layer_scale_init_value=0.0)
  assert not any("layer_scale" in path for path in map(str, jax.tree_util.tree_leaves_with_path(none)))


@functools.cache
def run(scan, remat):
  """Gradients, output and every map; how many blocks the program has; and the program of the gradient."""
  _, variables, image = draw()
  model = zoo.create("convnext/test", **TINY, scan=scan, remat=remat)

  def loss(params):
    logits, aux = model.apply({"params": params}, image)
    return jnp.square(logits).sum(), (logits, aux)

  params = stack_params(variables["params"]) if scan else variables["params"]
  program = jax.grad(loss, has_aux=True)
  grads, rest = jax.jit(program)(params)
  blocks = str(jax.make_jaxpr(loss)(params)).count(" erf")
  return (unstack_params(grads) if scan else grads), rest, blocks, str(jax.make_jaxpr(program)(params))


@pytest.mark.parametrize(("scan", "remat"), [(True, "dots_saveable"), (False, "nothing_saveable")])
def test_scan_is_loop_and_remat_changes_nothing(scan, remat):
  (*wanted, all_blocks, plain), (*found, blocks, program) = run(False, "none"), run(scan, remat)
  assert jax.tree.structure(found) == jax.tree.structure(wanted)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, wanted)
  assert all_blocks == 3 and blocks == (2 if scan else 3)  # one a stage, written once
  assert program.count("remat") > plain.count("remat")


@pytest.mark.parametrize("scan", [False, True])
def test_stochastic_depth_grows_over_all_stages(scan):
  sizes = dict(TINY, depths=(3, 2), image_size=(4, 4), scan=scan)
  model, variables, image = draw(batch=600, **sizes)
  model = zoo.create("convnext/test", drop_path_rate=0.8, **sizes)
  _, aux = jax.jit(functools.partial(model.apply, rngs={"dropout": jax.random.key(0)}))(variables, image)
  blocks = [f"stage_0/block_{i:02d}" for i in range(3)]
  same = [(aux[a] == aux[b]).all((1, 2, 3)).mean() for a, b in itertools.pairwise(blocks)]
  same += [(aux["stage_1/block_00"] == aux["stage_1/block_01"]).all((1, 2, 3)).mean()]
  np.testing.assert_allclose(same, [0.2, 0.4, 0.8], atol=0.07)  # of five blocks 0, 0.2, 0.4, 0.6 and 0.8
  alike = [m.apply(variables, image[:2])[0] for m in (model, zoo.create("convnext/test", **sizes))]
  np.testing.assert_array_equal(*alike)  # without a key nothing is dropped


def test_multiply_adds():
  """By hand, and as published (Liu et al. 2022, table 1)."""
  for name, published in dict(t=4.5e9, s=8.7e9, b=15.4e9, l=34.4e9).items():
    (found,) = models.describe_models(f"convnext/{name}")
    c = zoo.create(f"convnext/{name}").config
    wanted = c.widths[-1] * c.num_classes
    for i, (D, L, stride) in enumerate(zip(c.widths, c.depths, c.strides, strict=True)):
      inputs = 4 * c.widths[i - 1] if i else 16 * 3
      wanted += (224 // stride) ** 2 * (inputs * D + L * (49 * D + 8 * D * D))
    assert found.macs == wanted == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize(
  ("overrides", "named"),
  [
    (dict(widths=(8, 12)), ("2 widths", "3 depths")),
    (dict(widths=(8, 0, 3, 4)), ("widths", (8, 0, 3, 4), 1)),
    (dict(widths=(), depths=()), ("depths", "()")),
    (dict(depths=(1, 2.5, 1, 1)), ("convnext/test", "depths", (1, 2.5, 1, 1), "float", "int")),
    (dict(depths=3), ("convnext/test", "depths", 3, "int", "tuple")),
    (dict(head="classes"), ("head", "'classes'", "classification")),
    (dict(layer_scale_init_value=-1.0), ("layer_scale_init_value", -1.0, 0)),
    (dict(drop_path_rate=1.0), ("drop_path_rate", 1.0, 0, 1)),
  ],
)
def test_invalid_fields(overrides, named):
  with raises(ValueError, *named):
    zoo.create("convnext/test", **overrides)


def test_sizes_may_be_lists():
  """As a config that went through JSON has them."""
  config = zoo.create("convnext/test", widths=[8, 12], depths=[1, 1]).config
  assert config.widths == (8, 12) and hash(config)


def test_invalid_images():
  model, variables, _ = draw(**zoo.family("convnext").VARIANTS["test"])
  with raises(ValueError, "15 x 64", 16):
    model.apply(variables, np.zeros((1, 15, 64, 3), np.float32))
  with raises(ValueError, "channels", 1, 3):
    model.apply(variables, np.zeros((1, 64, 64, 1), np.float32))
