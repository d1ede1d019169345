"""What all tokens share is broadcast as `jnp.broadcast_to` does it, and a CPU sums its gradient by a matrix product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.layers.broadcast import spread

SHAPE = (2, 3, 4, 5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("own", [(), (5,), (4, 5), (4, 1), (1, 5), (1, 3, 4, 5), (1, 3, 1, 5), (2, 1, 4, 5), SHAPE])
def test_it_is_broadcast_to_and_so_is_its_gradient(own, dtype):
  draw = np.random.default_rng(0)
  x, weights = jnp.asarray(draw.standard_normal(own), dtype), jnp.asarray(draw.standard_normal(SHAPE), dtype)
  y, back = jax.vjp(lambda x: spread(x, SHAPE), x)
  wanted, wanted_back = jax.vjp(lambda x: jnp.broadcast_to(x, SHAPE), x.astype(jnp.float32))
  assert y.dtype == dtype
  np.testing.assert_array_equal(y.astype(jnp.float32), wanted)
  (got,), (gradient,) = back(weights), wanted_back(weights.astype(jnp.float32))
  assert got.dtype == dtype and got.shape == own
  tolerance = 1e-6 if dtype == jnp.float32 else 0.02
  np.testing.assert_allclose(np.float32(got), gradient, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("platform", "sums", "products"), [("cpu", False, True), ("tpu", True, False)])
def test_a_cpu_alone_sums_by_a_product(platform, sums, products):
  gradient = jax.jit(jax.grad(lambda x: jnp.sin(spread(x, SHAPE)).mean()))
  text = gradient.trace(jnp.ones((5,))).lower(lowering_platforms=(platform,)).as_text()
  backward = text[text.index("cosine") :]
  assert ("stablehlo.reduce" in backward, "stablehlo.dot_general" in backward) == (sums, products)


def test_what_has_all_axes_is_left_alone():
  gradient = jax.jit(jax.grad(lambda x: jnp.sin(spread(x, SHAPE)).mean()))
  assert "stablehlo.dot_general" not in gradient.lower(jnp.ones(SHAPE)).as_text()
