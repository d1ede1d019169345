"""JAX's transformations work on every model: jvp, hessian, vmap over parameters, export with a symbolic batch."""

import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from support import SHALLOW

import zoo

TESTS = zoo.list_models("*/test")
# ReLU: the slope jumps at kinks, which a curvature does not see and finite differences of slopes do.
PIECEWISE = ("hybrid/test", "segmenter/test")
STEP = 0.02  # of the finite differences, along a direction of 0.1 a parameter


@functools.cache
def draw(name: str):
  """A model, random variables, and inputs for a batch of 2."""
  model = zoo.create(name, **SHALLOW.get(name.partition("/")[0], {}))
  shapes = zoo.family(name).inputs(model.config, 2)
  rngs = {"params": jax.random.key(0), "mask": jax.random.key(1)}
  draw, variables = np.random.default_rng(0), jax.eval_shape(functools.partial(model.init, rngs), *shapes)
  # Running statistics are 1: small random variances would make the loss too steep for finite differences.
  params = jax.tree.map(lambda s: draw.normal(0.1, 0.1, s.shape), variables.get("params", {}))
  variables = jax.tree.map(lambda s: np.ones(s.shape), variables) | {"params": params}
  inputs = [
    draw.normal(size=s.shape).astype(s.dtype)
    if s.dtype == np.float32
    else draw.integers(1, model.config.vocab_size, s.shape).astype(s.dtype)
    for s in shapes
  ]
  if "noise_BP" in inspect.signature(type(model).__call__).parameters:
    inputs.append(draw.uniform(size=(2, math.prod(model.config.grid))).astype(np.float32))
  return model, jax.tree.map(lambda a: np.abs(a).astype(np.float32), variables), inputs


def loss(name: str, shift: jax.Array) -> jax.Array:
  """A smooth scalar of the output, at the parameters moved by `shift` along a fixed direction."""
  model, variables, inputs = draw(name)
  direction = np.random.default_rng(1)
  params = jax.tree.map(lambda p: p + shift * direction.normal(0, 0.1, p.shape).astype(np.float32), variables["params"])
  return jnp.sin(model.apply(variables | {"params": params}, *inputs)[0]).mean()


@functools.cache
def compiled(name: str):
  """The loss, its slope by jvp, its curvature by hessian, and for `PIECEWISE` by jvp of jvp, by the shift."""
  f = functools.partial(loss, name)

  def slope(shift):
    return jax.jvp(f, (shift,), (jnp.ones_like(shift),))

  def derivatives(shift):
    if name not in PIECEWISE:
      return *slope(shift), jax.hessian(f)(shift)
    _, (_, second) = jax.jvp(slope, (shift,), (jnp.ones_like(shift),))
    return *slope(shift), jax.hessian(f)(shift), second

  return jax.jit(derivatives)


@pytest.mark.parametrize("name", TESTS)
def test_jvp_and_hessian_are_finite_differences(name):
  at = {n: np.array(compiled(name)(n * STEP)) for n in (-2, -1, 0, 1, 2)}
  near, far = ((at[n] - at[-n]) / (2 * n * STEP) for n in (1, 2))
  # The narrow difference where there are kinks, else one of the fourth order.
  first, second, *_ = near if name in PIECEWISE else (4 * near - far) / 3
  _, slope, curvature, *wanted = at[0]
  np.testing.assert_allclose(slope, first, rtol=0.02, atol=2e-4)
  np.testing.assert_allclose(curvature, wanted[0] if wanted else second, rtol=0.01, atol=1e-4)
  assert abs(slope) > 2e-4 and abs(curvature) > 2e-4


@pytest.mark.parametrize("name", TESTS)
def test_an_ensemble_of_parameters_is_a_vmap(name):
  shifts = np.array([-STEP, 0.0, STEP], np.float32)
  one = functools.partial(loss, name)
  together, alone = jax.jit(jax.vmap(one))(shifts), jax.jit(one)
  np.testing.assert_allclose(together, [alone(shift) for shift in shifts], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TESTS)
def test_export_with_a_symbolic_batch(name):
  model, variables, inputs = draw(name)
  (batch,) = export.symbolic_shape("batch")
  shapes = [jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for x in inputs]
  exported = export.export(jax.jit(lambda *args: model.apply(*args)[0]))(variables, *shapes)
  output = exported.call(variables, *(np.concatenate([x, x[:1]]) for x in inputs))
  wanted = model.apply(variables, *inputs)[0]
  np.testing.assert_allclose(output[:2], wanted, rtol=1e-3, atol=1e-4)
  np.testing.assert_allclose(output[2:], wanted[:1], rtol=1e-3, atol=1e-4)
