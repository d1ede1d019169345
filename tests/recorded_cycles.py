"""Predicted cycles of small steps and kernels as they were recorded, so that nobody slows the TPU unknowingly.

python tests/recorded_cycles.py    # records them again, after a change that is meant or a new libtpu
"""

import json
import os
import sys
from importlib import metadata
from pathlib import Path

FILE = Path(__file__).parent / "plan" / "recorded_cycles.json"
# Of the recorded cycles. Another libtpu schedules otherwise; then only what is far off is a fault of ours.
TOLERANCE, OTHER_LIBTPU = 0.05, 0.5


def check(case: str, cycles) -> None:
  """Fails where a program's `train.plan.cycles.Cycles` are not the recorded ones."""
  recorded = json.loads(FILE.read_text())
  same = recorded["libtpu"] == metadata.version("libtpu")
  change = cycles.total / recorded["cycles"][case] - 1
  assert not cycles.unknown
  assert abs(change) < (TOLERANCE if same else OTHER_LIBTPU), (
    f"{case}: {cycles.total:,.0f} cycles, {change:+.1%} of the recorded ones; if that is meant: python {__file__}"
  )


def main() -> None:
  """Compiles every case, in a few minutes, and writes the file."""
  os.environ["JAX_PLATFORMS"] = "cpu"
  sys.path[:0] = [str(FILE.parent), str(FILE.parents[1])]
  import test_tpu
  import test_tpu_cycles

  cycles = {f"{name}, {mesh}": test_tpu.compiled(name, mesh)[-1] for name, mesh in test_tpu.CASES}
  cycles |= {case: test_tpu_cycles.predicted(*parts)[0] for case, parts in test_tpu_cycles.KERNELS.items()}
  rounded = {case: round(found.total) for case, found in cycles.items()}
  FILE.write_text(json.dumps({"libtpu": metadata.version("libtpu"), "cycles": rounded}, indent=1) + "\n")


if __name__ == "__main__":
  main()
