"""The real TPU compiler, which needs no TPU, compiles the kernels for every kind of chip."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from train import sharding
from train.plan import compiler
from train.plan.collectives import collectives
from zoo.kernels.long_attention import long_attention
from zoo.kernels.short_attention import short_attention

TOPOLOGIES = "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "v4:2x2x1"


def compiled(topology, shape, dtype, mask=None, bias=None, dropout_rate=0.0, **mesh):
  """Output and gradients on a mesh of four devices."""
  way = sharding.Jit(sharding.make_mesh(**mesh, devices=compiler.tpu_devices(topology)[1]))

  def abstract(shape, dtype, spec):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(way.mesh, spec))

  tokens = abstract(shape, dtype, PartitionSpec(("data", "fsdp"), None, "tensor"))
  mask = None if mask is None else abstract(mask, jnp.bool_, PartitionSpec())
  bias = None if bias is None else abstract(bias, jnp.float32, PartitionSpec())

  def run(q, k, v, mask, bias):
    with way._cutting():
      key = jax.random.key(0) if dropout_rate else None

      def of(q, k, v, bias):
        return short_attention(q, k, v, mask=mask, bias=bias, dropout_rate=dropout_rate, dropout_key=key)

      out, pull = jax.vjp(of, q, k, v, bias)
      return out, pull(out)

  return compiler.compile_for(run, tokens, tokens, tokens, mask, bias).as_text()


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_long_attention_compiles_and_gathers_nothing(topology):
  """The forward pass alone and with its two backward kernels, by examples and by heads."""
  way = sharding.Jit(sharding.make_mesh(2, 1, 2, devices=compiler.tpu_devices(topology)[1]))
  there = NamedSharding(way.mesh, PartitionSpec(("data", "fsdp"), None, "tensor"))
  tokens = jax.ShapeDtypeStruct((2, 1025, 4, 80), jnp.bfloat16, sharding=there)

  def run(q, k, v):
    with way._cutting():
      mask = (jnp.arange(1025) < 1000)[None, None, None]
      out, pull = jax.vjp(lambda *a: long_attention(*a, mask=mask), q, k, v)
      return out, pull(out)

  text = compiler.compile_for(run, tokens, tokens, tokens).as_text()
  assert text.count('custom_call_target="tpu_custom_call"') == 3 and not collectives(text)


@pytest.mark.parametrize("length", [49, 257, 577])
def test_lengths_that_fill_no_tile_compile(length):
  text = compiled("v5e:2x2", (4, length, 2, 64), jnp.bfloat16, data=4, fsdp=1, tensor=1)
  assert text.count('custom_call_target="tpu_custom_call"') == 2


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_kernels_compile_and_gather_nothing(topology):
  """Row-major and time-major, masks, bias, dropout; nothing but the gradient of the bias crosses devices."""
  plain = compiled(topology, (32, 20, 4, 64), jnp.bfloat16, data=2, fsdp=2, tensor=1)
  assert plain.count('custom_call_target="tpu_custom_call"') == 2 and not collectives(plain)
  full = compiled(topology, (8, 24, 4, 64), jnp.float32, (8, 1, 1, 24), (1, 4, 24, 24), 0.1, data=2, fsdp=1, tensor=2)
  assert {one.op for one in collectives(full)} <= {"all-reduce"}
