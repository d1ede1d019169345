"""The step: the gradient of the exact mean, however the batch is split and on any devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zoo
from train import optim, rng, sharding
from train.objectives import Loss, image_classification, mae
from train.step import init_state, make_eval_step, make_step
from zoo import partitioning

# ---- A regression small enough for closed forms: the step is independent of models. ----

DECAY, RATE = 0.8, 0.1
SGD = optax.sgd(RATE)
DRAW = np.random.default_rng(0)
TOY = dict(
  x=DRAW.normal(size=(8, 3)).astype(np.float32),
  y=DRAW.normal(size=8).astype(np.float32),
  weight=np.array([1, 0, 2, 0.5, 0, 0, 3, 1], np.float32),
)
W = np.array([1.0, -2.0, 0.5], np.float32)


def regression(model, variables, batch, key) -> Loss:
  del model
  w = variables["params"]["w"] + (jax.random.normal(key, (3,)) if "noise" in batch else 0)
  error_B = batch["x"] @ w + variables["params"]["fixed"] - batch["y"]
  seen = {"stats": {"examples": variables["stats"]["examples"] + len(batch["y"])}} if "stats" in variables else {}
  total = (batch["weight"] * error_B**2).sum()
  return Loss(total, batch["weight"].sum(), {"error": (batch["weight"] * jnp.abs(error_B)).sum()}, seen)


def toy_state(optimizer, ema=False):
  params = {"w": jnp.asarray(W), "fixed": jnp.float32(0.0)}
  return init_state({"params": params, "stats": {"examples": jnp.int32(0)}}, optimizer, ema=ema)


@functools.cache
def toy_step(optimizer=SGD, **kwargs):
  return jax.jit(make_step(regression, None, optimizer, **kwargs)), optimizer


def toy_gradient(w, batch=TOY):
  error = batch["x"] @ w - batch["y"]
  return 2 * (batch["weight"] * error) @ batch["x"] / batch["weight"].sum()


@pytest.mark.parametrize("grad_accum_steps", [1, 2, 4])
def test_gradient_and_metrics_are_the_weighted_mean(grad_accum_steps):
  step, optimizer = toy_step(grad_accum_steps=grad_accum_steps)
  state, metrics = step(toy_state(optimizer), TOY, rng.root(0))
  np.testing.assert_allclose(state.params["w"], W - RATE * toy_gradient(W), rtol=1e-5)
  error = TOY["x"] @ W - TOY["y"]
  share = TOY["weight"] / TOY["weight"].sum()
  gradient = np.append(toy_gradient(W), 2 * share @ error)
  wanted = dict(loss=share @ error**2, error=share @ np.abs(error), weight=7.5, grad_norm=np.linalg.norm(gradient))
  for name, value in wanted.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
  np.testing.assert_allclose(metrics["param_norm"], optax.global_norm(state.params), rtol=1e-6)
  assert state.step == 1 and state.model_state["stats"]["examples"] == 8
  assert "skipped" not in metrics


def test_a_batch_of_padding_alone_changes_nothing():
  step, optimizer = toy_step()
  state, metrics = step(toy_state(optimizer), TOY | dict(weight=np.zeros(8, np.float32)), rng.root(0))
  np.testing.assert_array_equal(state.params["w"], W)
  assert metrics["loss"] == 0 and metrics["weight"] == 0 and metrics["grad_norm"] == 0


def test_average_of_the_parameters_has_its_closed_form():
  step, optimizer = toy_step(ema_decay=DECAY)
  state = toy_state(optimizer, ema=True)
  history = [state.params["w"]]
  for _ in range(4):
    state, _ = step(state, TOY, rng.root(0))
    history.append(state.params["w"])
  wanted = DECAY**4 * history[0] + sum((1 - DECAY) * DECAY ** (4 - i) * history[i] for i in range(1, 5))
  np.testing.assert_allclose(state.ema_params["w"], wanted, rtol=1e-5)
  plain, _ = toy_step()
  assert plain(toy_state(optimizer), TOY, rng.root(0))[0].ema_params is None


def test_clipping_keeps_the_direction_and_reports_the_norm_before_it():
  params = {"w": jnp.asarray(W), "fixed": jnp.float32(0.0)}
  kwargs = dict(name="sgd", learning_rate=RATE, schedule="constant")
  clipped, _ = optim.make(params, 10, grad_clip_norm=0.25, **kwargs)
  state, metrics = make_step(regression, None, clipped)(toy_state(clipped), TOY, rng.root(0))
  step, optimizer = toy_step()
  whole, plain = step(toy_state(optimizer), TOY, rng.root(0))
  assert metrics["grad_norm"] == pytest.approx(float(plain["grad_norm"]), rel=1e-5) and metrics["grad_norm"] > 0.25
  np.testing.assert_allclose(
    W - state.params["w"], (W - whole.params["w"]) * 0.25 / plain["grad_norm"], rtol=1e-4, atol=1e-7
  )


def test_nonfinite_steps_are_skipped_and_counted():
  step, optimizer = toy_step(optax.adam(RATE), skip_nonfinite=True, ema_decay=DECAY)
  state, metrics = step(toy_state(optimizer, ema=True), TOY, rng.root(0))
  assert metrics["skipped_steps"] == 0
  broken = TOY | dict(x=np.where(TOY["x"] == TOY["x"][0, 0], np.nan, TOY["x"]))
  after, metrics = step(state, broken, rng.root(0))
  assert not np.isfinite(metrics["loss"])
  assert (after.step, after.skipped_steps, metrics["skipped_steps"]) == (2, 1, 1)
  same = after._replace(step=state.step, skipped_steps=state.skipped_steps)
  jax.tree.map(np.testing.assert_array_equal, same, state)
  after, metrics = step(after, TOY, rng.root(0))
  assert (after.step, after.skipped_steps) == (3, 1) and np.isfinite(metrics["loss"])
  # A finite loss with a gradient that overflows is no step either.
  big = TOY | dict(x=TOY["x"] * 0 + 3e38, y=TOY["y"] * 0, weight=TOY["weight"] * 1e-30)
  zero = state._replace(params=jax.tree.map(jnp.zeros_like, state.params))
  big["y"] = np.full(8, 1e9, np.float32)
  after, metrics = step(zero, big, rng.root(0))
  assert np.isfinite(metrics["loss"]) and not np.isfinite(metrics["grad_norm"])
  assert after.skipped_steps == 1 and (after.params["w"] == 0).all()


def test_without_skipping_nonfinite_steps_are_applied():
  step, optimizer = toy_step()
  state, metrics = step(toy_state(optimizer), TOY | dict(y=TOY["y"] * np.nan), rng.root(0))
  assert np.isnan(metrics["loss"]) and np.isnan(state.params["w"]).all()


def test_randomness_is_a_function_of_root_key_and_step():
  step, optimizer = toy_step()
  batch = TOY | dict(noise=np.zeros(8))
  first, one = step(toy_state(optimizer), batch, rng.root(0))
  _, again = step(toy_state(optimizer), batch, rng.root(0))
  assert one["loss"] == again["loss"]
  _, other_key = step(toy_state(optimizer), batch, rng.root(1))
  _, other_step = step(toy_state(optimizer)._replace(step=jnp.int32(1)), batch, rng.root(0))
  assert len({float(m["loss"]) for m in (one, other_key, other_step)}) == 3
  assert first.step == 1


def test_frozen_parameters_stay_and_pass_no_gradient():
  params = {"w": jnp.asarray(W), "fixed": jnp.float32(0.0)}
  kwargs = dict(name="adamw", learning_rate=RATE, schedule="constant", weight_decay=0.5)
  optimizer, _ = optim.make(params, 10, freeze=("fixed",), **kwargs)
  step = make_step(regression, None, optimizer, freeze=lambda p: optim.stop_frozen(p, ("fixed",)))
  state, metrics = jax.jit(step)(toy_state(optimizer), TOY, rng.root(0))
  assert state.params["fixed"] == 0 and (state.params["w"] != W).all()
  np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(toy_gradient(W)), rtol=1e-5)  # of `w` alone


def test_eval_step_sums():
  step = make_eval_step(regression, None)
  variables = {"params": {"w": jnp.asarray(W), "fixed": 0.0}}
  whole = step(variables, TOY)
  halves = [step(variables, jax.tree.map(lambda a, s=s: a[s], TOY)) for s in (slice(3), slice(3, 8))]
  for name in ("loss", "weight", "error"):
    np.testing.assert_allclose(halves[0][name] + halves[1][name], whole[name], rtol=1e-5)


# ---- Real models: on one device, on eight simulated ones for each mesh, and under pmap. ----

B = 32
BATCH = dict(
  image=DRAW.integers(0, 256, (B, 8, 8, 3), np.uint8),
  label=DRAW.integers(0, 7, B).astype(np.int32),
  valid=np.arange(B) % 5 > 1,  # as many in no two parts
  id=np.arange(B, dtype=np.int32),
)
BATCH["valid"][:4] = False  # a whole device of padding
SMALL = dict(width=16, num_heads=8, mlp_dim=16, depth=1, image_size=(8, 8))
AXES = zoo.family("vit").LOGICAL_AXES | zoo.family("mae").LOGICAL_AXES
DECODER = dict(decoder_width=16, decoder_num_heads=8, decoder_mlp_dim=16, decoder_depth=1)
CASES = {
  "vit": (zoo.create("vit/test", **SMALL), image_classification.Objective(label_smoothing=0.1)),
  "mae": (zoo.create("mae/test", **SMALL, **DECODER), mae.Objective(mask_ratio=0.5)),
  "vit by kernels": (
    zoo.create("vit/test", attention="pallas_interpret", **SMALL | dict(width=32, num_heads=2)),
    image_classification.Objective(label_smoothing=0.1),
  ),
}


@functools.cache
def variables(case):
  model, _ = CASES[case]
  shapes = jax.eval_shape(lambda: model.init(rng.streams(rng.root(0), "params", "mask"), np.zeros((1, 8, 8, 3))))
  draw = np.random.default_rng(0)
  return jax.tree.map(lambda s: draw.normal(0, 0.2, s.shape).astype(np.float32), shapes)


@functools.cache
def optimizer(case):
  # Gradients that are 0 but for rounding, as those of key biases, must not decide a step: hence the large eps.
  params = variables(case)["params"]
  kwargs = dict(learning_rate=0.1, schedule="constant", grad_clip_norm=1.0, weight_decay=0.1, eps=1e-3)
  return optim.make(params, 10, model=CASES[case][0], **kwargs)[0]


@functools.cache
def parallel(name):
  if name == "one":
    return sharding.Jit(sharding.make_mesh(1, 1, 1, jax.devices()[:1]), AXES)
  if name == "pmap":
    return sharding.parallel("pmap")
  sizes = {axis: int(size) for axis, size in (part.split("=") for part in name.split(","))}
  return sharding.parallel(**sizes, axes=AXES)


@functools.cache
def two_steps(case, where="one", grad_accum_steps=1):
  """The state on its devices, and the same on the host with the metrics of each step."""
  model, objective = CASES[case]
  devices = parallel(where)
  state = devices.init(lambda v: init_state(v, optimizer(case), ema=True), variables(case))
  options = dict(grad_accum_steps=grad_accum_steps, ema_decay=DECAY, axis=devices.axis, sum_once=devices.sum_once)
  step = make_step(objective, model, optimizer(case), **options)
  inputs = devices.put_batch(BATCH), devices.put(rng.root(3))
  step = devices.compile(step).lower(state, *inputs).compile()  # refuses a state of another sharding
  metrics = []
  for _ in range(2):
    state, values = step(state, *inputs)
    metrics.append(devices.host(values))
  return state, devices.host(state), metrics


MESHES = [
  ("vit", "one", 2),
  ("vit", "one", 4),
  ("vit", "data=8", 1),
  ("vit", "data=1,fsdp=8", 1),
  ("vit", "data=1,tensor=8", 1),
  ("vit", "data=2,fsdp=2,tensor=2", 4),
  ("vit", "data=4,fsdp=2", 4),
  ("vit by kernels", "data=4,fsdp=2", 2),
  ("vit", "pmap", 1),
  ("mae", "data=8", 2),
  ("mae", "data=1,fsdp=8", 1),
  ("mae", "data=1,tensor=8", 1),
  ("mae", "pmap", 4),
]


@pytest.mark.parametrize(("case", "where", "grad_accum_steps"), MESHES)
def test_results_are_the_same_on_every_mesh(case, where, grad_accum_steps):
  _, wanted, wanted_metrics = two_steps(case)
  _, state, metrics = two_steps(case, where, grad_accum_steps)
  assert state.step == 2 and metrics[0]["weight"] == BATCH["valid"].sum()
  assert jax.tree.structure(state) == jax.tree.structure(wanted)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  partitioning.map_with_path(lambda path, a, b: close(a, b, err_msg=path), state, wanted)
  jax.tree.map(close, metrics, wanted_metrics)
  # So that the tolerance means something. (No attention depends on a key's bias: the softmax cancels it.)
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), wanted.params, variables(case)["params"])
  assert min(m for path, m in partitioning.flatten(moved).items() if not path.endswith("k/bias")) > 2e-4


@pytest.mark.parametrize(("case", "where", "grad_accum_steps"), [p for p in MESHES if "=" in p[1]])
def test_the_new_state_is_sharded_by_its_rules(case, where, grad_accum_steps):
  state, _, _ = two_steps(case, where, grad_accum_steps)
  wanted = sharding.state_shardings(state, parallel(where).mesh, AXES)
  partitioning.map_with_path(
    lambda path, a, s: (
      pytest.fail(f"{path}: {a.sharding}, wanted {s}") if not a.sharding.is_equivalent_to(s, a.ndim) else None
    ),
    state,
    wanted,
  )
  block = "encoder/block_00/mlp/up/kernel"
  pieces = {
    name: {s.data.shape for s in partitioning.flatten(tree)[block].addressable_shards}
    for name, tree in (("params", state.params), ("ema_params", state.ema_params), ("mu", state.opt_state[1][0].mu))
  }
  sizes = parallel(where).mesh.shape
  width = CASES[case][0].config.width
  assert all(p == {(width // sizes["fsdp"], 16 // sizes["tensor"])} for p in pieces.values()), pieces


def test_the_same_key_gives_the_same_bits():
  """With every kind of randomness on; and another key gives something else."""
  model = zoo.create("vit/test", **SMALL, dropout_rate=0.1, attention_dropout_rate=0.1, drop_path_rate=0.2)
  objective = image_classification.Objective(mixup=0.4, cutmix=1.0)
  step = jax.jit(make_step(objective, model, optimizer("vit"), grad_accum_steps=2))
  state = init_state(variables("vit"), optimizer("vit"))
  one, again, other = (step(state, BATCH, rng.root(seed)) for seed in (0, 0, 1))
  jax.tree.map(np.testing.assert_array_equal, one, again)
  assert one[1]["loss"] != other[1]["loss"]


@functools.cache
def evaluate(case):
  return jax.jit(make_eval_step(CASES[case][1], CASES[case][0]))


@pytest.mark.parametrize("case", CASES)
def test_two_half_batches_add_up_to_the_whole(case):
  whole = evaluate(case)(variables(case), BATCH)
  halves = [evaluate(case)(variables(case), jax.tree.map(lambda a, i=i: a[i::2], BATCH)) for i in range(2)]
  assert whole["weight"] == BATCH["valid"].sum()
  jax.tree.map(lambda a, b, w: np.testing.assert_allclose(a + b, w, rtol=1e-5), *halves, whole)
  repeated = evaluate(case)(variables(case), BATCH)  # no key: nothing is left to chance
  jax.tree.map(np.testing.assert_array_equal, repeated, whole)


@pytest.mark.parametrize("case", CASES)
def test_the_content_of_padding_changes_nothing(case):
  rubbish = dict(BATCH)
  rubbish["image"] = np.where(BATCH["valid"][:, None, None, None], BATCH["image"], 255 - BATCH["image"])
  rubbish["label"] = np.where(BATCH["valid"], BATCH["label"], 1 - BATCH["label"])
  assert (rubbish["image"] != BATCH["image"]).any()
  model, objective = CASES[case]
  gradient = jax.jit(
    jax.grad(
      lambda params, batch: objective(model, {"params": params}, batch, rng.root(0))[0],
    )
  )
  ours, wanted = (gradient(variables(case)["params"], batch) for batch in (rubbish, BATCH))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), ours, wanted)
  sums = evaluate(case)(variables(case), rubbish)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), sums, evaluate(case)(variables(case), BATCH))


def test_a_frozen_encoder_has_no_backward_pass():
  model, objective = CASES["vit"]
  state = init_state(variables("vit"), optimizer("vit"))

  def products(patterns):
    step = make_step(objective, model, optimizer("vit"), freeze=lambda p: optim.stop_frozen(p, patterns))
    return str(jax.make_jaxpr(step)(state, BATCH, rng.root(0))).count("dot_general")

  forward = str(jax.make_jaxpr(model.apply)(variables("vit"), np.zeros((2, 8, 8, 3)))).count("dot_general")
  assert products(("^encoder",)) <= forward + 2 < products(())


def test_running_statistics_are_kept_in_training_and_used_in_evaluation():
  model = zoo.create("vit/test", **SMALL, head_norm="batch")
  shapes = jax.eval_shape(model.init, {"params": rng.root(0)}, np.zeros((2, 8, 8, 3)))
  stats = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), shapes["batch_stats"])
  stats["head_norm"]["var"] += 1
  start = {"params": variables("vit")["params"], "batch_stats": stats}
  objective = image_classification.Objective()
  frozen = optax.set_to_zero()
  step = jax.jit(make_step(objective, model, frozen, grad_accum_steps=2))
  state, _ = step(init_state(start, frozen), BATCH, rng.root(0))

  pooled_BD = np.asarray(jax.jit(CASES["vit"][0].apply)(start, (BATCH["image"] / 255 - 0.5) / 0.5)[1]["features"])
  mean, variance = np.zeros(16), np.ones(16)
  for part in (pooled_BD[0::2], pooled_BD[1::2]):
    mean, variance = 0.9 * mean + 0.1 * part.mean(0), 0.9 * variance + 0.1 * part.var(0)
  ours = state.model_state["batch_stats"]["head_norm"]
  np.testing.assert_allclose(ours["mean"], mean, rtol=1e-3, atol=1e-5)
  np.testing.assert_allclose(ours["var"], variance, rtol=1e-3)

  logits_BV, _ = model.apply({"params": state.params, **state.model_state}, (BATCH["image"] / 255 - 0.5) / 0.5)
  head = start["params"]["head"]
  wanted = (pooled_BD - mean) / np.sqrt(variance + 1e-6) @ head["kernel"] + head["bias"]
  np.testing.assert_allclose(logits_BV, wanted, rtol=1e-3, atol=1e-3)
