"""`zoo plan --search`, with a formula in the place of the TPU compiler, and options that exclude each other."""

import dataclasses

import pytest

from train import cli
from train.plan import search
from train.plan.chips import CHIPS, GB
from train.plan.cycles import Cycles
from train.plan.memory import Memory
from train.plan.report import Plan

NAME = "vit_fashion_mnist"


def plan_of(config, topology):
  """Fast and large without remat; half a second an example, and memory for a microbatch."""
  if config.parallel.tensor > 1:
    raise ValueError("2 devices do not divide 3 heads")
  remat = config.model.get("remat", "none") != "none"
  size = config.batch_size / config.grad_accum_steps * (0.02 if remat else 0.1) * GB
  seconds = config.batch_size * (1.3 if remat else 1) + config.grad_accum_steps
  chip = CHIPS["v5e"]
  whole = dict(topology=topology, chip=chip, chips=4, mesh={}, model="m", parameters=1, unit="images", tokens=0, macs=1)
  return Plan(
    **whole,
    batch_size=config.batch_size,
    model_macs=1,
    memory=Memory(int(size), chip.usable),
    cycles=Cycles(seconds * chip.clock) if size < chip.usable else None,
    collectives=(),
    largest=(),
    steps=None,
    compile_seconds=0.0,
  )


@pytest.fixture
def formula(monkeypatch):
  monkeypatch.setattr(search, "plan", plan_of)


@pytest.mark.usefixtures("formula")
def test_it_ends_at_the_fastest_that_fits():
  reported = []
  found = search.search(NAME, ["batch_size=256"], "v5e:2x2", reported.append)
  assert sorted(found, key=id) == sorted(reported, key=id)
  assert found[0].rate == max(one.rate for one in found) > 0
  # Without remat only microbatches of at most 157 images fit, and they are the fastest.
  assert {"model.remat=none", "grad_accum_steps=2"} <= {*found[0].overrides}
  assert [one.rate for one in found] == sorted((one.rate for one in found), reverse=True)


@pytest.mark.usefixtures("formula")
def test_a_setting_is_given_once_and_faults_are_kept():
  found = search.search(NAME, [], "v5e:2x2")
  for candidate in found:
    keys = [override.partition("=")[0] for override in candidate.overrides]
    assert len(keys) == len({*keys})
  assert {one.fault for one in found if one.plan is None} == {"2 devices do not divide 3 heads"}
  assert all(len(one.row()) == 4 for one in found)


@pytest.mark.usefixtures("formula")
def test_what_does_not_fit_comes_last_and_the_smallest_first():
  found = search.search(NAME, ["batch_size=100000"], "v5e:2x2")
  sizes = [one.plan.memory.peak for one in found if one.plan]
  assert not found[0].rate and sizes == sorted(sizes)


def test_figures_that_follow_from_a_step():
  plan = plan_of(search.configuration.load(NAME), "v5e:2x2")
  assert plan.rate == plan.batch_size / plan.seconds
  twice = dataclasses.replace(plan, model_macs=2 * plan.model_macs)
  assert twice.mfu == pytest.approx(2 * plan.mfu)
  run = dataclasses.replace(plan, steps=100)
  assert run.hours == pytest.approx(100 * plan.seconds / 3600)
  assert f"{run.hours * 4 * 3:,.0f} at 3" in run.rows(3.0)["predicted run"]


@pytest.mark.parametrize(
  "words, named",
  [
    ([NAME, "--search", "--all"], ("--search", "--all")),
    ([NAME, "--all"], (NAME, "--all")),
    ([], ("--all",)),
    ([NAME, "--html", "no_such_folder/plan.html"], ("no_such_folder/plan.html",)),
    ([NAME, "--compare", ""], ("--compare",)),
  ],
)
def test_options_that_cannot_be(words, named, capsys, monkeypatch):
  monkeypatch.setattr("train.plan.command.plan", plan_of)
  assert cli.main(["plan", *words]) == 2
  error = capsys.readouterr().err
  assert all(name in error for name in named) and len(error.splitlines()) == 1
