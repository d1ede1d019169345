"""The gradient of a dense layer is Linen's, and a CPU computes it without transposing anything."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from zoo.layers import initializers
from zoo.layers.linear import Dense, tied_logits

TYPES = (jnp.float32, jnp.bfloat16)


def gradients(layer: nn.Module, x: jax.Array):
  """Of a weighted sum of the output: with regard to the input, and to the parameters."""
  variables = layer.init(jax.random.key(0), x)
  weights = jnp.asarray(np.random.default_rng(1).standard_normal(jax.eval_shape(layer.apply, variables, x).shape))
  return jax.grad(lambda x, v: (layer.apply(v, x) * weights).sum(), (0, 1))(x, variables)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 5, 3), (2, 4, 5, 3)])
def test_gradient_is_that_of_linen(shape, dtype):
  x = jnp.asarray(np.random.default_rng(0).standard_normal(shape), dtype)
  linens = dict(dtype=dtype, kernel_init=initializers.dense)
  cases = [(Dense(7, dtype=dtype), nn.Dense(7, **linens))]
  cases.append((Dense((2, 4), dtype=dtype), nn.DenseGeneral((2, 4), **linens)))
  if len(shape) > 2:
    cases.append((Dense(6, axes=2, dtype=dtype), nn.DenseGeneral(6, axis=(-2, -1), **linens)))
  tolerance = 1e-5 if dtype == jnp.float32 else 0.05
  for ours, linen in cases:
    got, wanted = gradients(ours, x), gradients(linen, x)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
      assert a.dtype == b.dtype and a.shape == b.shape
      np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", TYPES)
def test_tied_logits_are_summed_in_float32(dtype):
  draw = np.random.default_rng(0)
  x, table = jnp.asarray(draw.standard_normal((2, 3, 8)), dtype), jnp.asarray(draw.standard_normal((5, 8)), jnp.float32)
  weights = jnp.asarray(draw.standard_normal((2, 3, 5)), jnp.float32)

  def naive(x, table):
    return jnp.einsum("BTD,VD->BTV", x.astype(jnp.float32), table.astype(dtype).astype(jnp.float32))

  logits = tied_logits(x, table)
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, naive(x, table), rtol=1e-5, atol=1e-5)
  got, wanted = (jax.grad(lambda *a, f=f: (f(*a) * weights).sum(), (0, 1))(x, table) for f in (tied_logits, naive))
  tolerance = 1e-5 if dtype == jnp.float32 else 0.05
  for a, b in zip(got, wanted, strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=tolerance, atol=tolerance)


def test_cpu_program_transposes_nothing():
  x = jnp.ones((8, 32, 48))

  def transposed(layer: nn.Module, after=lambda y: y) -> int:
    variables = layer.init(jax.random.key(0), x)
    step = jax.jit(jax.grad(lambda v, x: jnp.square(after(layer.apply(v, x))).sum(), (0, 1)))
    return len(re.findall(r" transpose\(", step.lower(variables, x).compile().as_text()))

  assert transposed(nn.Dense(64)) > 0  # what there is to spare
  assert transposed(Dense(64)) == 0
  # Heads before tokens and back: once in the backward pass, and not again for the gradient of the kernel.
  heads_first = functools.partial(jnp.swapaxes, axis1=1, axis2=2)
  assert transposed(nn.DenseGeneral((4, 16)), lambda y: jnp.sin(heads_first(y))) > 1
  assert transposed(Dense((4, 16)), lambda y: jnp.sin(heads_first(y))) == 1


def test_remat_policies_see_the_products():
  """`dots_saveable` keeps them: the backward pass has two products, not the forward one again."""

  def products(layer: nn.Module) -> int:
    x = jnp.ones((2, 5, 3))
    variables = layer.init(jax.random.key(0), x)
    apply = jax.checkpoint(lambda v, x: jnp.sin(layer.apply(v, x)).sum(), policy=jax.checkpoint_policies.dots_saveable)
    text = jax.jit(jax.value_and_grad(apply, (0, 1))).lower(variables, x).as_text()
    return len(re.findall(r"stablehlo\.dot_general", text))

  assert products(Dense(7, use_bias=False)) == products(nn.Dense(7)) == 3
