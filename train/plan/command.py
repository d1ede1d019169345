"""`zoo plan`: prints a plan, writes it as JSON and HTML, searches settings, compares two, or plans every config."""

import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from train import config as configuration
from train.plan import page
from train.plan import search as searching
from train.plan.report import Plan, plan


def run(
  config: str | None,
  overrides: Sequence[str],
  topology: str,
  console: Console,
  *,
  price: float | None = None,
  html: str | None = None,
  compare: str | None = None,
  search: bool = False,
  all: bool = False,
) -> tuple[int, dict]:
  """Plans a config and prints it.

  Args:
    config, overrides: as for `zoo train`.
    topology: see `compiler.tpu_devices`.
    console: to print to.
    price: of a chip and hour.
    html: a file for the page.
    compare: overrides, or a config and overrides, to plan beside it.
    search: search for better settings instead.
    all: plan every shipped config instead.

  Returns:
    the exit status, 1 if it does not fit, and what to write as JSON.

  Raises:
    ValueError: options that exclude each other; whatever `report.plan` raises.
  """
  one_of = {"--html": html, "--compare": compare is not None, "--search": search, "--all": all}
  if len(chosen := [name for name, value in one_of.items() if value]) > 1:
    raise ValueError(f"{' and '.join(chosen)} exclude each other; wanted one of {', '.join(one_of)}")
  if bool(config) == all:
    raise ValueError("wanted a config to plan, or --all" + (f" without {config!r}" if config else ""))
  if all:
    return _plan_all(topology, console, price)
  assert config
  if search:
    return _search(config, overrides, topology, console)
  found = plan(configuration.load(config, overrides), topology)
  if compare is not None:
    return _compare(found, _other(config, overrides, compare, topology), console, price)
  console.print(found.table(price))
  if html:
    Path(html).write_text(page.page(found, price), encoding="utf-8")
  return 0 if found.memory.fits else 1, found.as_dict()


def _search(config: str, overrides: Sequence[str], topology: str, console: Console) -> tuple[int, dict]:
  start = time.monotonic()

  def report(candidate: searching.Candidate) -> None:
    console.print(f"{time.monotonic() - start:5.0f} s  " + "  ".join(filter(None, candidate.row())))

  found = searching.search(config, overrides, topology, report)
  table = Table("settings", "predicted", "", "HBM a chip", title=f"{config} on {topology}", box=None)
  for candidate in found:
    table.add_row(*candidate.row())
  console.print(table)
  best = found[0]
  if best.rate:
    console.print("best: " + shlex.join(["zoo", "train", config, *overrides, *best.overrides]))
  rows = [dict(overrides=c.overrides, fault=c.fault, plan=c.plan and c.plan.as_dict()) for c in found]
  return 0 if best.rate else 1, {"candidates": rows}


def _other(config: str, overrides: Sequence[str], compare: str, topology: str) -> Plan:
  words = shlex.split(compare)
  if not words:
    raise ValueError("--compare is empty; wanted overrides such as 'model.remat=none', or a config and overrides")
  if "=" in words[0]:
    return plan(configuration.load(config, [*overrides, *words]), topology)
  return plan(configuration.load(words[0], words[1:]), topology)


def _compare(one: Plan, other: Plan, console: Console, price: float | None) -> tuple[int, dict]:
  table = Table("", f"{one.model} on {one.topology}", f"{other.model} on {other.topology}", box=None)
  left, right = one.rows(price), other.rows(price)
  for name in dict.fromkeys([*left, *right]):
    table.add_row(name, left.get(name, ""), right.get(name, ""))
  if one.rate and other.rate:
    table.add_row("speed", "1", f"{other.rate / one.rate:.2f}")
  console.print(table)
  return 0 if one.memory.fits and other.memory.fits else 1, {"plan": one.as_dict(), "compared": other.as_dict()}


def markdown_head(price: float | None) -> str:
  """The first two lines of a table of Markdown whose rows are `markdown_row`."""
  columns = ["config", "slice", "batch", "HBM of a chip", "step", "MFU", "a second", "hours", "chip-hours"]
  columns += ["cost"] if price else []
  return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"


def markdown_row(name: str, found: Plan, price: float | None) -> str:
  """What a plan of a config predicts; `price` is that of a chip and hour."""
  cells = [f"`{name}`", found.topology, f"{found.batch_size:,} {found.unit}", f"{found.memory.peak / 2**30:.1f} GiB"]
  if found.seconds and found.mfu and found.rate:
    cells += [f"{found.seconds * 1e3:,.1f} ms", f"{found.mfu:.2f}", f"{found.rate:,.0f}"]
  else:
    cells += ["does not fit", "", ""]
  hours = found.hours
  cells += [f"{hours:,.1f}", f"{hours * found.chips:,.0f}"] if hours else ["", ""]
  if price:
    cells.append(f"{price * hours * found.chips:,.0f}" if hours else "")
  return f"| {' | '.join(cells)} |"


def _plan_all(topology: str, console: Console, price: float | None) -> tuple[int, dict]:
  """Plans every shipped config and prints a table of Markdown, a row once it is compiled."""
  console.print(markdown_head(price))
  plans = {}
  for name in configuration.shipped():
    try:
      found = plan(configuration.load(name), topology)
    except ValueError as error:
      console.print(f"| `{name}` | {topology} | {str(error).splitlines()[0]} |" + " |" * (7 if price else 6))
      continue
    plans[name] = found.as_dict()
    console.print(markdown_row(name, found, price))
  return 0, plans
