"""What an image costs as it grows: attention within windows against attention among all tokens.

Liu et al. 2021, eq. 1 and 2: windows make the cost of attention linear in the number of pixels, where it is quadratic
without. Times the forward passes of Swin-T and of ViT-S/16 on images of 224, 448 and 896 pixels a side, as many of them
as have the pixels of one of 896, in float32 with two threads, in turns; and tells what share of ViT's multiply-adds the
quadratic term has.

python tests/bench/bench_resolution.py [--rounds 5] [--plot FILE.png]
"""

import argparse
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import timing
from matplotlib.figure import Figure

import zoo
from train import plots
from train.plan.macs import count_macs
from zoo.layers.windows import msa_macs, wmsa_macs

SIDES = (224, 448, 896)
NAMES = ("swin/t", "vit/s16")
WIDTH, PATCH, WINDOW = 96, 4, 7  # of Swin's first stage, which the equations are drawn for


def model_of(name: str, side: int):
  """The model for images of this size; a Swin is the same for all."""
  own = dict(image_size=(side, side)) if name.startswith("vit/") else {}
  return zoo.create(name, scan=True, **own)


def weights(model, side: int):
  """Its variables, as shapes."""
  return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32))


def images(side: int) -> int:
  """How many images of a size have the pixels of one of the largest."""
  return (SIDES[-1] // side) ** 2


def forward(name: str, side: int):
  """Nothing to tell, and the forward pass of `images` as a function of nothing."""
  model = model_of(name, side)
  pixels = np.random.default_rng(0).normal(size=(images(side), side, side, 3)).astype(np.float32)
  variables = jax.jit(model.init)(jax.random.key(0), pixels[:1])
  run = jax.jit(lambda variables, pixels: model.apply(variables, pixels)[0])
  return None, lambda: jax.block_until_ready(run(variables, pixels))


def macs(name: str, side: int) -> int:
  """Multiply-adds of the traced program."""
  model = model_of(name, side)
  image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  return count_macs(lambda variables, image: model.apply(variables, image)[0], weights(model, side), image)


def quadratic_share(name: str, side: int) -> float:
  """Share of the scores and weighted sums of all tokens with all, 2 T^2 D a layer, in a ViT's multiply-adds."""
  c = model_of(name, side).config
  tokens = (side // c.patch_size) ** 2 + int(c.class_token)
  return c.depth * 2 * tokens**2 * c.width / macs(name, side)


def measure(rounds: int) -> dict[str, dict[int, list[float]]]:
  """Seconds an image of each model's forward pass, at every size."""
  result: dict[str, dict[int, list[float]]] = {}
  for name in NAMES:
    made = {side: timing.Apart(forward, name, side) for side in SIDES}
    seconds = timing.in_turns(made, rounds)
    result[name] = {side: [s / images(side) for s in values] for side, values in seconds.items()}
    for one in made.values():
      one.close()
  return result


def draw(seconds: dict[str, dict[int, list[float]]]) -> Figure:
  """Left the equations for Swin's first stage, right what was measured; both logarithmic."""
  sides = np.arange(112, 1793, 28)
  tokens = [side // PATCH for side in sides]
  equations = {
    "among all, eq. 1": [msa_macs(n, n, WIDTH) / 1e9 for n in tokens],
    "within windows, eq. 2": [wmsa_macs(n, n, WIDTH, WINDOW) / 1e9 for n in tokens],
  }
  with matplotlib.rc_context(plots.STYLE):
    figure = Figure(figsize=(9.6, 4.2))
    left, right = figure.subplots(1, 2, gridspec_kw=dict(left=0.075, right=0.985, top=0.75, bottom=0.13, wspace=0.2))
    for i, (label, values) in enumerate(equations.items()):
      left.loglog(sides, values, color=plots.COLORS[i], linewidth=2, label=label)
    left.set(title="billions of multiply-adds of a layer of attention", xlabel="side of the image in pixels")
    for i, (name, times) in enumerate(reversed(seconds.items())):
      medians = [float(np.median(times[side])) for side in SIDES]
      right.loglog(SIDES, medians, color=plots.COLORS[i], linewidth=2, marker="o", markersize=5, label=name)
      linear = [medians[0] * (side / SIDES[0]) ** 2 for side in SIDES]
      right.loglog(SIDES, linear, color=plots.SOFT, linewidth=1, linestyle=":",
                   label="as many times as it has pixels" if i else None)  # fmt: skip
    right.set(title="seconds an image, forward pass, measured", xlabel="side of the image in pixels")
    for axis, ticks in ((left, (112, 224, 448, 896, 1792)), (right, SIDES)):
      axis.set_xticks(ticks, [str(n) for n in ticks])
      axis.minorticks_off()
      axis.tick_params(length=0)
      axis.grid(axis="y", color=plots.FAINT, linewidth=0.6)
      axis.legend(loc="upper left")
    figure.text(0.012, 0.97, "What an image costs as it grows", size=11, weight="bold", va="top")
    about = (
      f"left: h x w tokens of {PATCH} x {PATCH} pixels, C = {WIDTH}, M = {WINDOW}, as in Swin-T's first stage; right:"
      " whole models, two threads"
    )
    figure.text(0.012, 0.91, about, size=8, color=plots.SOFT, va="top")
  return figure


def main() -> None:
  """Prints a line for each model and size, and draws the picture where asked to."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--plot", metavar="FILE.png", help="where to write the picture")
  options = parser.parse_args()
  timing.two_cores()
  seconds = measure(options.rounds)
  for name, times in seconds.items():
    for side in SIDES:
      pixels = (side / SIDES[0]) ** 2
      linear = [pixels * s for s in times[SIDES[0]]]
      share = f"; {quadratic_share(name, side):.0%} of them quadratic" if name.startswith("vit/") else ""
      print(
        f"{name:8} {side} px: {np.median(times[side]):.3f} s, {macs(name, side) / 1e9:.2f} GMACs{share}; "
        f"over {pixels:.0f} x the time at {SIDES[0]} px {timing.ratio(times[side], linear)}",
        flush=True,
      )
  if options.plot:
    with matplotlib.rc_context(plots.STYLE):
      draw(seconds).savefig(options.plot)


if __name__ == "__main__":
  main()
