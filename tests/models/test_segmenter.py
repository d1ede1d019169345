"""Segmentation heads: every backbone and head fits; output sizes; predictions are at the right positions."""

import functools
import re

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import SegmentationHead, check_gradients, feature_maps, raises, random_model

import zoo
from train import config as configuration
from zoo import partitioning
from zoo.models import segmenter
from zoo.weights import load_into


def options(**fields):
  """With a hash, as the caches of the tests want it."""
  return flax.core.freeze(dict(patch_size=8, depth=1, width=8, mlp_dim=12) | fields)


TINY = dict(backbone_kwargs=options(), width=8, num_classes=5)


@pytest.mark.parametrize(
  "overrides",
  [
    dict(head="linear"),
    dict(head="fpn", norm="layer"),
    dict(head="fpn", backbone_kwargs=options(patch_size=4), image_size=(20, 12)),
    dict(head="upernet", norm="layer", backbone_kwargs=options(class_token=False, pool="gap")),
    dict(head="upernet", backbone_kwargs=options(patch_size=32), image_size=(64, 32), pool_scales=(1, 3)),
  ],
  ids=str,
)
def test_heads_and_patches(overrides):
  output, aux = check_gradients("segmenter/test", **TINY | overrides)
  c = zoo.create("segmenter/test", **TINY | overrides).config
  Y, X = c.image_size
  assert output.shape == (2, Y, X, 5)
  if c.head == "linear":
    assert aux["fused"].shape == (2, Y // c.patch_size, X // c.patch_size, 8)
  else:
    found = [aux[f"stage_{i}"].shape for i in range(4)]
    assert found == [(2, -(-Y // stride), -(-X // stride), 8) for stride in (4, 8, 16, 32)]
    assert aux["fused"].shape == (2, Y // 4, X // 4, 4 if c.head == "fpn" else 8)


@pytest.mark.parametrize("head", segmenter.HEADS)
def test_a_hierarchical_backbone_has_its_own_maps(head):
  fields = dict(
    backbone="convnext/test", backbone_kwargs=flax.core.freeze({}), head=head, image_size=(32, 48), num_classes=5
  )
  if head == "linear":  # reads the last map alone
    model, variables, (image,) = random_model("segmenter/test", **fields)
    output, aux = jax.jit(model.apply)(variables, image)
  else:
    output, aux = check_gradients("segmenter/test", **fields)
  assert output.shape == (2, 32, 48, 5)
  config = zoo.create("segmenter/test", **fields).config
  widths, strides = config.encoder.widths, config.encoder.strides
  for i, (width, stride) in enumerate(zip(widths, strides, strict=True)):
    assert aux[f"stage_{i}"].shape == (2, 32 // stride, 48 // stride, width)
  assert aux["fused"].shape[1:3] == ((32 // strides[-1], 48 // strides[-1]) if head == "linear" else (8, 12))
  assert config.depth == sum(config.encoder.depths)


def test_other_image_sizes():
  model, variables, _ = random_model("segmenter/test", **TINY)
  image = np.random.default_rng(0).normal(size=(1, 16, 56, 3)).astype(np.float32)
  output, _ = jax.jit(model.apply)(variables, image)
  assert output.shape == (1, 16, 56, 5) and np.isfinite(output).all()


@pytest.mark.parametrize("head", ["fpn", "upernet"])
def test_predictions_are_at_the_positions_of_their_features(head):
  """A mirrored feature map gives the mirrored prediction."""
  rng = np.random.default_rng(0)
  given = feature_maps(rng, size=(16, 8))
  config = segmenter.Config(head=head, width=8, num_classes=5, pool_scales=(1, 2))
  shapes = jax.eval_shape(SegmentationHead(config).init, jax.random.key(0), given)
  variables = jax.tree.map(lambda a: rng.normal(0.1, 0.4, a.shape).astype(np.float32), shapes)
  variables["params"] = jax.tree.map(  # filters that are mirror images of themselves
    lambda a: (a + a[:, ::-1]) / 2 if a.ndim == 4 else a, variables["params"]
  )
  variables["batch_stats"] = jax.tree.map(np.abs, variables["batch_stats"])
  apply = functools.partial(jax.jit(SegmentationHead(config).apply), variables)
  logits, _ = apply(given)
  mirrored, _ = apply([x[:, :, ::-1] for x in given])
  np.testing.assert_allclose(mirrored[:, :, ::-1], logits, rtol=1e-4, atol=1e-4)
  assert np.abs(mirrored - logits).max() > 0.1
  for i, x in enumerate(given):  # every map is read
    changed = [*given[:i], x + rng.normal(size=x.shape).astype(np.float32), *given[i + 1 :]]
    assert np.abs(apply(changed)[0] - logits).max() > 1e-3, i


def test_levels_upsample_by_convolution_and_downsample_by_maximum():
  x = np.random.default_rng(0).normal(size=(2, 5, 3, 4)).astype(np.float32)
  half = segmenter.Level(0.5).apply({}, x)
  padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=-np.inf)
  np.testing.assert_array_equal(half, padded.reshape(2, 3, 2, 2, 2, 4).max((2, 4)))
  np.testing.assert_array_equal(segmenter.Level(1.0).apply({}, x), x)
  level = segmenter.Level(4.0)
  variables = level.init(jax.random.key(0), x)
  grown = level.apply(variables, x)
  assert grown.shape == (2, 20, 12, 4)
  # Four by four pixels depend on one position alone.
  gradient = jax.jacobian(lambda x: level.apply(variables, x)[0, 9, 5].sum())(x)
  assert {tuple(index) for index in np.argwhere(np.abs(gradient).max(-1) > 0)} == {(0, 2, 1)}


def test_resize_is_the_resampling_of_position_tables():
  from zoo.layers.position_embeddings import resample

  x = np.random.default_rng(0).normal(size=(2, 5, 7, 3)).astype(np.float32)
  for size in ((10, 14), (13, 20), (3, 4), (5, 7)):
    wanted = [resample(one, size, "bilinear") for one in x]
    np.testing.assert_allclose(segmenter.resize(jnp.asarray(x), size), wanted, rtol=1e-5, atol=1e-5)


def test_pooling_is_adaptive_average_pooling():
  x = np.arange(2 * 6 * 4 * 1, dtype=np.float32).reshape(2, 6, 4, 1)
  np.testing.assert_allclose(segmenter.pool(x, 2), x.reshape(2, 2, 3, 2, 2, 1).mean((2, 4)), rtol=1e-6)
  np.testing.assert_allclose(segmenter.pool(x, 1)[:, 0, 0], x.mean((1, 2)), rtol=1e-6)
  # Rows 0, 1 and 1, 2 of three, to two bins; and more bins than rows repeat them.
  np.testing.assert_allclose(segmenter.pool(x[:, :3], 2)[:, :, 0, 0], [[2.5, 6.5], [26.5, 30.5]], rtol=1e-6)
  assert segmenter.pool(x, 7).shape == (2, 7, 7, 1)


def test_batch_statistics_are_kept_in_training_only():
  model, variables, (image,) = random_model("segmenter/test", **TINY)
  _, changed = jax.jit(functools.partial(model.apply, mutable=["batch_stats"]))(variables, image)
  moved = jax.tree.map(lambda a, b: bool((a != b).all()), changed["batch_stats"], variables["batch_stats"])
  assert all(jax.tree.leaves(moved)) and len(jax.tree.leaves(moved)) == 2 * (2 + 3 + 3 + 2)


def test_the_backbone_is_that_of_the_classifier():
  """Its parameters have the same paths, so that weights of a classifier begin a segmentation."""
  _, variables, (image,) = random_model("segmenter/test", **TINY)
  vit = zoo.create("vit/test", image_size=(40, 24), num_classes=0, **options())
  _, wanted = vit.apply({"params": {"encoder": variables["params"]["encoder"]}}, image)
  _, aux = zoo.create("segmenter/test", **TINY).apply(variables, image)
  np.testing.assert_allclose(aux["block_00"], wanted["block_00"], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(aux["stage_1"].reshape(2, -1, 8), wanted["tokens"][:, 1:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ("overrides", "named"),
  [
    (dict(backbone="vit/b17"), ("'vit/b17'", "'vit/b16'", "convnext/t")),
    (dict(backbone="bert/base", backbone_kwargs={}), ("'bert/base'",)),
    (dict(backbone="segmenter/fpn", backbone_kwargs={}), ("'segmenter/fpn'",)),
    (dict(backbone="vit/s14", backbone_kwargs={}, image_size=28), ("patch", 14, "strides")),
    (dict(backbone_kwargs="patch"), ("backbone_kwargs", "'patch'")),
    (dict(backbone_kwargs=dict(widht=3)), ("vit/test", "'widht'", "'width'")),
    (dict(backbone_kwargs=dict(num_channels=1)), ("backbone_kwargs", "num_channels")),
    (dict(head="uper"), ("head", "'uper'", "'upernet'")),
    (dict(norm="power"), ("norm", "'power'")),
    (dict(pool_scales=(0, 1)), ("pool_scales", (0, 1))),
    (dict(width=0, num_classes=0), ("width is 0", "num_classes is 0", 1)),
    (dict(image_size=(40, 23)), ("40 x 23", "8 x 8")),
  ],
  ids=str,
)
def test_invalid_segmenters(overrides, named):
  with raises(ValueError, *named):
    zoo.create("segmenter/test", **overrides)


# The config, its default run of a classifier, and a classifier with what makes it tiny.
RECIPES = {
  "upernet_convnext_t_oxford_pet": ("runs/convnext_t", "convnext/t", dict(widths=(8, 12, 16, 20), depths=(1,) * 4)),
  "upernet_swin_t_oxford_pet": ("runs/swin_t", "swin/t", dict(width=8, depths=(2,) * 4, num_heads=(1, 2, 2, 4))),
  "segmenter_fashion_scenes": ("", "swin/nano4", dict(width=8, num_heads=(1, 2, 2))),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_shipped_recipes_start_from_a_classifier(recipe, tmp_path):
  config = configuration.load(recipe)
  path, name, tiny = RECIPES[recipe]
  assert config.init.path == path and config.model.backbone == name
  classifier = zoo.create(name, **tiny)
  fields = configuration.kwargs(config.model) | dict(width=8)
  model = zoo.create(config.model.name, **fields | dict(backbone_kwargs=dict(fields.get("options", {}), **tiny)))
  rng = np.random.default_rng(0)
  pretrained, fresh = (
    jax.tree.map(
      lambda a: rng.normal(size=a.shape).astype(np.float32),
      jax.eval_shape(m.init, jax.random.key(0), jnp.zeros((1, 64, 64, model.config.num_channels))),
    )
    for m in (classifier, model)
  )
  zoo.save(tmp_path / "classifier.safetensors", name, tiny, pretrained)
  config.init.path = str(tmp_path / "classifier.safetensors")
  loaded = partitioning.flatten(load_into(model, fresh, **configuration.kwargs(config.init)))
  old, new = partitioning.flatten(pretrained), partitioning.flatten(fresh)
  assert loaded.keys() == new.keys()
  taken = {path for path in loaded if path in old and path.startswith("params/encoder/")}
  assert len(taken) == len([path for path in old if re.search("/encoder/(?!norm/)", path)]) > 30
  for path, leaf in loaded.items():
    np.testing.assert_array_equal(leaf, (old if path in taken else new)[path], err_msg=path)
  zoo.save(tmp_path / "classifier.safetensors", name, dict(tiny, activation="gelu_tanh"), pretrained)
  with raises(ValueError, name, "activation", "'gelu_tanh'", "'gelu'"):
    load_into(model, fresh, **configuration.kwargs(config.init))
