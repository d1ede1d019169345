"""Seconds to trace and compile a training step of 12 and of 24 layers, scanned and unrolled.

python tests/bench/bench_compile.py [--rounds 3]
"""

import argparse
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import timing

import zoo
from train import optim, rng
from train.objectives.image_classification import Objective
from train.step import init_state, make_step


def compiling(depth: int, scan: bool):
  """Traces and compiles, from scratch each time, as a function of nothing."""
  model = zoo.create("vit/ti16", depth=depth, scan=scan)
  data = dict(
    image=jax.ShapeDtypeStruct((8, 224, 224, 3), "uint8"),
    label=jax.ShapeDtypeStruct((8,), "int32"),
    valid=jax.ShapeDtypeStruct((8,), "bool"),
    id=jax.ShapeDtypeStruct((8,), "int32"),
  )

  def make():
    return model.init({"params": rng.root(0)}, np.zeros((1, 224, 224, 3), np.float32))

  optimizer, _ = optim.make(jax.eval_shape(make)["params"], 1000, model=model, learning_rate=1e-3, weight_decay=0.05)
  state = jax.eval_shape(lambda: init_state(make(), optimizer))
  key = jax.eval_shape(lambda: rng.root(0))

  def run():
    jax.clear_caches()  # or the second time would find the first one's program
    jax.jit(make_step(Objective(), model, optimizer)).lower(state, data, key).compile()

  return run


def main() -> None:
  """Prints seconds and ratios."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--rounds", type=int, default=3)
  options = parser.parse_args()
  for scan in (True, False):
    seconds = timing.in_turns({str(depth): compiling(depth, scan) for depth in (12, 24)}, options.rounds, settle=0)
    print(
      f"{'scanned ' if scan else 'unrolled'}: 12 layers {np.median(seconds['12']):.1f} s, "
      f"24 layers {np.median(seconds['24']):.1f} s; ratio {timing.ratio(seconds['24'], seconds['12'])}",
      flush=True,
    )


if __name__ == "__main__":
  main()
