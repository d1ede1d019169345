"""Depthwise convolution: on a CPU the same as XLA's own, forward and backward, and elsewhere XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import raises

from zoo.kernels.depthwise_conv import depthwise_conv


def draw(*shape, dtype=np.float32):
  return jnp.asarray(np.random.default_rng(shape).normal(size=shape), dtype)


def convolve(x, kernel):
  layout = ("NHWC", "HWIO", "NHWC")
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), "SAME", dimension_numbers=layout, feature_group_count=x.shape[-1]
  )


@pytest.mark.parametrize(
  ("shape", "size"), [((2, 6, 9, 5), (7, 7)), ((12, 5, 4, 3), (3, 5)), ((11, 1, 2, 3), (7, 7))], ids=str
)
def test_as_xlas_own_forward_and_backward(shape, size):
  x, kernel, of_output = draw(*shape), draw(*size, 1, shape[-1]), draw(1, *shape)[0]
  ours, theirs = (
    jax.jit(lambda x, k, g, f=f: (f(x, k), jax.vjp(f, x, k)[1](g)))(x, kernel, of_output)
    for f in (depthwise_conv, convolve)
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, theirs)


def test_bfloat16_is_summed_in_float32():
  x, kernel = draw(2, 8, 8, 4, dtype=jnp.bfloat16), draw(7, 7, 1, 4, dtype=jnp.bfloat16)
  y = jax.jit(depthwise_conv)(x, kernel)
  gradients = jax.eval_shape(jax.grad(lambda x, k: depthwise_conv(x, k).sum(), (0, 1)), x, kernel)
  assert {a.dtype for a in (y, *gradients)} == {jnp.dtype("bfloat16")}
  wanted = convolve(x.astype(jnp.float32), kernel.astype(jnp.float32))
  np.testing.assert_allclose(y.astype(jnp.float32), wanted, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_which_program_runs_where(platform):
  def gradient(x, kernel):
    return jax.grad(lambda *a: jnp.square(depthwise_conv(*a)).sum(), (0, 1))(x, kernel)

  text = jax.jit(gradient).trace(draw(2, 8, 8, 4), draw(7, 7, 1, 4)).lower(lowering_platforms=(platform,)).as_text()
  assert text.count("stablehlo.convolution") == (0 if platform == "cpu" else 3)


@pytest.mark.parametrize("kernel", [(6, 7, 1, 4), (7, 7, 1, 3), (7, 7, 4, 1)])
def test_invalid_kernels(kernel):
  with raises(ValueError, kernel, 1, 4):
    depthwise_conv(draw(1, 8, 8, 4), draw(*kernel))
