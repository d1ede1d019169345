"""The loop as its users see it: runs that are killed, damaged, moved or misconfigured, through the command."""

import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image
from support import TINY_CONFIG, assert_names, raises

import zoo
from train import cli, experiment, loop, rng
from train import config as configuration
from train.evaluation import registry as evaluations
from train.objectives import seq2seq
from train.plan.macs import count_macs
from zoo.weights.sources import read

STEPS = 60


@pytest.fixture(scope="module")
def environment(as_users_have_it):
  """One device, and compiled programs shared by the processes; unoptimised, since they run for seconds."""
  return as_users_have_it | dict(JAX_DISABLE_MOST_OPTIMIZATIONS="true")


def start(environment, workdir, *arguments):
  command = [sys.executable, "-m", "train", "train", TINY_CONFIG, "--workdir", str(workdir), *arguments]
  return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(environment, workdir, *arguments, code=0):
  process = start(environment, workdir, *arguments)
  output, _ = process.communicate(timeout=300)
  assert process.returncode == code, output
  return output


def losses(workdir) -> list[tuple[int, float]]:
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]


def final(workdir) -> dict:
  checkpoint = workdir / "checkpoints" / str(STEPS)
  return read(checkpoint).tensors | {f"ema/{k}": v for k, v in read(checkpoint, average=True).tensors.items()}


def assert_same_run(workdir, whole):
  """The same losses at every step, each logged once, and the same parameters to the last bit."""
  assert losses(workdir) == losses(whole)
  ours, theirs = final(workdir), final(whole)
  assert ours.keys() == theirs.keys()
  for key in ours:
    np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)


def wait_for_step(process, workdir, step):
  """Until the log has the step."""
  for _ in range(3000):
    log = workdir / "metrics.jsonl"
    if log.exists() and f'"step": {step},' in log.read_text():
      return
    assert process.poll() is None, process.communicate()[0]
    time.sleep(0.02)
  raise AssertionError("the run does not get on")


@pytest.fixture(scope="module")
def whole(environment, tmp_path_factory):
  """A run that nothing happens to."""
  workdir = tmp_path_factory.mktemp("whole")
  run(environment, workdir)
  return workdir


@pytest.fixture(scope="module")
def opened(whole):
  return experiment.open_run(str(whole))


def test_log_has_every_step_once(whole):
  assert [step for step, _ in losses(whole)] == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_killed_and_stopped_it_ends_bit_for_bit_the_same(environment, whole, tmp_path):
  process = start(environment, tmp_path)
  wait_for_step(process, tmp_path, 23)  # the second checkpoint may not be whole yet, the first is
  process.kill()
  process.communicate()
  process = start(environment, tmp_path, "log_every_steps=1")
  wait_for_step(process, tmp_path, 37)
  process.send_signal(signal.SIGTERM)
  output, _ = process.communicate(timeout=60)
  assert process.returncode == 0, output
  assert re.search(rf"step [1-3]0 of {STEPS}", output)
  stopped = max(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
  assert stopped >= 37 and re.search(rf"SIGTERM .*step {stopped}\b", output)
  command = next(line.split() for line in output.splitlines() if line.strip().startswith("zoo train"))
  assert command[2] == TINY_CONFIG and command[-2:] == ["--workdir", str(tmp_path)]
  assert f"step {stopped} of {STEPS}" in run(environment, tmp_path, "log_every_steps=1")
  assert_same_run(tmp_path, whole)


@pytest.mark.slow
def test_damaged_checkpoints_are_skipped(environment, whole, tmp_path):
  """One that ends too early, one whose description does, and what a process leaves that is killed while it writes."""
  shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
  half_written, description, arrays = (tmp_path / "checkpoints" / str(STEPS - 10 * i) for i in range(3))
  half_written.rename(half_written.with_name(f"{STEPS}.orbax-checkpoint-tmp"))
  os.truncate(description / "meta" / "metadata", 20)
  for path in (arrays / "state").rglob("d/*"):  # where Orbax keeps arrays, some of them twice
    os.truncate(path, path.stat().st_size // 2)
  output = run(environment, tmp_path)
  assert f"step {STEPS - 30} of {STEPS}" in output
  for damaged in (description, arrays):
    assert re.search(rf"step {damaged.name}\b.*damaged", output)
    assert (tmp_path / "damaged" / damaged.name).is_dir()
  assert_same_run(tmp_path, whole)


@pytest.mark.slow
def test_all_checkpoints_damaged_is_an_error_and_changes_nothing(environment, whole, tmp_path):
  shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
  for path in (tmp_path / "checkpoints").glob("*/state/manifest.ocdbt"):
    os.truncate(path, 3)
  before = sorted((tmp_path / "checkpoints").rglob("*"))
  output = run(environment, tmp_path, code=2)
  # Threads of TensorStore that end late may print into the same line.
  (fault,) = re.findall("zoo: .*", output)
  assert str(tmp_path / "checkpoints") in fault
  assert sorted((tmp_path / "checkpoints").rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [("jit", 4, 2), ("pmap", -1, 1)])
def test_resuming_with_another_number_of_devices(environment, whole, tmp_path, parallel):
  name, data, fsdp = parallel
  shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
  shutil.rmtree(tmp_path / "checkpoints" / str(STEPS))
  eight = environment | dict(JAX_NUM_CPU_DEVICES="8")
  output = run(eight, tmp_path, f"parallel.name={name}", f"parallel.data={data}", f"parallel.fsdp={fsdp}")
  assert f"step {STEPS - 10} of {STEPS}" in output
  # Sums over devices are in another order, so to rounding and not to the bit.
  np.testing.assert_allclose(losses(tmp_path), losses(whole), rtol=1e-4)


@pytest.mark.slow
def test_two_processes_train_what_one_does(environment, whole, tmp_path):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  processes = [start(environment, tmp_path, "--distributed", f"localhost:{port},{i},2") for i in (0, 1)]
  outputs = [process.communicate(timeout=300)[0] for process in processes]
  assert [process.returncode for process in processes] == [0, 0], outputs
  assert ["checkpoint" in output for output in outputs] == [True, False]  # one reports for both
  np.testing.assert_allclose(losses(tmp_path), losses(whole), rtol=1e-4)


def load(*overrides):
  return configuration.load(TINY_CONFIG, overrides)


def test_another_config_is_an_error_that_lists_the_differences(whole):
  with raises(loop.ConfigMismatchError, "optimizer.b2", "0.95 -> 0.99", "seed: 0 -> 1", "--override-config"):
    loop.train(load("optimizer.b2=0.99", "seed=1"), whole)


@pytest.mark.parametrize(
  ("override", "named"),
  [
    ("model.mlp_dim=32", ("params/encoder/block_00/mlp/up/kernel", (16, 24), (16, 32))),
    (
      "optimizer={'name': 'sgd', 'learning_rate': 0.1}",
      ("opt_state/0/0/mu/decoder/block_00/attn/k/bias", (4, 4), "none"),
    ),
  ],
)
def test_a_checkpoint_of_another_state_is_reported_and_kept(whole, override, named):
  """It is not damaged, and nothing is moved."""
  before = sorted((whole / "checkpoints").rglob("*"))
  with raises(ValueError, f"step {STEPS}", "model", "optimizer", *named):
    loop.train(load(override), whole, override_config=True)
  assert sorted((whole / "checkpoints").rglob("*")) == before


def test_no_resume_refuses_a_work_directory_with_a_run(whole):
  with raises(ValueError, whole):
    loop.train(load(), whole, resume=False)


@pytest.mark.parametrize("parallel", ["jit", "pmap"])
def test_a_short_batch_counts_its_own_operations(parallel, monkeypatch):
  config = configuration.load("translate_en_es", ["data.batching=bucket", "data.train_split=train[:200]"])
  config.parallel.name, config.batch_size = parallel, 8
  config.model.update(width=16, mlp_dim=16, depth=1, decoder_depth=1, scan=False, remat="none")
  run = experiment.Experiment(config)
  state, key, macs = run.start(), run.parallel.put(rng.root(0)), {}
  for batch in itertools.islice(run.data.train_batches(8, 0), 25):
    if (length := batch["source_ids"].shape[1]) not in macs:
      macs[length] = count_macs(run.parallel_step(), state, run.parallel.put_batch(batch), key)
  assert len(macs) > 1 and max(macs) == 96
  # Whoever compiles the step and counts its operations traces it once.
  jitted, batch, traces = run.parallel_step(), run.parallel.put_batch(batch), []
  call = seq2seq.Objective.__call__
  monkeypatch.setattr(seq2seq.Objective, "__call__", lambda self, *a: traces.append(0) or call(self, *a))
  jitted.lower(state, batch, key)
  assert (once := len(traces)) and count_macs(jitted, state, batch, key) and len(traces) == once
  whole = count_macs(run.make_step(), run.abstract_state(), run.abstract_batch(), run.abstract_key())
  assert sorted(macs.values()) == [macs[length] for length in sorted(macs)] and macs[96] == whole


def test_evaluation_counts_every_example_once_on_eight_devices(tmp_path):
  """50 examples do not fill batches of 16: padding must not count, whatever the batch."""
  run = experiment.Experiment(load())
  variables = run.start().params
  results = []
  for size in (16, 48):
    run.config.evals.test.batch_size = size
    run.config.evals.test.objective = dict(name="mae", mean=(0.286,), std=(0.353,))
    results.append(evaluations.make(run)["test"].function({"params": variables}))
  assert results[0]["examples"] == results[1]["examples"] == 50
  np.testing.assert_allclose(results[0]["loss"], results[1]["loss"], rtol=1e-5)


@pytest.mark.slow
def test_a_run_is_opened_evaluated_and_loaded_by_other_code(opened, whole):
  run, variables, step = opened
  logged = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
  last = [line["test/loss"] for line in logged if "test/loss" in line][-1]
  assert step == STEPS
  np.testing.assert_allclose(evaluations.make(run)["test"].function(variables)["loss"], last, rtol=1e-4)
  model, loaded = zoo.load(whole, average=True)
  assert model.config.width == 16
  jax.tree.map(np.testing.assert_array_equal, loaded["params"], jax.device_get(variables["params"]))


def test_a_run_is_evaluated_and_shown_by_the_command(whole, tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert cli.main(["eval", "--json", "result.json", str(whole), "test"]) == 0
  logged = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
  last = [line["test/loss"] for line in logged if "test/loss" in line][-1]
  found = json.loads((tmp_path / "result.json").read_text())
  assert found["step"] == STEPS and found["test"]["loss"] == pytest.approx(last, rel=1e-4)
  assert found["test"]["examples"] == 50 and f"{found['test']['loss']:.5g}" in capsys.readouterr().out
  Image.fromarray(np.arange(40 * 40, dtype=np.uint8).reshape(40, 40)).save("mine.png")
  assert cli.main(["plot", str(whole), "--out", "drawn", "--image", "mine.png", "reconstructions"]) == 0
  assert capsys.readouterr().out.split() == ["drawn/reconstructions_mine.png"]
  assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["reconstructions_mine.png"]
  assert cli.main(["plot", str(whole), "--image", "mine.png", "loss_curve"]) == 2
  assert_names(capsys.readouterr().err, "--image", "reconstructions")
  assert cli.main(["eval", str(whole), "tset"]) == 2
  assert_names(capsys.readouterr().err, "'tset'", "'test'")
