"""Hybrids: the ResNet before the ViT by its closed forms, tokens, depth, faults."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import raises

import zoo
from train import optim
from zoo.layers.stack import stack_params
from zoo.models import hybrid
from zoo.partitioning import flatten

SMALL = dict(depth=1, stem_depths=(1, 3), patch_size=8, image_size=(16, 24))


def draw(module, *inputs, seed=0):
  """A module's variables, all random."""
  shapes = jax.eval_shape(module.init, {"params": jax.random.key(0)}, *inputs)
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda s: rng.normal(0.1, 0.3, s.shape).astype(np.float32), shapes)


def pixels(*shape):
  return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
  ("name", "stride", "cell"), [("r_ti16", 4, 8), ("r26_s32", 32, 1), ("r50_b16", 16, 1), ("r50_l32", 32, 1)]
)
def test_tokens(name, stride, cell):
  """Their number is that of the patches, whatever makes them."""
  model = zoo.create(f"hybrid/{name}", scan=True)
  c = model.config
  assert (c.stride, c.feature_patch_size) == (stride, cell) and c.grid == (224 // c.patch_size, 224 // c.patch_size)
  image = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
  variables = jax.eval_shape(model.init, {"params": jax.random.key(0)}, image)
  logits, aux = jax.eval_shape(model.apply, variables, image)
  assert logits.shape == (2, 1000) and aux["tokens"].shape == (2, c.grid[0] * c.grid[1] + 1, c.width)
  features = c.stem_width * 4 * 2 ** (len(c.stem_depths) - 1) if c.stem_depths else c.stem_width
  assert variables["params"]["encoder"]["patch"]["kernel"].shape == (cell**2 * features, c.width)


def test_a_kernel_is_standardised():
  """Whatever is added to all that makes a feature, or multiplies it, is no matter; the rest is a convolution."""
  conv, x = hybrid.StdConv(5, size=3, stride=2), pixels(2, 6, 8, 3)
  kernel = draw(conv, x)["params"]["kernel"]
  wanted = conv.apply({"params": {"kernel": kernel}}, x)
  assert wanted.shape == (2, 3, 4, 5)
  other = np.arange(1, 6) * (kernel + np.arange(5.0))
  np.testing.assert_allclose(conv.apply({"params": {"kernel": other.astype("f")}}, x), wanted, rtol=1e-3, atol=1e-4)
  # By hand: of one pixel too many to pad, the end gets it.
  standard = (kernel - kernel.mean((0, 1, 2))) / kernel.std((0, 1, 2))
  padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
  by_hand = np.einsum("byxc,yxcd->bd", padded[:, 2:5, 6:9], standard)
  np.testing.assert_allclose(wanted[:, 1, 3], by_hand, rtol=1e-4, atol=1e-4)


def test_group_norm_normalises_each_group_of_each_image():
  norm, x = hybrid.group_norm(2, 1e-6, jnp.float32, None), 100 + pixels(3, 4, 5, 6)
  variables = draw(norm, x)
  groups = x.astype(np.float64).reshape(3, 20, 2, 3)
  mean, deviation = groups.mean((1, 3), keepdims=True), groups.std((1, 3), keepdims=True)
  normed = ((groups - mean) / deviation).reshape(x.shape)
  wanted = normed * variables["params"]["scale"] + variables["params"]["bias"]
  np.testing.assert_allclose(norm.apply(variables, x), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_new_unit_is_the_identity(stride):
  unit, x = hybrid.Unit(4, 2, 1e-6, stride=stride, project=stride > 1), np.abs(pixels(2, 6, 6, 16))
  variables = unit.init({"params": jax.random.key(0)}, x)
  assert set(variables["params"]) == {
    *(f"conv{i}{norm}" for i in (1, 2, 3) for norm in ("", "_norm")),
    *(("proj", "proj_norm") if stride > 1 else ()),
  }
  y, _ = unit.apply(variables, x)
  assert y.shape == (2, 6 // stride, 6 // stride, 16)
  if stride == 1:
    np.testing.assert_array_equal(y, x)
  assert (unit.apply(draw(unit, x), x)[0] != y).any()


def test_scan_is_loop_and_remat_changes_nothing():
  model = zoo.create("hybrid/test", **SMALL)
  image = pixels(2, 16, 24, 3)
  variables = draw(model, image)

  def gradient(model):
    return jax.grad(lambda params: jnp.square(model.apply({"params": params}, image)[0]).sum())

  wanted = jax.jit(gradient(model))(variables["params"])
  assert set(wanted["encoder"]["stem"]["stage_1"]) == {"first", "block_00", "block_01"}
  scanned = gradient(zoo.create("hybrid/test", **SMALL, scan=True, remat="nothing_saveable"))
  found = jax.jit(scanned)(stack_params(variables["params"]))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), found, stack_params(wanted))
  text = str(jax.make_jaxpr(scanned)(stack_params(variables["params"])))
  assert "scan[" in text and ("checkpoint" in text or "remat" in text)


def test_other_sizes_resample_positions():
  model = zoo.create("hybrid/test", **SMALL)
  variables = draw(model, pixels(1, 16, 24, 3))
  _, aux = model.apply(variables, pixels(2, 24, 16, 3))
  assert aux["tokens"].shape == (2, 3 * 2 + 1, 24)


def test_features_are_those_of_the_encoder():
  model, image = zoo.create("hybrid/test", **SMALL), pixels(2, 16, 24, 3)
  variables = draw(model, image)
  _, aux = model.apply(variables, image)
  found = hybrid.features(model, variables, image)
  np.testing.assert_allclose(found, aux["tokens"][:, 1:].mean(1), rtol=1e-4, atol=1e-5)


def test_the_stem_is_the_first_layer():
  """Of layer-wise rates; and Muon trains its convolutions as matrices from all of their inputs."""
  model = zoo.create("hybrid/test", **SMALL)
  params = draw(model, pixels(1, 16, 24, 3))["params"]
  scales = optim.layer_scales(params, 0.5, model)
  assert {scale for path, scale in scales.items() if path.startswith("encoder/stem/")} == {0.25}
  assert scales["encoder/block_00/mlp/up/kernel"] == 0.5 and scales["head/kernel"] == 1
  optimizer, _ = optim.make(params, 10, model=model, name="muon", learning_rate=0.1, schedule="constant")
  gradients = jax.tree.map(lambda p: p + 1, params)  # one large singular value, to be made as small as the others
  change, _ = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
  update = flatten(change)["encoder/stem/stage_1/first/conv2/kernel"]  # 3 x 3 x 16 to 16
  singular = np.linalg.svd(np.asarray(update).reshape(-1, 16), compute_uv=False)
  assert singular.max() / singular.min() < 3


@pytest.mark.parametrize(
  ("overrides", "named"),
  [
    (dict(patch_size=12, image_size=(24, 24)), ("patch_size", 12, 8, 16)),
    (dict(stem_depths=(1, 0)), ("stem_depths", (1, 0), 1)),
    (dict(stem_groups=3), (3, "groups", 8, [1, 2, 4, 8])),
    (dict(image_size=(48, 40)), ("48 x 40", "16 x 16")),
  ],
)
def test_invalid_hybrids(overrides, named):
  with raises(ValueError, *named):
    zoo.create("hybrid/test", **overrides)


def test_invalid_images():
  model = zoo.create("hybrid/test", **SMALL)
  variables = draw(model, pixels(1, 16, 24, 3))
  with raises(ValueError, "16 x 20", "8 x 8", 20, 8):
    model.apply(variables, pixels(1, 16, 20, 3))
