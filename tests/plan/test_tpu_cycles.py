"""Predicted cycles of programs whose cost is known, compiled by the real TPU compiler."""

import functools

import jax
import jax.numpy as jnp
import pytest
import recorded_cycles
from jax.experimental import pallas as pl
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from train import sharding
from train.plan import compiler, kernels
from train.plan.cycles import count_cycles
from train.plan.hlo import Module
from train.plan.macs import needed_jaxpr
from zoo.kernels.long_attention import long_attention
from zoo.kernels.short_attention import short_attention
from zoo.kernels.window_attention import window_attention
from zoo.layers.windows import WindowLayout

TOPOLOGIES = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2", "v4:2x2x1")


def predicted(function, *shapes, topology="v5e:2x2"):
  """The cycles of a function of bfloat16 arrays on one chip, and the chip."""
  chip, devices = compiler.tpu_devices(topology)
  there = SingleDeviceSharding(devices[0])
  arguments = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=there) for shape in shapes]
  return compiler.compile_and_count(function, chip, needed_jaxpr(function, *arguments), *arguments)[2], chip


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_large_product_is_near_the_peak(topology):
  n = 4096
  cycles, chip = predicted(jnp.matmul, (n, n), (n, n), topology=topology)
  assert 0.6 < 2 * n**3 / chip.peak_flops * chip.clock / cycles.compute <= 1


def test_scanned_products_cost_what_unrolled_ones_do():
  def step(x, w):
    return jnp.tanh(x @ w)

  def unrolled(x, ws):
    for i in range(8):
      x = step(x, ws[i])
    return x

  def scanned(x, ws):
    return jax.lax.scan(lambda x, w: (step(x, w), None), x, ws)[0]

  shapes = (8192, 2048), (8, 2048, 2048)
  (loop, _), (flat, _) = predicted(scanned, *shapes), predicted(unrolled, *shapes)
  assert loop.total == pytest.approx(flat.total, rel=0.1)


def test_a_gradient_over_the_slice_is_an_all_reduce_of_its_bytes():
  def gradient(x, w):
    return jax.grad(lambda w: jnp.square((x @ w).astype(jnp.float32)).sum())(w)

  chip, devices = compiler.tpu_devices("v5e:2x2")
  mesh = sharding.make_mesh(data=-1, fsdp=1, tensor=1, devices=devices)
  specs = PartitionSpec("data"), PartitionSpec()
  shapes = [
    jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=NamedSharding(mesh, spec))
    for s, spec in zip([(4096, 2048), (2048, 2048)], specs, strict=True)
  ]
  program = compiler.compile_for(gradient, *shapes, out_shardings=NamedSharding(mesh, PartitionSpec()))
  found = count_cycles(Module(program.as_text()), chip)
  busy, waited = found.links["all-reduce"]
  assert busy / chip.clock == pytest.approx(2 * 2048 * 2048 * 2 / chip.links, rel=0.01) and 0 <= waited <= busy


# ---- kernels


def attention(q, k, v):
  """Forward and backward, with what BERT adds: a mask by length and dropout."""
  mask = (jnp.arange(k.shape[1]) < 100)[None, None, None]
  options = dict(mask=mask, dropout_rate=0.1, dropout_key=jax.random.key(0))
  out, pull = jax.vjp(lambda *a: short_attention(*a, **options), q, k, v)
  return pull(out)


def attention_by_blocks(q, k, v):
  mask = (jnp.arange(k.shape[1]) < 1000)[None, None, None]
  out, pull = jax.vjp(lambda *a: long_attention(*a, mask=mask), q, k, v)
  return pull(out)


def attention_in_windows(q, k, v, bias):
  layout = WindowLayout(q.shape[1:3], (7, 7), (3, 3))
  options = dict(window_size=layout.window_size, shift=layout.rolled, mask_WTT=layout.static_mask())
  qkv_bias = jnp.zeros((3, q.shape[-1]))
  call = functools.partial(window_attention, **options)
  out, pull = jax.vjp(lambda *a: call(*a, qkv_bias), q, k, v, bias.astype(jnp.float32))
  return pull(out)


KERNELS = {
  "short attention": (attention, *[(8, 128, 4, 64)] * 3),
  "short attention, a length that fills no tile": (attention, *[(8, 197, 4, 64)] * 3),
  "long attention": (attention_by_blocks, *[(2, 1025, 4, 64)] * 3),
  "window attention": (attention_in_windows, *[(4, 14, 14, 64)] * 3, (2, 49, 49)),
}


@pytest.mark.parametrize("case", KERNELS)
def test_a_kernel_costs_what_was_recorded(case):
  function, *shapes = KERNELS[case]
  recorded_cycles.check(case, predicted(function, *shapes)[0])


def _kernel(x_ref, w_ref, o_ref):
  o_ref[...] = jnp.dot(x_ref[...], w_ref[...], preferred_element_type=jnp.float32).astype(o_ref.dtype)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_kernel_takes_the_time_of_its_grid(topology):
  def product(steps):
    return lambda x, w: pl.pallas_call(
      _kernel,
      out_shape=jax.ShapeDtypeStruct((steps * 512, 512), x.dtype),
      grid=(steps,),
      in_specs=[pl.BlockSpec((512, 512), lambda i: (i, 0)), pl.BlockSpec((512, 512), lambda i: (0, 0))],
      out_specs=pl.BlockSpec((512, 512), lambda i: (i, 0)),
      name="product",
    )(x, w)

  (four, chip), (eight, _) = (predicted(product(n), (n * 512, 512), (512, 512), topology=topology) for n in (4, 8))
  assert not four.unknown and set(four.by(2)) >= {"kernel"}
  assert eight.by(2)["kernel"] == pytest.approx(2 * four.by(2)["kernel"], rel=0.1)
  # Not faster than the peak, nor absurdly slow.
  assert 0.2 < 2 * 4 * 512**3 / chip.peak_flops * chip.clock / four.by(2)["kernel"] <= 1


def test_schedules_are_removed_once_they_are_read():
  predicted(jnp.matmul, (256, 256), (256, 256))
  assert not [*kernels.dump_schedules().iterdir()]
