"""Collectives, in the notations of the TPU compiler."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from train.plan.collectives import Collective, collectives

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
  found = {(c.op, c.shapes): c for c in collectives(HLO)}
  everyone = ((0, 1, 2, 3),)
  C = Collective
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
    one = Collective("all-reduce", ("f32[1]",), 4, groups)
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
  (found,) = collectives("ENTRY %main (p: f32[4]) -> f32[4] {\n" + line + "\n}")
  assert found.groups == groups


def test_unknown_groups_are_an_error():
  with pytest.raises(ValueError, match="replica groups"):
    collectives(HLO.replace("[1,4]<=[4]", "all"))


def test_a_program_of_eight_devices_has_the_collectives_it_needs():
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  sharded, replicated = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
  compiled = (
    jax.jit(jnp.matmul, in_shardings=(sharded, replicated), out_shardings=replicated)
    .lower(jnp.ones((16, 5)), jnp.ones((5, 3)))
    .compile()
  )
  (found,) = collectives(compiled.as_text())
  assert (found.op, found.elements, found.groups) == ("all-gather", 48, (tuple(range(8)),))
