"""What the training loop costs over the bare jitted step, and how long it waits for data, on the bundled images.

python tests/bench/bench_loop.py [--steps 60] [--rounds 3]
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import timing

from train import config as configuration
from train import experiment, loop, rng


def main() -> None:
  """Prints the ratio of the seconds a step takes in the loop and alone."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--steps", type=int, default=60)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("overrides", nargs="*", default=["model.width=256", "model.depth=6", "model.mlp_dim=1024"])
  options = parser.parse_args()
  config = configuration.load(
    "quickstart", [*options.overrides, f"steps={options.steps}", "epochs=0", "plots=()", "checkpoint.every_steps=0"]
  )
  config.evals = {}
  run = experiment.Experiment(config)
  key = rng.root(0)
  batch = next(run.data.train_batches(run.batch_size, 0, 0))
  batch = run.parallel.put_batch(batch)
  step = run.parallel.compile(run.make_step()).lower(run.start(), batch, key).compile()
  bare, looped, waited = [], [], []
  for _ in range(options.rounds):
    state = run.start()
    state, metrics = jax.block_until_ready(step(state, batch, key))
    start = time.perf_counter()
    for _ in range(options.steps):
      state, metrics = step(state, batch, key)
    jax.block_until_ready((state, metrics))
    bare.append((time.perf_counter() - start) / options.steps)
    with tempfile.TemporaryDirectory() as workdir:
      loop.train(config, workdir)
      lines = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "train/seconds_per_step" in line][1:]  # the first has the pipeline's start
    looped.append(float(np.mean([line["train/seconds_per_step"] for line in lines])))
    waited.append(float(np.mean([line["train/data_wait"] for line in lines])))
  print(
    f"bare step {np.median(bare) * 1e3:.0f} ms, in the loop {np.median(looped) * 1e3:.0f} ms; "
    f"ratio {timing.ratio(looped, bare)}; waiting for data {np.median(waited):.2%} of the time"
  )


if __name__ == "__main__":
  main()
