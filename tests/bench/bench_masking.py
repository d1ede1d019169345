"""What encoding only the visible patches saves: an MAE's step at 75 % masking against one that encodes all.

python tests/bench/bench_masking.py [--model mae/l16] [--batch 2] [--rounds 3]
"""

import argparse
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import timing

import zoo
from train import optim, rng
from train.objectives.mae import Objective
from train.step import init_state, make_step


def main() -> None:
  """Prints the ratio of the two step times."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--model", default="mae/l16")
  parser.add_argument("--batch", type=int, default=2)
  parser.add_argument("--rounds", type=int, default=3)
  options = parser.parse_args()
  model = zoo.create(options.model, scan=True)
  shape = (options.batch, *model.config.image_size, model.config.num_channels)
  data = dict(
    image=np.random.default_rng(0).integers(0, 256, shape, np.uint8),
    label=np.zeros(options.batch, np.int32),
    valid=np.ones(options.batch, bool),
    id=np.arange(options.batch),
  )
  variables = jax.jit(model.init)(rng.streams(rng.root(0), "params", "mask"), np.zeros((1, *shape[1:]), np.float32))
  optimizer, _ = optim.make(variables["params"], 1000, model=model, name="sgd", learning_rate=1e-4)
  state = init_state(variables, optimizer)
  steps = {}
  for ratio in (0.75, 0.0):
    step = jax.jit(make_step(Objective(mask_ratio=ratio), model, optimizer)).lower(state, data, rng.root(0)).compile()
    steps[ratio] = lambda step=step: jax.block_until_ready(step(state, data, rng.root(0)))
  seconds = timing.in_turns(steps, options.rounds)
  print(
    f"{options.model}, {options.batch} images: {np.median(seconds[0.75]):.2f} s a step at 75 % masking, "
    f"{np.median(seconds[0.0]):.2f} s with all patches encoded; ratio {timing.ratio(seconds[0.75], seconds[0.0])}"
  )


if __name__ == "__main__":
  main()
