"""Depth: a scan is a loop, rematerialisation changes the program and not the results."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import raises

import zoo
from train.plan.macs import inner_jaxprs, needed_jaxpr
from zoo.layers.stack import remat_policy, stack_params, unstack_params

IMAGE = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
SMALL = dict(width=8, mlp_dim=12, image_size=(8, 8))


@functools.cache
def variables():
  """Of the looped model, all random."""
  model = zoo.create("vit/test", **SMALL)
  shapes = jax.eval_shape(model.init, {"params": jax.random.key(0)}, IMAGE)
  draw = np.random.default_rng(0)
  return jax.tree.map(lambda s: draw.normal(0, 0.3, s.shape).astype(np.float32), shapes)


def program(scan, remat, rngs=None, **overrides):
  """A function of the parameters: gradient, output and every intermediate."""
  model = zoo.create("vit/test", scan=scan, remat=remat, **SMALL, **overrides)

  def loss(params):
    logits_BV, aux = model.apply({"params": params}, IMAGE, rngs=rngs)
    return jnp.square(logits_BV).sum(), (logits_BV, aux)

  return jax.grad(loss, has_aux=True)


@functools.cache
def run(scan, remat):
  params = variables()["params"]
  grads, rest = jax.jit(program(scan, remat))(stack_params(params) if scan else params)
  return (unstack_params(grads) if scan else grads), rest


REST = [(True, "none"), (False, "nothing_saveable"), (True, "dots_with_no_batch_dims_saveable")]


@pytest.mark.parametrize(("scan", "remat"), REST)
def test_same_numbers(scan, remat):
  ours, plain = run(scan, remat), run(False, "none")
  assert jax.tree.structure(ours) == jax.tree.structure(plain)  # also: the same intermediates, by the same names
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, plain)


def test_programs_of_scan_and_remat_differ():
  params = variables()["params"]
  text = {
    (scan, remat): str(jax.make_jaxpr(program(scan, remat))(stack_params(params) if scan else params))
    for scan, remat in [(False, "none"), *REST]
  }
  assert len(set(text.values())) == len(text)
  products = {k: t.count("dot_general") for k, t in text.items()}
  assert products[False, "nothing_saveable"] > products[False, "none"]  # computed again on the way back
  assert products[True, "none"] < products[False, "none"] / 2  # three blocks, written once
  for (scan, remat), t in text.items():
    assert ("scan[" in t) == scan, (scan, remat)
    assert ("remat" in t or "checkpoint" in t) == (remat != "none"), (scan, remat)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize(("remat", "runs"), [("none", 1), ("dots_saveable", 1), ("nothing_saveable", 2)])
def test_a_kernel_runs_again_only_where_products_do(scan, remat, runs):
  options = dict(width=32, num_heads=2, mlp_dim=12, image_size=(8, 8), depth=2)
  model = zoo.create("vit/test", scan=scan, remat=remat, attention="pallas_interpret", **options)
  shapes = jax.eval_shape(model.init, {"params": jax.random.key(0)}, IMAGE)

  def loss(variables):
    return jnp.square(model.apply(variables, IMAGE)[0]).sum()

  def kernels(jaxpr):
    for eqn in jaxpr.eqns:
      if eqn.primitive.name == "pallas_call":
        yield "backward" if len(eqn.outvars) > 1 else "forward"
      for inner in (j for value in eqn.params.values() for j in inner_jaxprs(value)):
        yield from kernels(inner)

  found = list(kernels(needed_jaxpr(jax.grad(loss), shapes)))
  layers = 1 if scan else 2
  assert (found.count("forward"), found.count("backward")) == (runs * layers, layers)


def test_the_scanned_program_does_not_grow_with_depth():
  def size(depth):
    model = zoo.create("vit/test", scan=True, depth=depth, **SMALL)
    shapes = jax.eval_shape(model.init, {"params": jax.random.key(0)}, IMAGE)
    # All but the pick of each block's intermediates, one line each, which the compiler drops.
    return sum("dot_general" in line for line in str(jax.make_jaxpr(model.apply)(shapes, IMAGE)).splitlines())

  assert size(2) == size(7)


def test_scanned_blocks_draw_different_numbers():
  """Initialisation: no two blocks alike, and each like a looped one in distribution."""
  model = zoo.create("vit/test", scan=True, **SMALL)
  blocks = jax.jit(model.init)({"params": jax.random.key(0)}, IMAGE)["params"]["encoder"]["blocks"]
  kernel_LDNH = blocks["attn"]["q"]["kernel"]
  assert kernel_LDNH.shape == (3, 8, 2, 4)
  assert len(np.unique(kernel_LDNH[:, 0, 0, 0])) == 3
  # Xavier's bound of one block, not of the whole stack.
  bound = np.sqrt(6 / (8 + 8))
  assert (np.abs(kernel_LDNH) <= bound).all() and np.abs(kernel_LDNH).max() > 0.8 * bound


def test_stack_and_unstack_are_inverse():
  params = variables()["params"]
  stacked = stack_params(params)
  assert set(stacked["encoder"]) == {"blocks", "cls", "norm", "patch", "pos"}
  wanted = zoo.create("vit/test", scan=True, **SMALL)
  shapes = jax.eval_shape(wanted.init, {"params": jax.random.key(0)}, IMAGE)["params"]
  assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, shapes)
  back = unstack_params(stacked)
  assert jax.tree.structure(back) == jax.tree.structure(params)
  jax.tree.map(np.testing.assert_array_equal, back, params)


def test_more_than_ninety_nine_blocks_stay_in_order():
  params = {f"block_{i:02d}": {"x": np.float32(i)} for i in (*range(3), 99, 100, 101)}
  np.testing.assert_array_equal(stack_params(params)["blocks"]["x"], [0, 1, 2, 99, 100, 101])


def test_unknown_policy():
  with raises(ValueError, "remat", "'nothing_savable'", "'nothing_saveable'"):
    remat_policy("nothing_savable")
  with raises(ValueError, "remat", "'save_only_these_names'"):  # it needs arguments
    zoo.create("vit/test", remat="save_only_these_names").init({"params": jax.random.key(0)}, np.zeros((1, 20, 12, 3)))
