"""What every model promises: gradients, dtypes, independence of examples, a name."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import check_gradients, raises, random_model, scanned

import zoo

TESTS = zoo.list_models("*/test")


@pytest.mark.parametrize("name", TESTS)
def test_output_is_finite_and_every_parameter_has_a_gradient(name):
  check_gradients(name)


@functools.cache
def compiled(name):
  model, variables, inputs = random_model(name, batch=3)
  return jax.jit(model.apply), variables, inputs


@pytest.mark.parametrize("name", TESTS)
def test_jit_is_eager(name):
  apply, variables, inputs = compiled(name)
  eager, jitted = zoo.create(name).apply(variables, *inputs), apply(variables, *inputs)
  assert jax.tree.structure(eager) == jax.tree.structure(jitted)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), eager, jitted)


@pytest.mark.parametrize("name", TESTS)
def test_examples_of_a_batch_are_independent(name):
  apply, variables, inputs = compiled(name)
  output, _ = apply(variables, *inputs)
  assert np.abs(output[0] - output[1]).max() > 1e-3
  for choice in ([2, 0, 1], [1, 1, 0]):
    chosen, _ = apply(variables, *[x[np.array(choice)] for x in inputs])
    np.testing.assert_allclose(chosen, output[np.array(choice)], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TESTS)
@pytest.mark.parametrize("scan", [False, True])
def test_bfloat16_is_for_computing_only(name, scan):
  model, variables, inputs = random_model(name, dtype="bfloat16", **scanned(name) if scan else {})
  init = jax.eval_shape(functools.partial(model.init, {"params": jax.random.key(0)}), *inputs)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(init))

  def loss(variables):
    output, aux = model.apply(variables, *inputs)
    return jnp.square(output).sum(), (output, aux)

  grads, (output, aux) = jax.eval_shape(jax.grad(loss, has_aux=True), variables)
  assert output.dtype == jnp.float32
  assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(grads))
  assert {array.dtype for key, array in aux.items() if key in ("tokens", "block_00")} <= {jnp.dtype("bfloat16")}
  weights = [array for key, array in aux.items() if key.endswith(("weights", "alignment"))]
  assert bool(weights) != name.startswith("convnext/")  # which does not attend
  assert all(array.dtype == jnp.float32 for array in weights)


def test_features_are_float32_too():
  model, variables, inputs = random_model("vit/test", dtype="bfloat16", num_classes=0)
  output, aux = jax.eval_shape(model.apply, variables, *inputs)
  assert output.dtype == aux["features"].dtype == jnp.float32


@pytest.mark.parametrize("name", TESTS)
def test_bfloat16_is_near_float32(name):
  apply, variables, inputs = compiled(name)
  wanted = np.asarray(apply(variables, *inputs)[0])
  output, _ = jax.jit(zoo.create(name, dtype="bfloat16").apply)(variables, *inputs)
  assert 0 < np.abs(output - wanted).max() < 0.1 * np.abs(wanted).max()


# ---- Names ----


def test_names():
  assert zoo.list_models("vit/s*") == ["vit/s8", "vit/s14", "vit/s16", "vit/s32"]
  assert set(TESTS) >= {"vit/test", "mae/test"} and zoo.list_models("nothing*") == []
  families = {name.partition("/")[0] for name in zoo.list_models()}
  assert {f"{family}/test" for family in families} <= set(TESTS)


@pytest.mark.parametrize("name", ["vit/b61", "vitt/b16", "b16", ""])
def test_unknown_model(name):
  nearest = ["'vit/b16'"] if name == "vit/b61" else []
  with raises(ValueError, f"'{name}'", "vit/b16", *nearest) as error:
    zoo.create(name)
  # Where the family is known its own are enough.
  assert ("mae/b16" in str(error.value)) == (name != "vit/b61")
