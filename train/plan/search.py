"""Finds faster or smaller settings of a training step by compiling them for a TPU."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from train import config as configuration
from train.plan.report import Plan, plan

_ACCUMULATION = (2, 4)  # times as many accumulation steps for what does not fit
REMAT = ("none", "dots_saveable", "dots_with_no_batch_dims_saveable", "nothing_saveable")


@dataclass(frozen=True)
class Candidate:
  """Settings that were compiled: overrides of the config; their plan, or why they cannot be."""

  overrides: tuple[str, ...]
  plan: Plan | None
  fault: str = ""

  @property
  def rate(self) -> float:
    """Predicted examples a second; 0 of what cannot run."""
    return (self.plan.rate or 0.0) if self.plan and self.plan.memory.fits else 0.0

  def row(self) -> tuple[str, ...]:
    """Settings, examples a second, MFU, GiB: for a table."""
    settings = " ".join(self.overrides) or "as given"
    if self.plan is None:
      return settings, self.fault, "", ""
    memory = f"{self.plan.memory.peak / 2**30:.2f} GiB"
    if not (self.plan.memory.fits and self.plan.mfu):
      return settings, "does not fit", "", memory
    return settings, f"{self.rate:,.0f} {self.plan.unit}/s", f"MFU {self.plan.mfu:.2f}", memory


def compiled(name: str, given: Sequence[str], overrides: Sequence[str], topology: str) -> Candidate:
  """Plans a config with overrides over the given ones."""
  try:
    return Candidate(tuple(overrides), plan(configuration.load(name, [*given, *overrides]), topology))
  except ValueError as error:  # a mesh or a batch that the slice cannot have
    return Candidate(tuple(overrides), None, str(error).splitlines()[0])


def search(
  name: str, given: Sequence[str], topology: str, report: Callable[[Candidate], None] = lambda candidate: None
) -> list[Candidate]:
  """Tries remat policies, meshes, gradient accumulation and batch sizes in this order, each from the best so far.

  What does not fit is tried with two and four times as many accumulation steps.

  Args:
    name, given: the config and its overrides.
    topology: see `compiler.tpu_devices`.
    report: called with each candidate once it is compiled.

  Returns:
    all candidates, the fastest that fits first; of those that do not fit the smallest first.
  """
  tried: dict[tuple[str, ...], Candidate] = {}
  grad_accum_steps = configuration.load(name, given).grad_accum_steps

  def attempt(before: Sequence[str], option: Sequence[str]) -> Candidate:
    # A later setting of the same key replaces an earlier one.
    keys = {part.partition("=")[0] for part in option}
    overrides = (*(part for part in before if part.partition("=")[0] not in keys), *option)
    if overrides not in tried:
      tried[overrides] = compiled(name, given, overrides, topology)
      report(tried[overrides])
    return tried[overrides]

  def fitting(before: Sequence[str], option: Sequence[str]) -> Candidate:
    # What needs too much memory may be the fastest of all with smaller microbatches.
    candidate = attempt(before, option)
    for times in _ACCUMULATION:
      if candidate.plan is None or candidate.plan.memory.fits:
        break
      candidate = attempt(candidate.overrides, [f"grad_accum_steps={grad_accum_steps * times}"])
    return candidate

  best = fitting((), ())
  for options in _axes(name, given, best.plan.chips if best.plan else 1):
    for option in options:
      best = min(best, fitting(best.overrides, option), key=_rank)
  return sorted(tried.values(), key=_rank)


def _rank(candidate: Candidate) -> tuple[float, float]:
  size = float(candidate.plan.memory.peak) if candidate.plan else float("inf")
  return -candidate.rate, size


def _axes(name: str, given: Sequence[str], chips: int) -> Iterator[list[tuple[str, ...]]]:
  """What can be set, a list for each: every option differs from what the config says."""
  config = configuration.load(name, given)
  if "remat" in config.model:
    yield [(f"model.remat={policy}",) for policy in REMAT if policy != config.model.remat]
  meshes = [(chips, 1, 1), (1, chips, 1), (chips // 2, 1, 2), (1, chips // 2, 2)] if chips > 1 else []
  now = tuple(config.parallel[axis] for axis in ("data", "fsdp", "tensor"))
  axes = ("data", "fsdp", "tensor")
  yield [
    tuple(f"parallel.{axis}={size}" for axis, size in zip(axes, mesh, strict=True))
    for mesh in meshes
    if mesh != now and (mesh[0] != chips or -1 not in now)
  ]
  if config.grad_accum_steps > 1:
    yield [(f"grad_accum_steps={config.grad_accum_steps // 2}",)]
  yield [(f"batch_size={n}",) for n in (config.batch_size * 2, config.batch_size // 2)]
