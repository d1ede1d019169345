"""Predicted cycles: a clock that walks through a schedule, on programs whose cost is known. No TPU compiler."""

import dataclasses

import pytest

from train.plan.chips import CHIPS
from train.plan.cycles import count_cycles, kernel_cycles, layer_of
from train.plan.hlo import Module

# One cycle a second; 10 bytes a cycle of HBM and 5 of the links.
CHIP = dataclasses.replace(CHIPS["v5e"], clock=1.0, bandwidth=10.0, links=5.0)


def add(name, operand, cycles, path="jit(step)/jvp(Model)/encoder/block_03/mlp/up/add"):
  metadata = f'metadata={{op_name="{path}"}}, backend_config={{"estimated_cycles":"{cycles}"}}'
  return f"  %{name} = f32[5]{{0}} add(%{operand}, %{operand}), {metadata}"


def module(*entry, computations=()):
  return Module("\n".join([*computations, "ENTRY %main (x: f32[5]) -> f32[5] {", *entry, "}"]))


def test_estimates_add_up_and_a_loop_costs_its_body_as_often_as_it_runs():
  body = ["%body (x: f32[5]) -> f32[5] {", add("a", "x", 7), add("b", "a", 4), "}"]
  condition = ["%condition (x: f32[5]) -> pred[] {", "  %c = s32[] constant(6)"]
  condition += ["  ROOT %lt = pred[] compare(%i, %c), direction=LT", "}"]
  loop = "  %w = f32[5]{0} while(%a0), condition=%condition, body=%body"
  found = count_cycles(module(add("a0", "x", 3), loop, computations=[*body, *condition]), CHIP)
  assert found.total == found.compute == 3 + 6 * (7 + 4)
  assert found.by(0) == {"encoder/block/mlp/up": 69} and found.by(1) == {"forward": 69}


@pytest.mark.parametrize("beside, waited", [(0, 40), (15, 25), (40, 0), (100, 0)])
def test_a_copy_costs_what_the_computation_does_not_hide(beside, waited):
  # 100 numbers of 4 bytes, at 10 bytes a cycle: 40 cycles.
  start = "  %s = (f32[100]{0:S(1)}, f32[100]{0}, u32[]) copy-start(%x)"
  found = count_cycles(module(start, add("a", "x", beside), "  %d = f32[100]{0:S(1)} copy-done(%s)"), CHIP)
  assert (found.copies, found.hidden_copies, found.total) == (waited, 40 - waited, beside + waited)


def test_copies_queue_behind_each_other():
  start = "  %s{0} = (f32[100]{{0:S(1)}}, f32[100]{{0}}, u32[]) copy-start(%x)"
  lines = [start.replace("{0}", n, 1).replace("{{", "{").replace("}}", "}") for n in "12"]
  done = [f"  %d{n} = f32[100]{{0:S(1)}} copy-done(%s{n})" for n in "12"]
  assert count_cycles(module(*lines, *done), CHIP).total == 80


@pytest.mark.parametrize("beside, waited", [(0, 160), (60, 100), (200, 0)])
def test_an_all_reduce_sends_its_bytes_twice(beside, waited):
  start = "  %s = f32[100]{0} all-reduce-start(%x), replica_groups={{0,1}}, to_apply=%sum"
  found = count_cycles(module(start, add("a", "x", beside), "  %d = f32[100]{0} all-reduce-done(%s)"), CHIP)
  assert found.total == beside + waited and found.links == {"all-reduce": (160, waited)}


def test_a_synchronous_collective_is_awaited_and_a_gather_sends_its_bytes_once():
  gather = "  %g = f32[100]{0} all-gather(%x), replica_groups={{0,1}}, dimensions={0}"
  found = count_cycles(module(gather, add("a", "g", 200)), CHIP)
  assert found.collectives == 80 and found.total == 280


def test_a_copy_inside_vector_memory_is_not_one_in_hbm():
  copy = '  %c = f32[64,1024]{1,0:S(1)} copy(%x), backend_config={"estimated_cycles":"46176"}'
  in_vmem = count_cycles(module("  %x = f32[64,1024]{1,0:S(1)} parameter(0)", copy), CHIP)
  in_hbm = count_cycles(module("  %x = f32[64,1024]{1,0} parameter(0)", copy), CHIP)
  assert in_vmem.total == 64 and in_hbm.total == 46176


def test_of_a_conditional_the_most_expensive_branch():
  branches = [
    "%one (x: f32[5]) -> f32[5] {",
    add("a", "x", 7),
    "}",
    "%two (x: f32[5]) -> f32[5] {",
    add("b", "x", 9),
    "}",
  ]
  line = "  %c = f32[5]{0} conditional(%i, %x, %x), branch_computations={%one, %two}"
  assert count_cycles(module(line, computations=branches), CHIP).total == 9


def kernel(name, path="jit(step)/jvp(Model)/encoder/attn/attend/pallas_call"):
  call = f'custom-call(%x), custom_call_target="tpu_custom_call", metadata={{op_name="{path}"}}'
  return f"  %{name} = f32[8,128]{{1,0}} {call}"


def test_a_kernel_costs_its_bundles_times_its_grid_and_at_least_its_bytes():
  program = module("  %x = f32[5]{0} parameter(0)", kernel("attend.1"), kernel("attend.2"))
  grids = {("attend", ((8, 128),)): 4}
  assert kernel_cycles(program, {"attend.2": 300}, grids) == {"attend.1": 1200, "attend.2": 1200}  # equal ones
  cycles = kernel_cycles(program, {"attend.1": 300, "attend.2": 10}, grids)
  assert cycles == {"attend.1": 1200, "attend.2": 40}
  found = count_cycles(program, CHIP, cycles)
  moved = (8 * 128 + 5) * 4 / CHIP.bandwidth
  assert found.total == 1200 + moved and found.by(2) == {"kernel": 1200 + moved}


def test_a_kernel_of_which_nothing_is_known_is_named():
  found = count_cycles(module(kernel("attend.1")), CHIP)
  assert found.unknown == ("attend.1",) and found.total == 0


@pytest.mark.parametrize(
  "path, layer, direction",
  [
    ("jit(step)/jvp(Model)/encoder/block_11/attn/q/dot_general", "encoder/block/attn/q", "forward"),
    ("jit(step)/transpose(jvp(Model))/encoder/block_02/attn/BTNH,BSNH->BNTS/dot", "encoder/block/attn", "backward"),
    ("jit(step)/transpose(jvp(Model))/encoder/while/body/closed_call/blocks/mlp/mul", "encoder/block/mlp", "backward"),
    ("jit(step)/jvp(jit(step))/log_softmax/sub", "log_softmax", "forward"),
    ("jit(step)/adam/mul", "optimizer", "update"),
  ],
)
def test_layer_and_direction_by_the_path_of_an_operation(path, layer, direction):
  assert layer_of(path) == (layer, direction)
