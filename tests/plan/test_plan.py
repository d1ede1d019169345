"""`zoo plan` without a TPU compiler: peak FLOP/s, multiply-adds, messages about memory."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec
from support import raises

import zoo
from train.plan import chips, macs, memory, models


def spec(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


# ---- chips


@pytest.mark.parametrize(
  "kind, peak",
  [
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5p", 459e12),
    ("TPU v5", 459e12),
    ("TPU v6 lite", 918e12),
    ("cpu", None),
    ("NVIDIA H100", None),
  ],
)
def test_peak_by_device_kind(kind, peak):
  class Device:
    device_kind = kind

  assert chips.peak_flops(Device()) == peak


# ---- multiply-adds


def test_matmuls_by_the_closed_form():
  assert macs.count_macs(jnp.matmul, spec(3, 5), spec(5, 7)) == 3 * 5 * 7
  assert macs.count_macs(jnp.matmul, spec(2, 3, 5), spec(2, 5, 7)) == 2 * 3 * 5 * 7
  assert macs.count_macs(lambda a, b: jnp.einsum("abcd,cdef->abef", a, b), spec(2, 3, 5, 7), spec(5, 7, 11, 13)) == (
    2 * 3 * 5 * 7 * 11 * 13
  )
  assert macs.count_macs(lambda a: jnp.exp(a) + a.sum(), spec(3, 5)) == 0


def convolve(x, k, stride=1, groups=1):
  return lax.conv_general_dilated(
    x, k, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
  )


def test_convolutions_by_the_closed_form():
  assert macs.count_macs(convolve, spec(2, 10, 8, 6), spec(3, 5, 6, 7)) == 2 * (8 * 4) * (3 * 5) * 6 * 7
  depthwise = functools.partial(convolve, groups=6)
  assert macs.count_macs(depthwise, spec(2, 10, 8, 6), spec(3, 5, 1, 6)) == 2 * (8 * 4) * (3 * 5) * 6


def test_a_convolution_and_its_gradients_cost_three_times_the_forward_pass():
  patches = functools.partial(convolve, stride=4)
  x, k = spec(2, 16, 12, 3), spec(4, 4, 3, 7)
  gradients = jax.grad(lambda x, k: (patches(x, k) ** 2).sum(), argnums=(0, 1))
  assert macs.count_macs(gradients, x, k) == 3 * macs.count_macs(patches, x, k) > 0


def test_loops_branches_and_wrappers():
  w, x = spec(5, 5), spec(3, 5)
  once = macs.count_macs(jnp.matmul, x, w)

  def looped(x, w):
    return lax.fori_loop(0, 4, lambda _, x: x @ w, x)

  def scanned(x, w):
    return lax.scan(lambda x, _: (x @ w, None), x, None, length=4)[0]

  def nested(x, w):
    return lax.scan(lambda x, _: (scanned(x, w), None), x, None, length=3)[0]

  def branched(x, w):
    return lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x @ w @ w)

  def otherwise_on_a_cpu(x, w):
    return lax.platform_dependent(x, w, cpu=lambda x, w: x @ w @ w, default=jnp.matmul)

  def unknown(x, w):
    return lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ w, x)

  @jax.custom_vjp
  def custom(x, w):
    return x @ w

  @jax.custom_jvp
  def custom_forward(x, w):
    return x @ w

  custom.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, g: (g, g))
  assert macs.count_macs(looped, x, w) == macs.count_macs(scanned, x, w) == 4 * once
  assert macs.count_macs(nested, x, w) == 12 * once
  assert macs.count_macs(branched, x, w) == 2 * once
  assert macs.count_macs(otherwise_on_a_cpu, x, w) == once
  assert macs.count_macs(unknown, x, w) == once
  custom_forward.defjvp(lambda x, dx: (x[0] @ x[1], dx[0]))
  for wrapped in (jax.jit(jnp.matmul), jax.checkpoint(jnp.matmul), custom, custom_forward):
    assert macs.count_macs(wrapped, x, w) == once
  assert macs.count_macs(jax.vmap(jnp.matmul, (0, None)), spec(6, 3, 5), w) == 6 * once


def test_rematerialisation_is_counted_again():
  def loss(wrap, x, w, v):
    return (wrap(lambda x, w: jnp.sin(x @ w))(x, w) @ v).sum()

  args = spec(3, 5), spec(5, 5), spec(5, 5)
  kept, again = (jax.grad(functools.partial(loss, wrap), argnums=(0, 1, 2)) for wrap in (lambda f: f, jax.checkpoint))
  assert macs.count_macs(again, *args) - macs.count_macs(kept, *args) == 3 * 5 * 5


def test_macs_of_sharded_programs_are_those_of_all_devices():
  mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
  data = PartitionSpec("data")
  split = jax.shard_map(
    jnp.matmul, mesh=mesh, in_specs=(data, PartitionSpec(None, "tensor")), out_specs=PartitionSpec("data", "tensor")
  )
  assert macs.count_macs(split, spec(8, 5), spec(5, 6)) == 8 * 5 * 6


def vit_macs(c, classes=1000):
  """One image, by hand: patch projection, L x (q, k, v, out, scores, sum, two dense layers), classifier."""
  patches = c.grid[0] * c.grid[1]
  tokens = patches + c.class_token
  block = 4 * tokens * c.width**2 + 2 * tokens**2 * c.width + 2 * tokens * c.width * c.mlp_dim
  return patches * c.patch_size**2 * c.num_channels * c.width + c.depth * block + c.width * c.num_classes


@pytest.mark.parametrize("scan", [False, True])
def test_vit_by_hand(scan):
  model = zoo.create("vit/ti16", scan=scan)
  inputs = zoo.family("vit").inputs(model.config, 2)
  variables = jax.eval_shape(model.init, {"params": jax.random.key(0)}, *inputs)
  assert macs.count_macs(model.apply, variables, *inputs) == 2 * vit_macs(model.config)


def test_models_are_described():
  (found,) = models.describe_models("vit/b16")
  assert found.parameters == 86_567_656 and found.inputs == ((1, 224, 224, 3),)
  assert found.macs == vit_macs(zoo.create("vit/b16").config) == pytest.approx(17.56e9, rel=1e-3)
  # MAE: the encoder reads a quarter of the patches and the class token, the decoder everything.
  (mae,) = models.describe_models("mae/test")
  assert 0 < mae.macs < models.describe_models("vit/test")[0].macs
  with raises(ValueError, "vot/b16", "vit/b16"):
    models.describe_models("vot/b16")


def test_every_family_is_described():
  found = models.describe_models("*/test")
  assert [m.name for m in found] == zoo.list_models("*/test") and all(
    m.parameters and m.macs and m.inputs for m in found
  )


# ---- messages of the TPU compiler


@pytest.mark.parametrize(
  ("message", "needed", "usable"),
  [
    ("RESOURCE_EXHAUSTED: program (24.00G) exceeds available HBM (16.00G) by 8G", 24 * 2**30, 16 * 2**30),
    ("Ran out of memory in memory space hbm. Used 24.00G of 512.00M hbm. Exceeded", 24 * 2**30, 2**29),
    ("Allocation (size=34359738368) would exceed memory (size=17179869184) :: #allocation9", 2**35, 2**34),
  ],
)
def test_out_of_memory_in_every_wording(message, needed, usable):
  found = memory.out_of_hbm(message)
  assert (found.needed, found.usable) == (needed, usable)


def test_other_errors_are_not_out_of_memory():
  assert memory.out_of_hbm("INVALID_ARGUMENT: 3 of 4 devices") is None
