"""What a layer costs as sequences grow: the table of Vaswani et al. 2017 (table 1), counted in programs.

Operations are the multiply-adds of the traced program, sequential steps the trips of its scans. A path's length is how
often information has to be passed on from the first position to the last. A slope is the exponent of a power law
fitted to them: 2 for n^2, 1 for n, 0 for what does not grow.

python tests/bench/bench_complexity.py [--width 64] [--kernel 5] [--plot FILE.png]
"""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from train import plots
from train.plan.macs import count_macs
from zoo.layers.attention import dot_product_attention

LENGTHS = (64, 128, 256, 512, 1024)


def self_attention(x_TD: jax.Array, kernel: int) -> jax.Array:
  """Every position reads all; without the projections before and after, 4 n d^2, which the paper's table leaves out."""
  x_1T1D = x_TD[None, :, None]
  return dot_product_attention(x_1T1D, x_1T1D, x_1T1D)[0][0, :, 0]


def restricted_attention(x_TD: jax.Array, kernel: int) -> jax.Array:
  """A position reads the `kernel` nearest: as many small attentions as there are positions."""
  length, side = len(x_TD), kernel // 2
  place_TS = np.arange(length)[:, None] + np.arange(-side, side + 1)
  near_TS1D = x_TD[np.clip(place_TS, 0, length - 1)][:, :, None]
  mask_T11S = ((place_TS >= 0) & (place_TS < length))[:, None, None]
  return dot_product_attention(x_TD[:, None, None], near_TS1D, near_TS1D, mask=mask_T11S)[0][:, 0, 0]


def recurrent(x_TD: jax.Array, kernel: int) -> jax.Array:
  """A gated recurrent unit (Cho et al. 2014, eq. 5 to 8), a step after the other."""
  width = x_TD.shape[1]
  of_input, of_state = jax.random.normal(jax.random.key(0), (2, 3, width, width)) * width**-0.5

  def step(state_D, x_D):
    reset = jax.nn.sigmoid(x_D @ of_input[0] + state_D @ of_state[0])
    update = jax.nn.sigmoid(x_D @ of_input[1] + state_D @ of_state[1])
    new = jnp.tanh(x_D @ of_input[2] + (reset * state_D) @ of_state[2])
    state_D = update * state_D + (1 - update) * new
    return state_D, state_D

  return jax.lax.scan(step, jnp.zeros(width), x_TD)[1]


def convolutional(x_TD: jax.Array, kernel: int) -> jax.Array:
  """A position reads the `kernel` nearest through a matrix for each place."""
  width = x_TD.shape[1]
  weights = jax.random.normal(jax.random.key(0), (kernel, width, width))
  return jax.lax.conv_general_dilated(x_TD[None], weights, (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"))[0]


@dataclass(frozen=True)
class Layer:
  """A line of the table.

  Attributes:
    run: from x [T, D] and the kernel's size to [T, D].
    links: from the length and the kernel's size to bool [T, T]: what a position reads in one step of the program.
    complexity: operations, sequential steps and path length as in the paper, with n, d and k.
  """

  run: Callable[[jax.Array, int], jax.Array]
  links: Callable[[int, int], np.ndarray]
  complexity: tuple[str, str, str]


def _near(length: int, kernel: int) -> np.ndarray:
  return np.abs(np.arange(length)[:, None] - np.arange(length)) <= kernel // 2


LAYERS = {
  "self-attention": Layer(self_attention, lambda n, k: np.ones((n, n), bool), ("n^2 d", "1", "1")),
  "recurrent": Layer(recurrent, lambda n, k: np.eye(n, k=-1, dtype=bool), ("n d^2", "n", "n")),
  "convolutional": Layer(convolutional, _near, ("k n d^2", "1", "n / k")),
  "restricted attention": Layer(restricted_attention, _near, ("k n d", "1", "n / k")),
}


def operations(name: str, length: int, width: int, kernel: int) -> int:
  """Multiply-adds of a layer's matrix products and convolutions."""
  return count_macs(lambda x: LAYERS[name].run(x, kernel), jax.ShapeDtypeStruct((length, width), jnp.float32))


def sequential_steps(name: str, length: int, width: int, kernel: int) -> int:
  """How many steps of a layer's program wait for the one before: the trips of its scans, or 1."""

  def trips(jaxpr) -> int:
    inner = [(e, e.params["jaxpr"].jaxpr) for e in jaxpr.eqns if hasattr(e.params.get("jaxpr"), "jaxpr")]
    return sum(e.params["length"] * max(trips(j), 1) if e.primitive.name == "scan" else trips(j) for e, j in inner)

  program = jax.make_jaxpr(lambda x: LAYERS[name].run(x, kernel))(jnp.zeros((length, width)))
  return max(trips(program.jaxpr), 1)


def path_length(name: str, length: int, kernel: int) -> int:
  """Steps along the links until the last position knows of the first."""
  links_TS = LAYERS[name].links(length, kernel).astype(np.float32)
  knows, steps = np.arange(length) == 0, 0
  while not knows[-1]:
    knows, steps = knows | (links_TS @ knows.astype(np.float32) > 0), steps + 1
  return steps


def slope(sizes: Sequence[int], costs: Sequence[int]) -> float:
  """The exponent p of the power law cost = c size^p that fits best."""
  return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def measure(width: int = 64, kernel: int = 5) -> dict[str, dict]:
  """For every layer the costs at `LENGTHS`, and the slopes in the length n, the width d and the kernel's size k."""
  result = {}
  for name in LAYERS:
    costs = {
      "operations": [operations(name, n, width, kernel) for n in LENGTHS],
      "sequential steps": [sequential_steps(name, n, width, kernel) for n in LENGTHS],
      "path length": [path_length(name, n, kernel) for n in LENGTHS],
    }
    widths, kernels = [width, 2 * width, 4 * width], [3, 9, 27]
    slopes = {f"{cost} in n": slope(LENGTHS, values) for cost, values in costs.items()} | {
      "operations in d": slope(widths, [operations(name, LENGTHS[0], d, kernel) for d in widths]),
      "operations in k": slope(kernels, [operations(name, LENGTHS[0], width, k) for k in kernels]),
    }
    result[name] = {"costs": costs, "slopes": slopes}
  return result


def table(measured: dict[str, dict]) -> str:
  """The paper's formulas beside the fitted exponents, as Markdown."""
  lines = [
    "| layer | operations | in n | in d | in k | sequential steps | in n | path length | in n |",
    "|---|---|---|---|---|---|---|---|---|",
  ]
  for name, result in measured.items():
    work, steps, path = LAYERS[name].complexity
    s = {cost: round(value, 2) + 0.0 for cost, value in result["slopes"].items()}  # + 0.0: no "-0.00"
    of_work = " | ".join(f"{s[f'operations in {letter}']:.2f}" for letter in "ndk")
    of_rest = f"{steps} | {s['sequential steps in n']:.2f} | {path} | {s['path length in n']:.2f}"
    lines.append(f"| {name} | {work} | {of_work} | {of_rest} |")
  return "\n".join(lines)


def draw(measured: dict[str, dict], width: int, kernel: int) -> Figure:
  """Costs over the length, both logarithmic: a straight line's steepness is the exponent, which the legend tells."""
  with matplotlib.rc_context(plots.STYLE):
    figure = Figure(figsize=(9.6, 4.2))
    axes = figure.subplots(1, 3, gridspec_kw=dict(left=0.055, right=0.99, top=0.79, bottom=0.34, wspace=0.2))
    for axis, cost in zip(axes, ("operations", "sequential steps", "path length"), strict=True):
      for i, (name, result) in enumerate(measured.items()):
        power = round(result["slopes"][f"{cost} in n"], 2) + 0.0  # no "-0.00"
        # Lines that lie on each other stay visible: each thinner than the one before.
        axis.loglog(LENGTHS, result["costs"][cost], color=plots.COLORS[i], linewidth=4.2 - i, marker="o", markersize=3,
                    label=f"{name}: $n^{{{power:.2f}}}$")  # fmt: skip
      axis.set(title=cost, xlabel="length n")
      axis.set_xticks(LENGTHS, [str(n) for n in LENGTHS])
      axis.minorticks_off()
      axis.tick_params(length=0)
      axis.grid(axis="y", color=plots.FAINT, linewidth=0.6)
      axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17))
    figure.text(0.012, 0.97, "What a layer costs as sequences grow", size=11, weight="bold", va="top")
    about = (
      f"width d = {width}, kernel k = {kernel}; operations are multiply-adds; below, the power of n that fits best"
    )
    figure.text(0.012, 0.91, about, size=8, color=plots.SOFT, va="top")
  return figure


def main() -> None:
  """Prints the table, and draws it where asked to."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--width", type=int, default=64)
  parser.add_argument("--kernel", type=int, default=5)
  parser.add_argument("--plot", metavar="FILE.png", help="where to write the picture")
  options = parser.parse_args()
  measured = measure(options.width, options.kernel)
  print(table(measured))
  if options.plot:
    with matplotlib.rc_context(plots.STYLE):
      draw(measured, options.width, options.kernel).savefig(options.plot)


if __name__ == "__main__":
  main()
