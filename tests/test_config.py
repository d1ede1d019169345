"""Configs: every shipped one makes a program; a wrong word gets a clear answer."""

import ast
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import configs
import zoo
from train import cli, program
from train import config as configuration
from zoo.axes import flatten
from zoo.stack import unstack_params
from zoo.weights import load_into


@pytest.mark.parametrize("name", configuration.shipped())
def test_every_shipped_config_makes_a_program(name):
  config = configuration.load(name)
  made = program.Program(config, config.steps or 10**6)
  assert flatten(made.abstract_state().params)
  doc = ast.get_docstring(ast.parse((Path(configs.__path__[0]) / f"{name}.py").read_text()))
  assert f"zoo train {name}" in doc
  if "imagenet" in name or "wmt14" in name:  # nobody is led to believe that we have these numbers
    assert "Recipe, not run by us." in doc and "Published" in doc


def test_bare_name_and_path_are_the_same():
  path = Path(configs.__path__[0]) / "quickstart.py"
  assert configuration.load("quickstart") == configuration.load(str(path))


@pytest.mark.parametrize(
  ("override", "message"),
  [
    ("modl.width=3", "no 'modl'; did you mean 'model'"),
    ("batch_sise=3", "no 'batch_sise'; did you mean 'batch_size'"),
    ("evals.prob.l2=1.0", "no 'evals.prob'; did you mean 'probe'"),
    ("parallel.fsdq=2", "no 'parallel.fsdq'; did you mean 'fsdp'"),
    ("batch_size=many", r"config.batch_size is 'many' \(str\); wanted int"),
    ("log_every=2.5", r"config.log_every is 2.5 \(float\); wanted int"),
    ("batch_size", "no override; wanted key.path=value"),
  ],
)
def test_overrides_that_cannot_be(override, message):
  with pytest.raises(ValueError, match=message):
    configuration.load("quickstart", [override])


def test_overrides_are_literals_or_strings():
  config = configuration.load("quickstart", ["epochs=3", "model.width=64", "model.pool=gap", "pictures=()"])
  assert configuration.load("quickstart", ["data.image_size=(28, 32)"]).data.image_size == (28, 32)
  assert configuration.load("vit_s16_imagenet", ["optimizer.warmup=0.05"]).optimizer.warmup == 0.05
  assert (config.epochs, config.model.width, config.model.pool, config.pictures) == (3.0, 64, "gap", ())


def test_unknown_config_names_the_nearest():
  with pytest.raises(ValueError, match=r"no config 'quickstrat'.*did you mean 'quickstart'"):
    configuration.load("quickstrat")


def test_a_config_survives_its_json():
  config = configuration.load("mae_b16_finetune_imagenet")
  saved = json.loads(json.dumps(config.to_dict()))
  again = json.loads(json.dumps(configuration.restore(saved).to_dict()))
  assert configuration.differences(saved, again) == []
  saved["optimizer"]["b1"] = 0.5
  assert configuration.differences(saved, again) == ["optimizer.b1: 0.5 -> '(not set)'"]


def test_the_command_reports(tmp_path, capsys):
  """Overrides may stand anywhere; a report is JSON too; a mistake is one line and exit code 2."""
  assert cli.main(["models", "vit/b16", "--json", str(tmp_path / "models.json")]) == 0
  assert json.loads((tmp_path / "models.json").read_text())[0]["parameters"] == 86_567_656
  assert "86,567,656" in capsys.readouterr().out
  assert cli.main(["configs"]) == 0 and "quickstart" in capsys.readouterr().out
  assert cli.main(["train", "quickstart", "--workdir", str(tmp_path), "optimizer.learning_rat=1.0"]) == 2
  error = capsys.readouterr().err
  assert "no 'learning_rat'; did you mean 'learning_rate'" in error and "Traceback" not in error
  assert cli.main(["models", "vitt*"]) == 2
  assert "no model matches 'vitt*'" in capsys.readouterr().err
  assert cli.main(["doctor", "--json", str(tmp_path / "doctor.json")]) == 0
  assert json.loads((tmp_path / "doctor.json").read_text())["backend"] == "cpu"


@pytest.mark.parametrize("name", [n for n in configuration.shipped() if "finetune" in n or "linear" in n])
def test_recipes_that_start_from_an_mae_find_all_of_its_encoder(name, tmp_path):
  """The shipped names of what to leave out and to keep, on models of the same structure and a small size."""
  small = dict(width=16, depth=2, mlp_dim=24, heads=2, patch=8, image_size=(16, 16))
  shrink = [f"model.{k}={v}" for k, v in small.items()]
  config = configuration.load(name, [*shrink, f"init.path={tmp_path / 'mae.safetensors'}", "data.image_size=16"])
  model = zoo.create(config.model.name, **configuration.kwargs(config.model))
  small |= dict(channels=model.config.channels, decoder_width=16, decoder_depth=1, decoder_mlp_dim=24, decoder_heads=2)
  mae = zoo.create("mae/test", **small)
  image = jnp.zeros((1, 16, 16, model.config.channels))
  rngs = {"params": jax.random.key(0), "mask": jax.random.key(1)}
  pretrained = jax.jit(mae.init)(rngs, image)
  zoo.save(tmp_path / "mae.safetensors", "mae/test", small, pretrained)
  fresh = jax.jit(model.init)({"params": jax.random.key(2)}, image)
  variables = load_into(model, fresh, **configuration.kwargs(config.init))
  encoder = unstack_params(variables["params"]["encoder"])
  for path, leaf in flatten(encoder).items():
    np.testing.assert_array_equal(leaf, flatten(pretrained["params"]["encoder"])[path], err_msg=path)
