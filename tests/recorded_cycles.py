"""Predicted cycles of small steps and kernels as they were recorded, so that nobody slows the TPU unknowingly.

python tests/recorded_cycles.py [CASE ...]    # records all or some again, after a change that is meant
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
  """Compiles the cases, all in a few minutes, and writes the file."""
  os.environ["JAX_PLATFORMS"] = "cpu"
  sys.path[:0] = [str(FILE.parent), str(FILE.parents[1])]
  import test_tpu
  import test_tpu_cycles

  cases = {f"{case[0]}, {case[1]}": lambda case=case: test_tpu.compiled(*case)[-1] for case in test_tpu.CASES}
  cases |= {
    name: lambda parts=parts: test_tpu_cycles.predicted(*parts)[0] for name, parts in test_tpu_cycles.KERNELS.items()
  }
  names = sys.argv[1:] or list(cases)
  recorded = json.loads(FILE.read_text())["cycles"] if sys.argv[1:] else {}
  for name in names:
    cycles = cases[name]()
    assert not cycles.unknown, (name, cycles.unknown)
    recorded[name] = round(cycles.total)
  FILE.write_text(json.dumps({"libtpu": metadata.version("libtpu"), "cycles": recorded}, indent=1) + "\n")


if __name__ == "__main__":
  main()
