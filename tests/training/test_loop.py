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
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from support import TINY_CONFIG

import zoo
from train import cli, experiment, loop, objectives, rng
from train import config as configuration
from train.evaluation import registry as evaluations
from train.objectives import mae, seq2seq
from train.plan.macs import count_macs
from train.plots import registry
from zoo.weights.sources import read

STEPS = 60


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
  """One device, and compiled programs shared by the processes of this module."""
  cache = tmp_path_factory.mktemp("cache")
  return os.environ | dict(
    JAX_NUM_CPU_DEVICES="1", JAX_COMPILATION_CACHE_DIR=str(cache), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0"
  )


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
  assert re.search(rf"resuming at step [1-3]0 of {STEPS}", output)
  stopped = max(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
  assert stopped >= 37 and f"Stopped by SIGTERM after step {stopped}" in output
  command = next(line.split() for line in output.splitlines() if line.strip().startswith("zoo train"))
  assert command[2] == TINY_CONFIG and command[-2:] == ["--workdir", str(tmp_path)]
  assert f"resuming at step {stopped} of {STEPS}" in run(environment, tmp_path, "log_every_steps=1")
  assert_same_run(tmp_path, whole)


@pytest.mark.slow
def test_damaged_checkpoints_are_passed_over(environment, whole, tmp_path):
  """One that ends too early, one whose description does, and what a process leaves that is killed while it writes."""
  shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
  half_written, description, arrays = (tmp_path / "checkpoints" / str(STEPS - 10 * i) for i in range(3))
  half_written.rename(half_written.with_name(f"{STEPS}.orbax-checkpoint-tmp"))
  os.truncate(description / "meta" / "metadata", 20)
  for path in (arrays / "state").rglob("d/*"):  # where Orbax keeps arrays, some of them twice
    os.truncate(path, path.stat().st_size // 2)
  output = run(environment, tmp_path)
  assert f"resuming at step {STEPS - 30} of {STEPS}" in output
  for damaged in (description, arrays):
    assert f"the checkpoint of step {damaged.name} is damaged" in output
    assert (tmp_path / "damaged" / damaged.name).is_dir()
  assert_same_run(tmp_path, whole)


@pytest.mark.slow
def test_all_checkpoints_damaged_is_an_error_and_changes_nothing(environment, whole, tmp_path):
  shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
  for path in (tmp_path / "checkpoints").glob("*/state/manifest.ocdbt"):
    os.truncate(path, 3)
  before = sorted((tmp_path / "checkpoints").rglob("*"))
  assert "none of the checkpoints" in run(environment, tmp_path, code=2)
  assert sorted((tmp_path / "checkpoints").rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [("jit", 4, 2), ("pmap", -1, 1)])
def test_goes_on_with_another_number_of_devices(environment, whole, tmp_path, parallel):
  name, data, fsdp = parallel
  shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
  shutil.rmtree(tmp_path / "checkpoints" / str(STEPS))
  eight = environment | dict(JAX_NUM_CPU_DEVICES="8")
  output = run(eight, tmp_path, f"parallel.name={name}", f"parallel.data={data}", f"parallel.fsdp={fsdp}")
  assert f"resuming at step {STEPS - 10}" in output
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
  assert ["checkpoint" in output for output in outputs] == [True, False]  # one tells for both
  np.testing.assert_allclose(losses(tmp_path), losses(whole), rtol=1e-4)


def load(*overrides):
  return configuration.load(TINY_CONFIG, overrides)


def test_another_config_is_an_error_that_lists_the_differences(whole):
  with pytest.raises(loop.ConfigMismatchError, match=r"optimizer.b2: 0.95 -> 0.99\n.*seed: 0 -> 1") as error:
    loop.train(load("optimizer.b2=0.99", "seed=1"), whole)
  assert "--override-config" in str(error.value)


@pytest.mark.parametrize(
  ("override", "message"),
  [
    ("model.mlp_dim=32", r"params/encoder/block_00/mlp/up/kernel: \(16, 24\) .*\(16, 32\)"),
    ("optimizer={'name': 'sgd', 'learning_rate': 0.1}", r"opt_state/\S*mu/\S*: \(.*\).* none "),
  ],
)
def test_a_checkpoint_of_another_state_is_told_and_left(whole, override, message):
  """It is no damage, and nothing is moved away for it."""
  before = sorted((whole / "checkpoints").rglob("*"))
  with pytest.raises(ValueError, match=rf"step {STEPS} .* another model or optimizer") as error:
    loop.train(load(override), whole, override_config=True)
  assert re.search(message, str(error.value)), error.value
  assert sorted((whole / "checkpoints").rglob("*")) == before


def test_no_resume_refuses_a_work_directory_with_a_run(whole):
  with pytest.raises(ValueError, match="holds a run"):
    loop.train(load(), whole, resume=False)


def test_unwritable_work_directory(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(ValueError, match="cannot write to the work directory"):
    loop.train(load(), tmp_path / "file" / "run")


def test_full_disk_is_told_before_the_first_step(tmp_path, monkeypatch):
  usage = namedtuple("usage", "total used free")
  monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
  with pytest.raises(ValueError, match=r"0.00 GB free, 3 checkpoints of this run need"):
    loop.train(load("checkpoint.max_to_keep=2"), tmp_path)
  assert not (tmp_path / "metrics.jsonl").exists()


def test_loss_that_is_no_number_stops_the_run_and_says_what_to_try(tmp_path):
  with pytest.raises(loop.NonFiniteError, match=r"step 2 is not finite.*no checkpoint.*learning_rate"):
    loop.train(load("optimizer.learning_rate=1e30", "optimizer.warmup=0", "steps=20"), tmp_path)


class NoGradient(mae.Objective):
  """A loss that is a number, with a gradient that is not: the root of 0."""

  def __call__(self, model, variables, batch, key=None):
    loss = super().__call__(model, variables, batch, key)
    return loss._replace(total=loss.total + jnp.sqrt(0 * variables["params"]["encoder"]["cls"].sum()))


def test_an_evaluation_that_fails_costs_nothing_that_was_learned(tmp_path, capfd):
  with pytest.raises(ValueError, match="no metric 'test/acuracy'"):
    loop.train(
      load("steps=2", "checkpoint.best_metric=test/acuracy", "checkpoint.every_steps=0", "evals.test.every_steps=0"),
      tmp_path,
    )
  assert [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()] == ["2"]
  assert loop.train(load("steps=2", "evals.test.every_steps=0"), tmp_path, override_config=True)["test"]["loss"] > 0


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


def test_a_gradient_that_is_no_number_leaves_no_checkpoint(tmp_path, monkeypatch):
  """What it makes of the parameters must not be saved as good."""
  monkeypatch.setattr(objectives, "make", lambda name, **kwargs: NoGradient())
  with pytest.raises(loop.NonFiniteError, match="step 1 is not finite"):
    loop.train(load("steps=3", "checkpoint.every_steps=1", "evals={}"), tmp_path)
  assert not any(p.name.isdigit() for p in (tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    (["checkpoint.best_metric=tset/loss"], "no evaluation 'tset'; did you mean 'test'"),
    (["optimizer.learning_rate=fast"], r"learning_rate is 'fast' \(str\); wanted float"),
    (["objective.name=maee"], "unknown objective 'maee'; did you mean 'mae'"),
    (["objective.mask_ration=0.5"], "no 'mask_ration'; did you mean 'mask_ratio'"),
    (["data.name=image_classificatio"], "unknown data 'image_classificatio'; did you mean 'image_classification'"),
    (["evals.test.name=los"], "unknown evaluation 'los'; did you mean 'loss'"),
    (["optimizer.name=adam"], "unknown optimizer 'adam'; did you mean 'adamw'"),
    (["optimizer.beta1=0.9"], "no 'beta1'.* There are: .*b1"),
    (["optimizer.freeze=('encoderr/.*',)"], "no parameter matches 'encoderr"),
    (["model.name=mae/nano5"], "unknown model 'mae/nano5'; did you mean 'mae/nano4'"),
    (["model.num_channels=3"], "the model takes 3 channels, the data has 1"),
    (["epochs=2"], "epochs is 2.* such as epochs=0 steps=1000"),
    (["steps=-3"], "steps is -3"),
    (["batch_size=0"], "batch_size is 0 .*at least 1"),
    (["log_every_steps=0"], "log_every_steps is 0; wanted at least 1"),
    (["batch_size=20"], r"global batch of 20 .* 8 devices x 1 .* 2.50 examples a device .* 16 and 24"),
    (["batch_size=24", "grad_accum_steps=2"], "24 .* 8 devices x 2 accumulation steps"),
    (["parallel.tensor=3"], "mesh of .*tensor"),
    (["parallel.name=pjit"], "unknown parallel 'pjit'; did you mean 'jit'"),
    (["data.image_size=30"], "30 x 30 pixels cannot be cut into 4 x 4 patches.*nearest is 32"),
    (["init.path=nowhere.safetensors"], "no such file"),
  ],
)
def test_misconfigured_runs_say_what_is_wrong(tmp_path, overrides, message):
  with pytest.raises(ValueError, match=message):
    loop.train(load(*overrides), tmp_path)


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    (["epochs=2"], "epochs is 2"),
    (["evals.test.name=los"], "unknown evaluation 'los'; did you mean 'loss'"),
    (["checkpoint.best_metric=tset/loss"], "no evaluation 'tset'; did you mean 'test'"),
    (
      ["evals={}", "checkpoint.best_metric=test/loss"],
      "no evaluation 'test'.*checkpoint.best_metric=''",
    ),
    (["init.path=nowhere.safetensors"], "nowhere.safetensors: no such file"),
    (["init.path=nowhere/vit_fashion_mnist"], "no such file or directory; `zoo train vit_fashion_mnist` makes it"),
  ],
)
def test_a_wrong_config_leaves_no_directory(tmp_path, overrides, message):
  with pytest.raises(ValueError, match=message):
    loop.train(load(*overrides), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_labels_outside_the_classes(tmp_path):
  overrides = ["model={'name': 'vit/nano4', 'num_classes': 7}", "objective={'name': 'image_classification'}"]
  with pytest.raises(ValueError, match=r"7 classes, the data has labels up to 9.*num_classes=10"):
    loop.train(load(*overrides), tmp_path)


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
@pytest.mark.parametrize(
  ("every", "limit", "what"), [(0, 8, "cannot write"), (10, 16, "a checkpoint could not be written")]
)
def test_a_disk_that_fills_up_is_told_last(environment, tmp_path, every, limit, what):
  """No file may be larger than so many KiB, which a full disk is like."""
  command = f"{sys.executable} -m train train {TINY_CONFIG} checkpoint.every_steps={every} --workdir {tmp_path}"
  shell = ["bash", "-c", f"ulimit -f {limit}; exec {command}"]
  done = subprocess.run(shell, env=environment, capture_output=True, text=True, timeout=300)
  assert done.returncode == 2
  assert what in done.stderr.split("zoo: ")[-1]


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
  assert "--image is for reconstructions" in capsys.readouterr().err
  assert cli.main(["eval", str(whole), "tset"]) == 2
  assert "no evaluation 'tset'; did you mean 'test'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["loss_curve", "position_similarity", *registry.OF_IMAGES])
def test_every_plot_of_a_run(opened, whole, tmp_path, name):
  run, variables, _ = opened
  registry.draw(name, run, variables, whole, tmp_path / "picture.png")
  with Image.open(tmp_path / "picture.png") as picture:
    assert picture.format == "PNG" and min(picture.size) > 300
    assert len(picture.convert("L").getcolors()) > 20  # not blank


def test_plots_that_do_not_fit_the_run(opened, whole, tmp_path):
  run, variables, _ = opened
  with pytest.raises(ValueError, match="unknown plot 'loss_curves'; did you mean 'loss_curve'"):
    registry.draw("loss_curves", run, variables, whole, tmp_path / "x.png")
  for name in ("segmentations", "kernel_widths", "alignment", "attention_heads"):
    with pytest.raises(ValueError, match=f"{name}.*'image_classification'"):
      registry.draw(name, run, variables, whole, tmp_path / "x.png")
  vit = experiment.Experiment(
    load("model={'name': 'vit/nano4', 'depth': 1}", "objective={'name': 'image_classification'}", "evals={}")
  )
  with pytest.raises(ValueError, match="vit/nano4 does not reconstruct"):
    registry.draw("reconstructions", vit, {}, whole, tmp_path / "x.png")


def test_ones_own_image_is_cropped_to_the_size_of_the_data(opened, tmp_path):
  Image.fromarray(np.arange(40 * 90, dtype=np.uint8).reshape(40, 90)).save(tmp_path / "wide.png")
  assert registry.read_image(tmp_path / "wide.png", opened[0].data).shape == (1, 28, 28, 1)
  for name, message in (("none.png", "cannot read the image"), ("text.png", "is no image")):
    (tmp_path / "text.png").write_text("words")
    with pytest.raises(ValueError, match=message):
      registry.read_image(tmp_path / name, opened[0].data)
