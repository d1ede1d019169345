"""Tied output logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.layers.linear import tied_logits


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
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
