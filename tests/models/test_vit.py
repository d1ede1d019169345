"""ViT: pooling, positions, image sizes, dropout and stochastic depth; faults."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import check_gradients, raises, random_model

import zoo
from zoo.layers.position_embeddings import resample
from zoo.layers.stack import stack_params

TINY = dict(depth=1, width=8, mlp_dim=12)


@pytest.mark.parametrize(
  "overrides",
  [
    dict(position_embedding="none"),
    dict(position_embedding="learned_2d", pool="gap"),
    dict(position_embedding="sincos_2d", pool="map"),
    dict(position_embedding="relative", class_token=False, pool="gap"),
    dict(position_embedding="learned_1d", class_token=False, pool="map", representation_size=5),
    dict(pool="gap", head_norm="layer", final_norm=False, image_size=(8, 16)),
    dict(pool="gap", head_norm="batch", class_token=False, activation="gelu_tanh"),
    dict(representation_size=5, num_classes=0, num_channels=1),
  ],
  ids=str,
)
def test_vit_combinations(overrides):
  output, aux = check_gradients("vit/test", **TINY, **overrides)
  c = zoo.create("vit/test", **TINY, **overrides).config
  features = c.representation_size or c.width
  assert output.shape == (2, c.num_classes or features) and aux["features"].shape == (2, features)
  tokens = math.prod(c.grid) + c.class_token
  assert aux["tokens"].shape == aux["embedded"].shape == (2, tokens, c.width)
  assert aux["block_00/weights"].shape == (2, c.num_heads, tokens, tokens)
  tokens_BTD = np.asarray(aux["tokens"])
  if overrides.get("num_classes") is None and c.pool == "gap" and c.head_norm == "none":
    np.testing.assert_allclose(aux["features"], tokens_BTD[:, int(c.class_token) :].mean(1), rtol=1e-4, atol=1e-5)


def run(name, *inputs, variables=None, **overrides):
  """Output and aux of small models, not compiled: they share their few operations."""
  model, drawn, own = random_model(name, **TINY, **overrides)
  return model.apply(variables or drawn, *(inputs or own))


def test_what_is_pooled():
  for pool, of in (("cls", lambda t: t[:, 0]), ("gap", lambda t: t[:, 1:].mean(1))):
    _, aux = run("vit/test", pool=pool)
    np.testing.assert_allclose(aux["features"], of(np.asarray(aux["tokens"])), rtol=1e-5, atol=1e-6)


def test_the_mean_of_a_text():
  model = zoo.create("bert/test", head="sequence_classification", num_classes=3, pool="mean")
  token = jax.random.randint(jax.random.key(0), (2, 7), 5, 29)
  variables = model.init(jax.random.key(1), token)
  assert "pooler" not in variables["params"]
  logits, aux = model.apply(variables, token)
  head = variables["params"]["head"]
  np.testing.assert_allclose(logits, aux["tokens"].mean(1) @ head["kernel"] + head["bias"], rtol=1e-5, atol=1e-6)
  padded, _ = model.apply(variables, jnp.pad(token, ((0, 0), (0, 3))))
  np.testing.assert_allclose(padded, logits, rtol=1e-5, atol=1e-6)
  with raises(ValueError, "pool='mean'", "pool='cls'"):
    model.apply(variables, token, cls_positions_BZ=jnp.zeros((2, 1), jnp.int32))
  with raises(ValueError, "pool", "'max'"):
    zoo.create("bert/test", pool="max")


@pytest.mark.parametrize("positions", ["learned_1d", "learned_2d", "sincos_2d", "none"])
def test_other_image_sizes(positions):
  """Positions are resampled: an image of other size is encoded as a model of that size with a resampled table would."""
  image = np.random.default_rng(1).normal(size=(2, 28, 8, 3)).astype(np.float32)
  output, aux = run("vit/test", image, position_embedding=positions)
  assert np.isfinite(output).all() and aux["tokens"].shape == (2, 7 * 2 + 1, 8)
  _, variables, _ = random_model("vit/test", **TINY, position_embedding=positions)
  small = variables["params"]["encoder"].get("pos", {})
  pos = dict(small)
  if positions == "learned_1d":
    pos["table"] = resample(small["table"], (7, 2))
  if positions == "learned_2d":
    pos["row"] = resample(small["row"][:, None], (7, 1))[:, 0]
    pos["column"] = resample(small["column"][None], (1, 2))[0]
  encoder = variables["params"]["encoder"] | ({"pos": pos} if pos else {})
  of_that_size = {"params": variables["params"] | {"encoder": encoder}}
  wanted, _ = run("vit/test", image, variables=of_that_size, position_embedding=positions, image_size=(28, 8))
  np.testing.assert_allclose(output, wanted, rtol=1e-4, atol=1e-5)


def test_position_embeddings_distinguish_patches():
  """Without them, and with a mean over patches, a shuffled image is the same image; with them it is another."""
  _, _, (image,) = random_model("vit/test", **TINY)
  halves = np.concatenate([image[:, 8:], image[:, :8]], 1)
  for positions in ("none", "learned_1d", "learned_2d", "sincos_2d", "relative"):
    outputs = [
      run("vit/test", x, position_embedding=positions, pool="gap", class_token=False)[0] for x in (image, halves)
    ]
    difference = np.abs(outputs[0] - outputs[1]).max()
    assert difference < 1e-6 if positions == "none" else difference > 1e-4, positions


def test_relative_positions_are_of_one_length():
  with raises(ValueError, 16, 15):
    run("vit/test", np.zeros((1, 28, 8, 3), np.float32), position_embedding="relative")


def test_scan_with_everything_on():
  overrides = dict(TINY, depth=2, position_embedding="relative", pool="map", head_norm="batch", representation_size=5)
  model, variables, inputs = random_model("vit/test", **overrides)
  wanted, _ = model.apply(variables, *inputs)
  stacked = variables | {"params": stack_params(variables["params"])}
  output, _ = zoo.create("vit/test", scan=True, remat="dots_saveable", **overrides).apply(stacked, *inputs)
  np.testing.assert_allclose(output, wanted, rtol=1e-4, atol=1e-5)


def test_dropout_only_with_its_rng():
  model, variables, inputs = random_model("vit/test", **TINY)
  wanted, _ = model.apply(variables, *inputs)
  for rates in (dict(dropout_rate=0.5), dict(attention_dropout_rate=0.5), dict(drop_path_rate=0.5, depth=2)):
    other = zoo.create("vit/test", **TINY | rates)
    if "depth" in rates:
      _, variables, inputs = random_model("vit/test", **TINY | dict(depth=2))
      wanted, _ = zoo.create("vit/test", **TINY | dict(depth=2)).apply(variables, *inputs)
    np.testing.assert_array_equal(other.apply(variables, *inputs)[0], wanted)
    one, again, two = (other.apply(variables, *inputs, rngs={"dropout": jax.random.key(k)})[0] for k in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != two).any() and (one != wanted).any(), rates


@pytest.mark.parametrize("scan", [False, True])
def test_stochastic_depth_grows_with_depth(scan):
  """A block whose two branches are dropped is the identity: so of rate^2 of the examples."""
  overrides = dict(TINY, depth=3, width=4, mlp_dim=4, image_size=(4, 4), scan=scan)
  model, variables, (image,) = random_model("vit/test", batch=600, **overrides)
  model = zoo.create("vit/test", drop_path_rate=0.8, **overrides)
  _, aux = jax.jit(model.apply)(variables, image, rngs={"dropout": jax.random.key(0)})
  names = ["embedded", "block_00", "block_01", "block_02"]
  same = [(aux[a] == aux[b]).all((1, 2)).mean() for a, b in itertools.pairwise(names)]
  np.testing.assert_allclose(same, [0, 0.4**2, 0.8**2], atol=0.06)
  assert same[0] == 0


# ---- Faults ----


@pytest.mark.parametrize(
  ("overrides", "named"),
  [
    (dict(widht=3), ("vit/test", "'widht'", "'width'")),
    (dict(decoder_width=3), ("vit/test", "'decoder_width'")),
    (dict(depth="12"), ("vit/test", "depth", "'12'", "str", "int")),
    (dict(depth=2.0), ("vit/test", "depth", 2.0, "float", "int")),
    (dict(depth=True), ("vit/test", "depth", "True", "bool", "int")),
    (dict(scan=1), ("vit/test", "scan", 1, "int", "bool")),
    (dict(dropout_rate="no"), ("vit/test", "dropout_rate", "'no'", "str", "float")),
    (dict(image_size="large"), ("vit/test", "image_size", "'large'", "rows", "columns")),
    (dict(image_size=(224, 224, 3)), ("image_size", (224, 224, 3), "rows", "columns")),
    (dict(image_size=2.5), ("image_size", 2.5, "rows", "columns")),
    (dict(pool="mean"), ("pool", "'mean'", "cls, gap, map")),
    (dict(head_norm="group"), ("head_norm", "'group'", "none, layer, batch")),
    (dict(class_token=False), ("pool='cls'", "class_token=True")),
    (dict(activation="softplus"), ("activation", "'softplus'", "gelu, gelu_tanh, relu")),
    (dict(dtype="float16"), ("dtype", "'float16'", "'bfloat16'")),
    (dict(patch_size=0, depth=-1), ("patch_size", 0, 1, "depth", -1)),
    (dict(num_classes=-1), ("num_classes", -1, 0)),
    (dict(drop_path_rate=1.0), ("drop_path_rate", 1.0, 0, 1)),
    (dict(image_size=30), ("30 x 30", "4 x 4")),
  ],
)
def test_invalid_fields(overrides, named):
  with raises(ValueError, *named):
    zoo.create("vit/test", **overrides)


def test_fields_that_are_converted():
  c = zoo.create("vit/test", image_size=224, dropout_rate=0).config
  assert c.image_size == (224, 224) and isinstance(c.dropout_rate, (int, float))
  assert zoo.create("vit/test", image_size=[8, 16]).config.grid == (2, 4)


def init(name, image=(1, 20, 12, 3), **overrides):
  model = zoo.create(name, **overrides)
  rngs = {"params": jax.random.key(0), "mask": jax.random.key(0)}
  return jax.eval_shape(functools.partial(model.init, rngs), jax.ShapeDtypeStruct(image, jnp.float32))


@pytest.mark.parametrize("name", ["vit/test", "mae/test"])
def test_invalid_models(name):
  with raises(ValueError, "20 x 13", "4 x 4", 13, 12):
    init(name, (1, 20, 13, 3))
  with raises(ValueError, 5, "heads", 24, "[1, 2, 3, 4, 6, 8, 12"):
    init(name, num_heads=5)
  with raises(ValueError, "position_embedding", "'sincos'", "'sincos_2d'"):
    init(name, position_embedding="sincos")
  with raises(ValueError, "image_BYXC", 3):
    init("vit/test", (20, 12, 3))
