import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import zoo
from train import plan


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

  assert plan.peak_flops(Device()) == peak


# ---- multiply-adds


def test_matmuls_by_the_closed_form():
  assert plan.count_macs(jnp.matmul, spec(3, 5), spec(5, 7)) == 3 * 5 * 7
  assert plan.count_macs(jnp.matmul, spec(2, 3, 5), spec(2, 5, 7)) == 2 * 3 * 5 * 7
  assert plan.count_macs(lambda a, b: jnp.einsum("abcd,cdef->abef", a, b), spec(2, 3, 5, 7), spec(5, 7, 11, 13)) == (
    2 * 3 * 5 * 7 * 11 * 13
  )
  assert plan.count_macs(lambda a: jnp.exp(a) + a.sum(), spec(3, 5)) == 0


def convolve(x, k, stride=1, groups=1):
  return lax.conv_general_dilated(
    x, k, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
  )


def test_convolutions_by_the_closed_form():
  assert plan.count_macs(convolve, spec(2, 10, 8, 6), spec(3, 5, 6, 7)) == 2 * (8 * 4) * (3 * 5) * 6 * 7
  depthwise = functools.partial(convolve, groups=6)
  assert plan.count_macs(depthwise, spec(2, 10, 8, 6), spec(3, 5, 1, 6)) == 2 * (8 * 4) * (3 * 5) * 6


def test_a_convolution_and_its_gradients_cost_three_times_the_forward_pass():
  patches = functools.partial(convolve, stride=4)
  x, k = spec(2, 16, 12, 3), spec(4, 4, 3, 7)
  gradients = jax.grad(lambda x, k: (patches(x, k) ** 2).sum(), argnums=(0, 1))
  assert plan.count_macs(gradients, x, k) == 3 * plan.count_macs(patches, x, k) > 0


def test_loops_branches_and_wrappers():
  w, x = spec(5, 5), spec(3, 5)
  once = plan.count_macs(jnp.matmul, x, w)

  def looped(x, w):
    return lax.fori_loop(0, 4, lambda _, x: x @ w, x)

  def scanned(x, w):
    return lax.scan(lambda x, _: (x @ w, None), x, None, length=4)[0]

  def nested(x, w):
    return lax.scan(lambda x, _: (scanned(x, w), None), x, None, length=3)[0]

  def branched(x, w):
    return lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x @ w @ w)

  def unknown(x, w):
    return lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ w, x)

  @jax.custom_vjp
  def custom(x, w):
    return x @ w

  @jax.custom_jvp
  def custom_forward(x, w):
    return x @ w

  custom.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, g: (g, g))
  assert plan.count_macs(looped, x, w) == plan.count_macs(scanned, x, w) == 4 * once
  assert plan.count_macs(nested, x, w) == 12 * once
  assert plan.count_macs(branched, x, w) == 2 * once
  assert plan.count_macs(unknown, x, w) == once
  custom_forward.defjvp(lambda x, dx: (x[0] @ x[1], dx[0]))
  for wrapped in (jax.jit(jnp.matmul), jax.checkpoint(jnp.matmul), custom, custom_forward):
    assert plan.count_macs(wrapped, x, w) == once
  assert plan.count_macs(jax.vmap(jnp.matmul, (0, None)), spec(6, 3, 5), w) == 6 * once


def test_rematerialisation_is_counted_again():
  def loss(wrap, x, w, v):
    return (wrap(lambda x, w: jnp.sin(x @ w))(x, w) @ v).sum()

  args = spec(3, 5), spec(5, 5), spec(5, 5)
  kept, again = (jax.grad(functools.partial(loss, wrap), argnums=(0, 1, 2)) for wrap in (lambda f: f, jax.checkpoint))
  assert plan.count_macs(again, *args) - plan.count_macs(kept, *args) == 3 * 5 * 5


def test_what_is_split_over_devices_is_counted_whole():
  mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
  data = PartitionSpec("data")
  split = jax.shard_map(
    jnp.matmul, mesh=mesh, in_specs=(data, PartitionSpec(None, "tensor")), out_specs=PartitionSpec("data", "tensor")
  )
  assert plan.count_macs(split, spec(8, 5), spec(5, 6)) == 8 * 5 * 6


def vit_macs(c, classes=1000):
  """One image, by hand: patch projection, L x (q, k, v, out, scores, sum, two dense layers), classifier."""
  patches = c.grid[0] * c.grid[1]
  tokens = patches + c.class_token
  block = 4 * tokens * c.width**2 + 2 * tokens**2 * c.width + 2 * tokens * c.width * c.mlp_dim
  return patches * c.patch**2 * c.channels * c.width + c.depth * block + c.width * c.num_classes


@pytest.mark.parametrize("scan", [False, True])
def test_vit_by_hand(scan):
  model = zoo.create("vit/ti16", scan=scan)
  inputs = zoo.family("vit").inputs(model.config, 2)
  variables = jax.eval_shape(model.init, {"params": jax.random.key(0)}, *inputs)
  assert plan.count_macs(model.apply, variables, *inputs) == 2 * vit_macs(model.config)


def test_models_are_described():
  (found,) = plan.describe_models("vit/b16")
  assert found.parameters == 86_567_656 and found.inputs == ((1, 224, 224, 3),)
  assert found.macs == vit_macs(zoo.create("vit/b16").config) == pytest.approx(17.56e9, rel=1e-3)
  # MAE: the encoder sees a quarter of the patches and the class token, the decoder everything.
  (mae,) = plan.describe_models("mae/test")
  assert 0 < mae.macs < plan.describe_models("vit/test")[0].macs
  with pytest.raises(ValueError, match=r"vot/b16.*vit/b16"):
    plan.describe_models("vot/b16")


def test_every_family_is_described():
  found = plan.describe_models("*/test")
  assert [m.name for m in found] == zoo.names("*/test") and all(m.parameters and m.macs and m.inputs for m in found)


# ---- collectives, in the notations of the TPU compiler

HLO = """HloModule jit_step, num_partitions=4

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[]{:T(128)} add(%x, %y)
}

%all-reduce-scatter.1 (input: f32[8,6]) -> f32[2,6] {
  %all-reduce.9 = f32[8,6]{1,0:T(8,128)} all-reduce(%input), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %slice = f32[2,6]{1,0:T(8,128)S(1)} dynamic-slice(%all-reduce.9, %i, %z), dynamic_slice_sizes={2,6}
}

%start (p: bf16[2,5]) -> bf16[8,5] {
  ROOT %all-gather.1 = bf16[8,5]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=2, replica_groups=[1,4]<=[4], dimensions={0}
}

%done (p: bf16[2,5]) -> bf16[8,5] {
  ROOT %all-gather.2 = bf16[8,5]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=2, replica_groups=[1,4]<=[4], dimensions={0}
}

%body (c: (s32[], f32[4])) -> (s32[], f32[4]) {
  %f1 = bf16[8,5]{1,0} fusion(%p), kind=kCustom, calls=%start
  %f2 = bf16[8,5]{1,0} fusion(%p), kind=kCustom, calls=%done
  %f3 = f32[2,6]{1,0} fusion(%q), kind=kCustom, calls=%all-reduce-scatter.1
}

%condition (c: (s32[], f32[4])) -> pred[] {
  %n = s32[]{:T(128)} constant(6)
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}

%known (c: (s32[], f32[4])) -> (s32[], f32[4]) {
  %r = f32[4]{0} all-reduce(%q), channel_id=7, replica_groups=[2,2]<=[2,2]T(1,0), to_apply=%add
}

ENTRY %main.5_spmd (param: f32[512,512]) -> (f32[512,512], f32[]) {
  %w1 = (s32[]{:T(128)}, f32[4]{0}) while(%t), condition=%condition, body=%body, metadata={op_name="jit(step)/while"}
  %w2 = (s32[], f32[4]) while(%t), condition=%condition, body=%known, backend_config={"known_trip_count":{"n":"3"}}
  %all-reduce.2 = (f32[3,4]{1,0:T(8,128)}, /*index=1*/f32[]{:T(128)}) all-reduce(%a, %b), channel_id=1, replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_1'}, to_apply=%add, metadata={op_name="jit(step)/dot_general"}
  %cp = (f32[6,7]{1,0}, f32[6,7]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=13, source_target_pairs={{0,2},{1,3},{2,0},{3,1}}
  %cpd = f32[6,7]{1,0} collective-permute-done(%cp)
}
"""  # noqa: E501


def test_collectives_of_a_program():
  found = {(c.op, c.shapes): c for c in plan.collectives(HLO)}
  everyone = ((0, 1, 2, 3),)
  C = plan.Collective
  assert set(found.values()) == {
    C("all-gather", ("bf16[8,5]",), 80, everyone, 6),  # its pieces are one; the loop's length is in its condition
    C("reduce-scatter", ("f32[2,6]",), 192, everyone, 6),  # in spite of the channel it shares
    C("all-reduce", ("f32[4]",), 16, ((0, 2), (1, 3)), 3),
    C("all-reduce", ("f32[3,4]", "f32[]"), 52, ((0, 1), (2, 3)), 1, "jit(step)/dot_general"),
    C("collective-permute", ("f32[6,7]",), 168, ((0, 2), (1, 3), (2, 0), (3, 1)), 1),
  }
  assert found["reduce-scatter", ("f32[2,6]",)].elements == 48
  assert found["all-reduce", ("f32[3,4]", "f32[]")].sizes == (12, 1)


def test_which_mesh_axis_a_collective_is_over():
  mesh = jax.make_mesh((2, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])
  for groups, data, tensor in ((((0, 1), (2, 3)), 0, 1), (((0, 2), (1, 3)), 1, 0), (((0, 1, 2, 3),), 1, 1)):
    one = plan.Collective("all-reduce", ("f32[1]",), 4, groups)
    assert (one.crosses(mesh, "data"), one.crosses(mesh, "tensor")) == (data, tensor)


@pytest.mark.parametrize(
  "text, groups",
  [
    ("{{0,1},{2,3}}", ((0, 1), (2, 3))),
    ("[2,2]<=[4]", ((0, 1), (2, 3))),
    ("[2,2]<=[2,2]", ((0, 1), (2, 3))),
    ("[4,2]<=[2,2,2]T(0,2,1)", ((0, 2), (1, 3), (4, 6), (5, 7))),
    ("mesh['axis_0'=2,'axis_1'=2] {'axis_0'}", ((0, 2), (1, 3))),
    ("mesh['a'=2,'b'=1,'c'=2] {'a','c'}", ((0, 1, 2, 3),)),
  ],
)
def test_groups_in_every_notation(text, groups):
  line = f"  %r = f32[4]{{0}} all-reduce(%q), channel_id=7, replica_groups={text}, to_apply=%add"
  (found,) = plan.collectives("ENTRY %main (p: f32[4]) -> f32[4] {\n" + line + "\n}")
  assert found.groups == groups


def test_unknown_groups_are_an_error():
  with pytest.raises(ValueError, match="replica groups"):
    plan.collectives(HLO.replace("[1,4]<=[4]", "all"))


def test_a_program_of_eight_devices_has_the_collectives_it_needs():
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  cut, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
  compiled = (
    jax.jit(jnp.matmul, in_shardings=(cut, whole), out_shardings=whole).lower(spec(16, 5), spec(5, 3)).compile()
  )
  (found,) = plan.collectives(compiled.as_text())
  assert (found.op, found.elements, found.groups) == ("all-gather", 48, (tuple(range(8)),))
