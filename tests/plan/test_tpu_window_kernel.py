"""The TPU compiler takes the window attention kernel, forward and backward, for every TPU."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from train.plan import compiler
from zoo.kernels.window_attention import window_attention
from zoo.layers.windows import WindowLayout


@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2", "v4:2x2x1"])
def test_compiles(topology):
  layout = WindowLayout((14, 14), (7, 7), (3, 3))
  there = SingleDeviceSharding(compiler.tpu_devices(topology)[1][0])
  x = jax.ShapeDtypeStruct((4, 14, 14, 64), jnp.bfloat16, sharding=there)
  bias, more = (jax.ShapeDtypeStruct(shape, jnp.float32, sharding=there) for shape in ((2, 49, 49), (3, 64)))
  static = dict(window_size=layout.window_size, shift=layout.rolled, mask_WTT=layout.static_mask())

  def step(of_out, *arrays):
    out, pull = jax.vjp(lambda *a: window_attention(*a, **static), *arrays)
    return out, pull(of_out)

  text = compiler.compile_for(step, x, x, x, x, bias, more).as_text()
  assert "window_attention_forward" in text and "window_attention_backward" in text
