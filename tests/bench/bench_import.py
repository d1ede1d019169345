"""Seconds of a new process that imports the zoo, and of one that imports JAX and Flax alone.

python tests/bench/bench_import.py [--rounds 9]
"""

import argparse
import statistics
import subprocess
import sys

import timing


def process(code: str):
  """Runs a program in a new Python, as a function of nothing."""
  return lambda: subprocess.run([sys.executable, "-c", code], check=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rounds", type=int, default=9)
  programs = {name: process(name) for name in ("pass", "import jax, flax.linen", "import zoo")}
  seconds = timing.in_turns(programs, parser.parse_args().rounds)
  for name, values in seconds.items():
    print(f"{name:24} {statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})")
  print(f"zoo over JAX and Flax: {timing.ratio(seconds['import zoo'], seconds['import jax, flax.linen'])}")


if __name__ == "__main__":
  main()
