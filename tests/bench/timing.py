"""Timing things against each other in one run, in turns, so that a machine whose speed drifts still compares."""

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable


def two_cores() -> None:
  """This process, and those that it will start, run on two cores, however many there are."""
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])


class Apart:
  """A function in a process of its own, which sleeps between calls: two libraries' threads do not meet.

  Whichever side it is, it asks Linux for huge pages, as the README advises for training on a CPU; with GLIBC_TUNABLES=
  in the environment it does not.

  Args:
    make: called in that process with `args`; returns what a call runs. Its result must be short: it is sent back.
  """

  def __init__(self, make: Callable, *args):
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")  # glibc reads it when a process starts
    context = multiprocessing.get_context("spawn")
    self._pipe, theirs = context.Pipe()
    self._process = context.Process(target=_serve, args=(theirs, make, args), daemon=True)
    self._process.start()
    self.about = self._pipe.recv()

  def __call__(self) -> None:
    """Runs it once, to its end."""
    self._pipe.send(True)
    self._pipe.recv()

  def close(self) -> None:
    """Ends the process."""
    self._pipe.send(False)
    self._process.join()


def _serve(pipe, make: Callable, args: tuple) -> None:
  about, run = make(*args)
  pipe.send(about)
  while pipe.recv():
    run()
    pipe.send(True)


def in_turns(
  functions: dict[str, Callable[[], object]], rounds: int, settle: int = 1, calls: int = 1
) -> dict[str, list[float]]:
  """Seconds a call; a round calls every function `calls` times on end, each of which returns when its work is done.

  Before that it is called `settle` times for nothing: it compiles, and gets back the caches and the free memory that
  the others had (which under a hypervisor may cost a second).
  """
  seconds: dict[str, list[float]] = {name: [] for name in functions}
  for _ in range(rounds):
    for name, function in functions.items():
      for _ in range(settle):
        function()
      start = time.perf_counter()
      for _ in range(calls):
        function()
      seconds[name].append((time.perf_counter() - start) / calls)
  return seconds


def ratio(a: list[float], b: list[float]) -> str:
  """`a / b`, round by round: its median, and the least and the most."""
  ratios = sorted(x / y for x, y in zip(a, b, strict=True))
  return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
