"""Runs that cannot start, and runs that fail."""

import os
import shutil
import subprocess
import sys
from collections import namedtuple

import jax.numpy as jnp
import pytest
from support import TINY_CONFIG, assert_names, raises

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
  with raises(ValueError, tmp_path / "file" / "run"):
    loop.train(load(), tmp_path / "file" / "run")


def test_a_full_disk_is_reported_before_the_first_step(tmp_path, monkeypatch):
  usage = namedtuple("usage", "total used free")
  monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
  with raises(ValueError, "0.00 GB", 3):
    loop.train(load("checkpoint.max_to_keep=2"), tmp_path)
  assert not (tmp_path / "metrics.jsonl").exists()


def test_a_nonfinite_loss_stops_the_run_and_suggests_a_remedy(tmp_path):
  with raises(loop.NonFiniteError, "step 2", "learning_rate"):
    loop.train(load("optimizer.learning_rate=1e30", "optimizer.warmup=0", "steps=20"), tmp_path)


class NoGradient(mae.Objective):
  """A loss that is a number, with a gradient that is not: the root of 0."""

  def __call__(self, model, variables, batch, key=None):
    loss = super().__call__(model, variables, batch, key)
    return loss._replace(total=loss.total + jnp.sqrt(0 * variables["params"]["encoder"]["cls"].sum()))


def test_a_failed_evaluation_loses_no_training(tmp_path, capfd):
  with raises(ValueError, "'test/acuracy'"):
    loop.train(
      load("steps=2", "checkpoint.best_metric=test/acuracy", "checkpoint.every_steps=0", "evals.test.every_steps=0"),
      tmp_path,
    )
  assert [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()] == ["2"]
  assert loop.train(load("steps=2", "evals.test.every_steps=0"), tmp_path, override_config=True)["test"]["loss"] > 0


def test_a_nonfinite_gradient_leaves_no_checkpoint(tmp_path, monkeypatch):
  """What it makes of the parameters must not be saved as good."""
  monkeypatch.setattr(objectives, "make", lambda name, **kwargs: NoGradient())
  with raises(loop.NonFiniteError, "step 1"):
    loop.train(load("steps=3", "checkpoint.every_steps=1", "evals={}"), tmp_path)
  assert not any(p.name.isdigit() for p in (tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize(
  ("overrides", "named"),
  [
    (["checkpoint.best_metric=tset/loss"], ("'tset'", "'test'")),
    (["optimizer.learning_rate=fast"], ("learning_rate", "'fast'", "str", "float")),
    (["objective.name=maee"], ("objective", "'maee'", "'mae'")),
    (["objective.mask_ration=0.5"], ("'mask_ration'", "'mask_ratio'")),
    (["data.name=image_classificatio"], ("data", "'image_classificatio'", "'image_classification'")),
    (["evals.test.name=los"], ("evaluation", "'los'", "'loss'")),
    (["optimizer.name=adam"], ("optimizer", "'adam'", "'adamw'")),
    (["optimizer.beta1=0.9"], ("'beta1'", "b1")),
    (["optimizer.freeze=('encoderr/.*',)"], ("optimizer.freeze", "'encoderr")),
    (["model.name=mae/nano5"], ("'mae/nano5'", "'mae/nano4'")),
    (["model.num_channels=3"], ("3 channels", 1)),
    (["epochs=2"], ("epochs is 2", "epochs=0 steps=1000")),
    (["steps=-3"], ("steps is -3",)),
    (["batch_size=0"], ("batch_size is 0", 1)),
    (["log_every_steps=0"], ("log_every_steps is 0", 1)),
    (["batch_size=20"], (20, "8 devices", "2.50", 16, 24)),
    (["batch_size=24", "grad_accum_steps=2"], (24, "8 devices", "2 accumulation steps")),
    (["parallel.tensor=3"], ("'tensor': 3", 8)),
    (["parallel.name=pjit"], ("parallel", "'pjit'", "'jit'")),
    (["data.image_size=30"], ("30 x 30", "4 x 4", 32)),
    (["init.path=nowhere.safetensors"], ("nowhere.safetensors",)),
  ],
)
def test_misconfigured_runs_are_rejected(tmp_path, overrides, named):
  with raises(ValueError, *named):
    loop.train(load(*overrides), tmp_path)


@pytest.mark.parametrize(
  ("overrides", "named"),
  [
    (["epochs=2"], ("epochs is 2",)),
    (["evals.test.name=los"], ("'los'", "'loss'")),
    (["checkpoint.best_metric=tset/loss"], ("'tset'", "'test'")),
    (["evals={}", "checkpoint.best_metric=test/loss"], ("'test'", "checkpoint.best_metric=''")),
    (["init.path=nowhere.safetensors"], ("nowhere.safetensors",)),
    (["init.path=nowhere/vit_fashion_mnist"], ("nowhere/vit_fashion_mnist", "`zoo train vit_fashion_mnist`")),
  ],
)
def test_a_wrong_config_leaves_no_directory(tmp_path, overrides, named):
  with raises(ValueError, *named):
    loop.train(load(*overrides), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_labels_outside_the_classes(tmp_path):
  overrides = ["model={'name': 'vit/nano4', 'num_classes': 7}", "objective={'name': 'image_classification'}"]
  with raises(ValueError, "7 classes", 9, "num_classes=10"):
    loop.train(load(*overrides), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("every", "limit", "named"), [(0, 8, ("write",)), (10, 16, ("checkpoint", "written"))])
def test_a_disk_that_fills_up_is_the_last_message(environment, tmp_path, every, limit, named):
  """No file may be larger than so many KiB, which a full disk is like."""
  command = f"{sys.executable} -m train train {TINY_CONFIG} checkpoint.every_steps={every} --workdir {tmp_path}"
  shell = ["bash", "-c", f"ulimit -f {limit}; exec {command}"]
  done = subprocess.run(shell, env=environment, capture_output=True, text=True, timeout=300)
  assert done.returncode == 2
  assert_names(done.stderr.split("zoo: ")[-1], *named)
