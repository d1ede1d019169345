"""Predicted cycles of a config's training step on a TPU that need not exist: the compiler's estimates, added up.

    JAX_PLATFORMS=cpu python tests/bench/bench_tpu_cycles.py vit_b16_imagenet batch_size=512 model.scan=False
    JAX_PLATFORMS=cpu python tests/bench/bench_tpu_cycles.py bert_phase2:base batch_size=128 model.scan=False

Needs the extra [plan]. Compiles for v5e:2x2 (TOPOLOGY=... for another) with the config's mesh, and prints one line of
JSON: cycles, share of the peak, memory of a chip. A prediction: compare two programs by it. A loop costs its body's
cycles times its trip count, and copies that overlap with computation count in full, so a scanned stack comes out too
expensive: compare unrolled programs. Pallas kernels have no estimate; their number is printed.
"""

import collections
import json
import os
import re
import sys
import time


def hlo_cycles(text: str) -> int:
  """Sum of the estimated cycles in an optimised HLO module, a loop's body as often as it runs."""
  bodies, name, entry = collections.defaultdict(list), None, None
  for line in text.splitlines():
    head = re.match(r"(?:ENTRY )?%?([\w.\-<>]+) \(.*\{\s*$", line)
    if head:
      name = head[1]
      entry = name if line.startswith("ENTRY") else entry
    elif name:
      bodies[name].append(line)

  def trips(line: str, condition: str) -> int:
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
    limits = (re.findall(r"s32\[\]\S* constant\((\d+)\)", other) for other in bodies[condition])
    return int(known[1]) if known else max((int(n) for found in limits for n in found), default=1)

  def cycles(name: str) -> int:
    total = 0
    for line in bodies[name]:
      if loop := re.search(r" while\(.*condition=%?([\w.\-<>]+), body=%?([\w.\-<>]+)", line):
        total += trips(line, loop[1]) * cycles(loop[2])
      elif cost := re.search(r'"estimated_cycles":"(\d+)"', line):
        total += int(cost[1])
      elif called := re.search(
        r" (?:call|conditional|async-start)\(.*(?:to_apply|calls|called_computations)=\{?%?([\w.\-<>]+)", line
      ):
        total += cycles(called[1])
    return total

  return cycles(entry)


def main(name: str, overrides: list[str], topology: str) -> dict:
  """The prediction for a config with overrides."""
  from train import config as configuration
  from train import sharding
  from train.experiment import Experiment
  from train.plan.compiler import compile_for, tpu_devices
  from train.plan.macs import count_macs
  from train.plan.memory import hbm
  from train.plan.report import abstract_arguments
  from zoo import registry

  config = configuration.load(name, overrides)
  chip, devices = tpu_devices(topology)
  sizes = {axis: config.parallel[axis] for axis in ("data", "fsdp", "tensor")}
  axes = registry.family(config.model.name).LOGICAL_AXES
  parallel = sharding.Jit(sharding.make_mesh(**sizes, devices=devices), axes)
  experiment = Experiment(config, parallel=parallel, load_data=False)
  step, arguments = experiment.parallel_step(), abstract_arguments(experiment, parallel.mesh)
  macs, start = count_macs(step, *arguments) / len(devices), time.time()
  compiled = compile_for(step, *arguments)
  text = compiled.as_text()
  cycles = hlo_cycles(text)
  return dict(
    mcycles=round(cycles / 1e6, 1),
    mfu=chip.clock and round(2 * macs / chip.peak_flops * chip.clock / cycles, 3),
    kernels=len(re.findall('custom_call_target="tpu_custom_call"', text)),
    hbm_gib=round(hbm(compiled, chip).peak / 2**30, 2),
    compile_s=round(time.time() - start, 1),
  )


if __name__ == "__main__":
  print(json.dumps(main(sys.argv[1], sys.argv[2:], os.environ.get("TOPOLOGY", "v5e:2x2"))))
