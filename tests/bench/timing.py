"""Timing things against each other in one run, in turns, so that a machine whose speed drifts still compares."""

import statistics
import time
from collections.abc import Callable


def in_turns(functions: dict[str, Callable[[], object]], rounds: int, warmup: int = 1) -> dict[str, list[float]]:
  """Seconds of each call; a round calls every function once, each of which returns when its work is done."""
  seconds: dict[str, list[float]] = {name: [] for name in functions}
  for turn in range(warmup + rounds):
    for name, function in functions.items():
      start = time.perf_counter()
      function()
      if turn >= warmup:
        seconds[name].append(time.perf_counter() - start)
  return seconds


def ratio(a: list[float], b: list[float]) -> str:
  """`a / b`, round by round: its median, and the least and the most."""
  ratios = sorted(x / y for x, y in zip(a, b, strict=True))
  return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
