"""Runs that cannot start, and runs that fail."""

import os
import shutil
import subprocess
import sys
from collections import namedtuple

import jax.numpy as jnp
import pytest
from support import TINY_CONFIG

from train import config as configuration
from train import loop, objectives
from train.objectives import mae


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
  """One device, and compiled programs shared by the processes of this module."""
  cache = tmp_path_factory.mktemp("cache")
  return os.environ | dict(
    JAX_NUM_CPU_DEVICES="1", JAX_COMPILATION_CACHE_DIR=str(cache), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0"
  )


def load(*overrides):
  return configuration.load(TINY_CONFIG, overrides)


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
