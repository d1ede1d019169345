"""Predicted cycles of a config's training step on a TPU that need not exist: the compiler's estimates, added up.

    export JAX_PLATFORMS=cpu
    python tests/bench/bench_tpu_cycles.py vit_b16_imagenet batch_size=512 model.scan=False model.remat=none
    python tests/bench/bench_tpu_cycles.py bert_phase2:base batch_size=128 model.scan=False model.remat=none

Needs the extra [plan]. Compiles for v5e:2x2 (TOPOLOGY=... for another) with the config's mesh, and prints one line of
JSON: cycles, share of the peak, memory of a chip. A prediction: compare two programs by it. A loop costs its body's
cycles times its trip count, and copies that overlap with computation count in full, so a scanned stack comes out too
expensive: compare unrolled programs. Pallas kernels have no estimate; their number is printed.
"""

import json
import os
import re
import sys
import time


def hlo_cycles(text: str) -> int:
  """Sum of the estimated cycles in an optimised HLO module, a loop's body as often as it runs."""
  from train.plan.hlo import Module

  module = Module(text)

  def cycles(name: str) -> int:
    total = 0
    for one in module.computations.get(name, ()):
      called = dict(one.called())
      if one.op == "while":
        total += module.trips(one) * cycles(called["body"])
      elif cost := re.search(r'"estimated_cycles":"(\d+)"', one.line):
        total += int(cost[1])
      elif one.op in ("call", "conditional", "async-start"):
        total += sum(map(cycles, called.values()))
    return total

  return cycles(module.entry)


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
