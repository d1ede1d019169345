"""Optimisers by name, schedules by their closed forms, and settings by a parameter's path."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from support import raises

import zoo
from train import optim
from zoo import partitioning
from zoo.layers.stack import stack_params, unstack_params


def make_model(name="vit/test", **overrides):
  small = dict(width=8, mlp_dim=12, depth=3) if name == "vit/test" else {}
  return zoo.create(name, **small | overrides)


@functools.cache
def shapes(name="vit/test", **overrides):
  model = make_model(name, **overrides)
  rngs = {"params": jax.random.key(0), "mask": jax.random.key(1)}
  return jax.eval_shape(functools.partial(model.init, rngs), *zoo.family(name).inputs(model.config, 1))["params"]


def draw(tree, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype(np.float32), tree)


def updates(gradients, params, steps=1, **kwargs):
  """Those of the last of some steps of the same gradients."""
  given = dict(model=make_model(), learning_rate=0.1, schedule="constant")
  optimizer, _ = optim.make(params, 10, **given | kwargs)
  state = optimizer.init(params)
  for _ in range(steps):
    result, state = jax.jit(optimizer.update)(gradients, state, params)
  return result


# A matrix that Muon trains by its name, one that it leaves to Adam, and a vector.
TOY = {"encoder": {"block_00": {"mlp": {"up": {"kernel": np.ones((4, 6)), "bias": np.ones(6)}}}, "cls": np.ones(4)}}
TOY = jax.tree.map(lambda a: a.astype(np.float32), TOY)
RATES = dict(adamw=0.1, lamb=0.1, lars=1.0, lion=0.05, adafactor=0.3, muon=0.1, sgd=0.1)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_every_optimiser_descends(name):
  goal = draw(TOY)

  def loss(params):
    return sum(jnp.square(p - g).sum() for p, g in zip(*map(jax.tree.leaves, (params, goal)), strict=True))

  optimizer, _ = optim.make(
    TOY,
    40,
    model=make_model(),
    name=name,
    learning_rate=RATES[name],
    warmup=0.1,
    weight_decay=1e-4,
    grad_clip_norm=10.0,
  )

  @jax.jit
  def train(params):
    def step(carry, _):
      params, state = carry
      change, state = optimizer.update(jax.grad(loss)(params), state, params)
      return (jax.tree.map(jnp.add, params, change), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), length=40)[0][0]

  after = train(TOY)
  assert loss(after) < 0.6 * loss(TOY)
  assert all((a != b).any() for a, b in zip(*map(jax.tree.leaves, (after, TOY)), strict=True))


def test_every_optimiser_has_its_test():
  assert set(RATES) == set(optim.OPTIMIZERS)


# ---- Schedules ----


@pytest.mark.parametrize(
  ("name", "wanted"),
  [
    ("constant", lambda t: 1.0),
    ("cosine", lambda t: 0.1 + 0.9 * (1 + np.cos(np.pi * t / 80)) / 2),
    ("linear", lambda t: 1 - 0.9 * t / 80),
    ("rsqrt", lambda t: 1 / np.sqrt(1 + t / 50)),
  ],
)
@pytest.mark.parametrize("peak", [1.0, 3e-4])
def test_schedules(name, wanted, peak):
  rate = optim.make_schedule(name, peak, 20, 100, final=0.1 * peak, timescale=50)
  assert rate(0) == 0
  np.testing.assert_allclose([rate(5), rate(20)], [peak / 4, peak], rtol=1e-5)
  for step in (20, 33, 60, 99, 100):
    np.testing.assert_allclose(rate(step), peak * wanted(step - 20), rtol=1e-5)
  assert optim.make_schedule(name, peak, 0, 100)(0) == pytest.approx(peak)


def test_a_rate_that_falls_in_steps():
  rate = optim.make_schedule("step", 3.0, 20, 100, boundaries=(0.5, 0.9))
  np.testing.assert_allclose([rate(s) for s in (10, 20, 49, 50, 89, 90, 100)], [1.5, 3, 3, 0.3, 0.3, 0.03, 0.03])
  for name, boundaries in (("step", ()), ("step", (0.2,)), ("step", (0.5, 1.0)), ("cosine", (0.5,))):
    with raises(ValueError, "boundaries", boundaries, f"'{name}'", 100):
      optim.make_schedule(name, 3.0, 20, 100, boundaries=boundaries)


def test_warmup_is_steps_or_a_share():
  for warmup in (4, 0.2):
    _, rate = optim.make(TOY, 20, learning_rate=1.0, schedule="constant", warmup=warmup)
    np.testing.assert_allclose([rate(0), rate(2), rate(4), rate(9)], [0, 0.5, 1, 1])


def test_invalid_schedules():
  with raises(ValueError, "schedule", "'cosin'", "'cosine'"):
    optim.make_schedule("cosin", 1.0, 0, 10)
  for warmup in (10, -1):
    with raises(ValueError, "warmup", warmup, 10):
      optim.make_schedule("cosine", 1.0, warmup, 10)


# ---- Weight decay ----


def decaying(params, **kwargs):
  """Paths of what moves although its gradient is 0."""
  zero = jax.tree.map(np.zeros_like, params)
  change = updates(zero, params, weight_decay=0.5, **kwargs)
  return {path: u for path, u in partitioning.flatten(change).items() if np.abs(u).max() > 0}


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_kernels_decay_and_nothing_else(name):
  params = draw(shapes("mae/test", depth=1, decoder_depth=1, position_embedding="learned_1d"))
  model = make_model("mae/test", depth=1, decoder_depth=1, position_embedding="learned_1d")
  change = decaying(params, name=name, model=model)
  assert set(change) == {path for path in partitioning.flatten(params) if path.endswith("kernel")}
  if name not in ("lamb", "lars"):  # which scale the rate by the norm
    for path, update in change.items():
      np.testing.assert_allclose(update, -0.1 * 0.5 * partitioning.flatten(params)[path], rtol=1e-4, err_msg=path)


def test_no_decay_by_path():
  vit, mae, swin = (zoo.family(name).NO_DECAY for name in ("vit", "mae", "swin"))
  for name in ("pos/row", "pos/column", "pos/table", "pos/cls", "cls", "norm/scale", "head_norm/bias", "attn/relative"):
    assert partitioning.matches(vit, f"encoder/{name}"), name
  for name in ("pool/probe", "decoder/mask", "encoder/block_00/norm1/scale", "encoder/blocks/mlp/up/bias"):
    assert partitioning.matches(mae, name), name
  block = "encoder/stage_0/blocks/shifted"  # as Swin's released code has it
  for name in (
    "relative_position_bias/table",
    "relative_position_bias/up/kernel",
    "relative_position_bias/down/kernel",
    "attn/log_scale",
    "norm2/scale",
  ):
    assert partitioning.matches(swin, f"{block}/{name}"), name
  assert partitioning.matches(swin, "encoder/stage_1/merged_norm/scale")
  kernels = ("head", "encoder/patch", "encoder/blocks/attn/q", "representation", f"{block}/attn/q", "stage_1/merge")
  for name in (f"{path}/kernel" for path in kernels):
    assert not partitioning.matches(swin, name) and not partitioning.matches(vit, name), name
  params = draw(shapes(depth=1))
  assert set(decaying(params, no_decay=("kernel$", "bias$"))) == {
    path for path in partitioning.flatten(params) if not path.endswith(("kernel", "bias"))
  }


# ---- Layer-wise rates ----


def test_rates_fall_from_layer_to_layer():
  params = draw(shapes())
  scales = optim.layer_scales(params, 0.5, make_model())
  layers = {
    "encoder/patch/kernel": 0,
    "encoder/pos/table": 0,
    "encoder/pos/cls": 0,
    "encoder/cls": 0,
    "encoder/block_00/attn/q/kernel": 1,
    "encoder/block_02/mlp/down/bias": 3,
    "encoder/norm/scale": 4,
    "head/kernel": 4,
  }
  for path, layer in layers.items():
    assert scales[path] == 0.5 ** (4 - layer), path
  # Updates are those without it, times the factor: also after Adam, which would undo a factor on gradients.
  gradients = draw(params, 1)
  plain = partitioning.flatten(updates(gradients, params, steps=2))
  for path, update in partitioning.flatten(updates(gradients, params, steps=2, layer_decay=0.5)).items():
    np.testing.assert_allclose(update, plain[path] * scales[path], rtol=1e-5, err_msg=path)


# By our paths, those of SimMIM's released code: what it calls its tensors, and their layers of 0 to L + 1 = 7.
SWIN_LAYERS = {
  "encoder/stage_0/patch/bias": 0,  # patch_embed.proj
  "encoder/stage_0/embed_norm/scale": 0,  # patch_embed.norm
  "encoder/stage_0/block_00/regular/attn/q/kernel": 1,  # layers.0.blocks.0
  "encoder/stage_0/block_00/shifted/relative_position_bias/table": 2,  # layers.0.blocks.1
  "encoder/stage_1/merge/kernel": 2,  # layers.0.downsample.reduction
  "encoder/stage_1/merged_norm/scale": 2,  # layers.0.downsample.norm
  "encoder/stage_1/block_00/regular/norm1/bias": 3,  # layers.1.blocks.0
  "encoder/stage_1/block_00/shifted/mlp/up/kernel": 4,
  "encoder/stage_1/block_01/regular/mlp/up/kernel": 5,
  "encoder/stage_1/block_01/shifted/attn/out/bias": 6,
  "encoder/norm/scale": 7,
  "head/kernel": 7,
}


@pytest.mark.parametrize("scan", [False, True])
def test_rates_of_a_swin_fall_over_all_stages(scan):
  def scales_of(name, **overrides):
    return optim.layer_scales(shapes(name, **overrides), 0.5, make_model(name, **overrides))

  scales = partitioning.flatten(unstack_params(unflatten_dict(scales_of("swin/test", scan=scan), sep="/")))
  for path, layer in SWIN_LAYERS.items():
    assert scales[path] == 0.5 ** (7 - layer), path
  assert scales_of("simmim/test")["encoder/stage_0/mask"] == 0.5**7
  # The norms of a backbone's maps are its heads.
  assert scales_of("swin/test", head="features")["encoder/stage_1/head_norm/scale"] == 1


@pytest.mark.parametrize(
  ("name", "kwargs"),
  [("adamw", dict(layer_decay=0.7)), ("muon", {}), ("muon", dict(layer_decay=0.7)), ("lamb", {}), ("lars", {})],
)
def test_stacked_parameters_are_updated_as_looped_ones(name, kwargs):
  params, gradients = draw(shapes()), draw(shapes(), 1)
  kwargs = dict(name=name, weight_decay=0.1, steps=2) | kwargs
  looped = updates(gradients, params, **kwargs)
  stacked = unstack_params(updates(stack_params(gradients), stack_params(params), **kwargs))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), stacked, looped)


def test_layer_decay_needs_layers():
  with raises(ValueError, "layer_decay"):
    optim.make({"head": {"kernel": np.ones((2, 2))}}, 10, learning_rate=0.1, layer_decay=0.5)
  with raises(ValueError, "layer_decay"):
    optim.layer_scales(shapes("convnext/test"), 0.5, zoo.create("convnext/test"))


# ---- LAMB and LARS ----


def test_lamb_is_as_published():
  """You et al. 2020, algorithm 2, where the authors' code applies it; and Adam elsewhere."""
  params, b1, b2, eps, decay = draw(shapes(depth=1)), 0.8, 0.9, 1e-3, 0.5
  optimizer, _ = optim.make(
    params,
    10,
    model=make_model(),
    name="lamb",
    learning_rate=0.1,
    schedule="constant",
    weight_decay=decay,
    b1=b1,
    b2=b2,
    eps=eps,
  )
  state, update, now = optimizer.init(params), jax.jit(optimizer.update), partitioning.flatten(params)
  m, v = (dict.fromkeys(now, 0.0) for _ in range(2))
  for step in range(1, 4):
    gradients = draw(params, step)
    change, state = update(gradients, state, params)
    params = jax.tree.map(jnp.add, params, change)
    for path, g in partitioning.flatten(gradients).items():
      m[path] = b1 * m[path] + (1 - b1) * g
      v[path] = b2 * v[path] + (1 - b2) * g**2
      r = m[path] / (1 - b1**step) / (np.sqrt(v[path] / (1 - b2**step)) + eps)
      if path.endswith("kernel"):
        r += decay * now[path]
        r *= np.linalg.norm(now[path]) / np.linalg.norm(r)
      now[path] = now[path] - 0.1 * r
      np.testing.assert_allclose(partitioning.flatten(params)[path], now[path], rtol=1e-4, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("name", ["lamb", "lars"])
def test_only_decayed_parameters_have_a_trust_ratio(name):
  params = draw(TOY)
  before, after = (
    partitioning.flatten(updates(draw(TOY, 1), tree, name=name))
    for tree in (params, jax.tree.map(lambda p: 2 * p, params))
  )
  for path, update in before.items():
    np.testing.assert_allclose(after[path], update * (2 if path.endswith("kernel") else 1), rtol=1e-4, err_msg=path)


@pytest.mark.parametrize("name", ["lamb", "lars"])
def test_zero_kernels_are_updated_and_zero_gradients_update_nothing(name):
  for params, gradients in ((0, 1), (1, 0), (0, 0)):
    tree, change = (jax.tree.map(lambda a, by=by: by * a, draw(TOY)) for by in (params, gradients))
    for update in jax.tree.leaves(updates(change, tree, name=name)):
      assert np.isfinite(update).all() and (np.abs(update).max() > 0) == gradients


# ---- Muon ----


def test_muon_orthogonalises_hidden_matrices_and_nothing_else():
  params, gradients = draw(shapes()), draw(shapes(), 1)
  change = partitioning.flatten(updates(gradients, params, name="muon"))
  adam = partitioning.flatten(updates(gradients, params, name="adamw", nesterov=True))
  for path, update in change.items():
    if path.endswith("kernel") and path not in ("head/kernel", "encoder/patch/kernel"):
      inputs = 8 if "attn" in path or "mlp/up" in path else 12
      singular = np.linalg.svd(np.asarray(update).reshape(inputs, -1), compute_uv=False)
      assert singular.max() / singular.min() < 3, path  # Newton-Schulz brings them near 1, not to it
    else:
      np.testing.assert_allclose(update, adam[path], rtol=1e-3, err_msg=path)


# ---- Freezing ----


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_frozen_parameters_have_no_state_and_no_update(name):
  params, gradients = draw(shapes()), draw(shapes(), 1)
  kwargs = dict(name=name, learning_rate=0.1, weight_decay=0.5, freeze=("^encoder/", "head/bias"))
  optimizer, _ = optim.make(params, 10, model=make_model(), **kwargs)
  state = optimizer.init(params)
  change, _ = jax.jit(optimizer.update)(gradients, state, params)
  moved = {path for path, u in partitioning.flatten(change).items() if np.abs(u).max() > 0}
  assert moved == {"head/kernel"}
  assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 3 * params["head"]["kernel"].size


def test_the_gradient_norm_is_clipped_among_what_trains():
  params, gradients = draw(shapes()), draw(shapes(), 1)
  change = updates(gradients, params, name="sgd", grad_clip_norm=0.5, freeze=("^encoder/",))
  norm = np.sqrt(sum(np.square(u).sum() for u in jax.tree.leaves(change)))
  assert norm == pytest.approx(0.1 * 0.5, rel=1e-4)


def test_stopped_gradients():
  params = draw(shapes())
  gradient = jax.grad(lambda p: sum(x.sum() for x in jax.tree.leaves(optim.stop_frozen(p, ("^encoder/block_0[01]",)))))
  for path, g in partitioning.flatten(gradient(params)).items():
    assert (np.asarray(g) == (0 if path.startswith(("encoder/block_00", "encoder/block_01")) else 1)).all(), path


# ---- Faults ----


def test_unknown_names_and_arguments():
  with raises(ValueError, "optimizer", "'adam'", "'adamw'"):
    optim.make(TOY, 10, name="adam", learning_rate=0.1)
  with raises(ValueError, "config.optimizer", "adamw", "'beta1'", "b1, b2"):
    optim.make(TOY, 10, learning_rate=0.1, beta1=0.9)
  with raises(ValueError, "config.optimizer", "sgd", "'momentun'", "'momentum'"):
    optim.make(TOY, 10, name="sgd", learning_rate=0.1, momentun=0.9)
  with raises(ValueError, "'mask'"):  # ours to fill in
    optim.make(TOY, 10, learning_rate=0.1, mask=None)


def test_patterns_that_match_nothing():
  with raises(ValueError, "config.optimizer.freeze", "'^encodr'", "encoder/cls"):
    optim.make(TOY, 10, learning_rate=0.1, freeze=("^encodr", "cls"))
