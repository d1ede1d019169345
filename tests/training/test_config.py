"""Configs: every shipped one makes a program; invalid configs are reported."""

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import TINY_CONFIG, assert_names, raises

import configs
import zoo
from train import cli, experiment, objectives, optim, sharding
from train import config as configuration
from zoo.layers.position_embeddings import KINDS, resample
from zoo.layers.stack import unstack_params
from zoo.partitioning import flatten
from zoo.weights import load_into

pytestmark = pytest.mark.usefixtures("one_device")


def docstring(name):
  return ast.get_docstring(ast.parse((Path(configs.__path__[0]) / f"{name.partition(':')[0]}.py").read_text()))


@pytest.mark.parametrize("name", configuration.shipped())
def test_every_shipped_config_makes_a_program(name):
  config = configuration.load(name)
  made = experiment.Experiment(config, parallel=sharding.parallel(), load_data=False)
  assert flatten(made.abstract_state().params)
  doc, (file, _, argument) = docstring(name), name.partition(":")
  assert f"zoo train {file}" in doc and (f"`{argument}`" in doc or f"{file}:{argument} " in doc or not argument)
  if re.search(r"imagenet|wmt14|glue|squad|conll|^bert_(base|phase)", name):  # these numbers are not ours
    assert "Recipe, not run by us." in doc and re.search("[Pp]ublished", doc)


def test_bare_name_and_path_are_the_same():
  path = Path(configs.__path__[0]) / "quickstart.py"
  assert configuration.load("quickstart") == configuration.load(str(path))


def test_an_argument_selects_one_of_several(tmp_path):
  made = {task: configuration.load(f"glue:{task}") for task in ("mnli", "stsb")}
  assert {task: (c.data.dataset, c.model.num_classes) for task, c in made.items()} == {
    "mnli": ("glue/mnli", 3),
    "stsb": ("glue/stsb", 1),
  }
  path = Path(configs.__path__[0]) / "glue.py"
  assert configuration.load(f"{path}:mnli", ["seed=3"]).seed == 3
  assert configuration.load(f"{path}:mnli") == made["mnli"]
  assert [configuration.run_name(source) for source in ("glue:mnli", f"{path}:mnli", "quickstart")] == [
    "glue_mnli",
    "glue_mnli",
    "quickstart",
  ]
  # Without VARIANTS any argument is passed on.
  (tmp_path / "mine.py").write_text(
    "from train.config import defaults\n"
    "def get_config(x='1'):\n  config = defaults()\n  config.seed = int(x)\n  return config\n"
  )
  assert [configuration.load(f"{tmp_path / 'mine.py'}{end}").seed for end in ("", ":5")] == [1, 5]


@pytest.mark.parametrize(
  ("source", "names"),
  [
    ("glue:mnil", ["'mnil'", "'mnli'", "wnli"]),
    ("glue", ["argument", "glue:cola", "wnli"]),
    ("gleu:mnli", ["'gleu:mnli'", "'glue:mnli'"]),
    ("quickstart:b16", ["quickstart.py", "get_config"]),
    ("_bert", ["'_bert'"]),
  ],
)
def test_invalid_config_arguments(source, names):
  with pytest.raises(ValueError) as error:
    configuration.load(source)
  assert all(name in str(error.value) for name in names)


@pytest.mark.parametrize(
  ("override", "named"),
  [
    ("modl.width=3", ("'modl'", "'model'")),
    ("batch_sise=3", ("'batch_sise'", "'batch_size'")),
    ("evals.prob.l2=1.0", ("'evals.prob'", "'probe'")),
    ("parallel.fsdq=2", ("'parallel.fsdq'", "'fsdp'")),
    ("batch_size=many", ("config.batch_size", "'many'", "str", "int")),
    ("log_every_steps=2.5", ("config.log_every_steps", 2.5, "float", "int")),
    ("batch_size", ("'batch_size'", "key.path=value")),
  ],
)
def test_invalid_overrides(override, named):
  with raises(ValueError, *named):
    configuration.load("quickstart", [override])


def test_overrides_are_literals_or_strings():
  config = configuration.load("quickstart", ["epochs=3", "model.width=64", "model.pool=gap", "plots=()"])
  assert configuration.load("quickstart", ["data.image_size=(28, 32)"]).data.image_size == (28, 32)
  assert configuration.load("vit_s16_imagenet", ["optimizer.warmup=0.05"]).optimizer.warmup == 0.05
  assert (config.epochs, config.model.width, config.model.pool, config.plots) == (3.0, 64, "gap", ())


def test_unknown_config_names_the_nearest():
  with raises(ValueError, "'quickstrat'", "'quickstart'"):
    configuration.load("quickstrat")


def test_a_config_survives_its_json():
  config = configuration.load("mae_finetune_imagenet:b16")
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
  assert cli.main(["configs", "--json", str(tmp_path / "configs.json")]) == 0
  assert list(json.loads((tmp_path / "configs.json").read_text())) == configuration.shipped()
  printed = capsys.readouterr().out
  assert all(word in printed for word in ("quickstart", "glue:ARGUMENT", "mnli", "sst2"))
  assert cli.main(["train", "quickstart", "--workdir", str(tmp_path), "optimizer.learning_rat=1.0"]) == 2
  error = capsys.readouterr().err
  assert_names(error, "'learning_rat'", "'learning_rate'")
  assert "Traceback" not in error
  assert cli.main(["models", "vitt*"]) == 2
  assert "'vitt*'" in capsys.readouterr().err
  assert cli.main(["models", "segm"]) == 2
  printed = capsys.readouterr().err
  assert_names(printed, "'segm'", "segmenter/fpn")
  assert "vit/" not in printed
  assert cli.main(["doctor", "--json", str(tmp_path / "doctor.json")]) == 0
  assert json.loads((tmp_path / "doctor.json").read_text())["backend"] == "cpu"


def drawn(model, seed):
  """Parameters that are random numbers: without compiling anything."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16), jnp.int32))
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda a: rng.normal(size=a.shape).astype(a.dtype), shapes)


RUNS = {configuration.run_name(name): name for name in configuration.shipped()}


@pytest.mark.parametrize("name", ["bert_phase2", "bert_base_24h", "bert_base_roberta"])
def test_continued_pretraining_loads_the_whole_encoder(name, tmp_path):
  """By the commands of docstrings, on models of the same structure and a small size."""
  shrink = [f"model.{k}={v}" for k, v in dict(width=16, depth=2, mlp_dim=24, num_heads=2).items()]
  commands = re.findall(r"zoo train .*", docstring(name).replace("\\\n", " "))
  later = [words[2:] for words in map(shlex.split, commands) if any(word.startswith("init.path") for word in words)]
  assert later
  for target, *overrides in later:
    config = configuration.load(target, [*shrink, *overrides])
    source = configuration.load(RUNS[Path(config.init.path).name], shrink)
    before, model = (zoo.create(c.model.name, **configuration.kwargs(c.model)) for c in (source, config))
    pretrained, fresh = drawn(before, 0), drawn(model, 1)
    config.init.path = str(tmp_path / "bert.safetensors")
    zoo.save(config.init.path, source.model.name, configuration.kwargs(source.model), pretrained)
    encoder = load_into(model, fresh, **configuration.kwargs(config.init))["params"]["encoder"]
    for path, leaf in flatten(pretrained["params"]["encoder"]).items():
      np.testing.assert_array_equal(leaf, flatten(encoder)[path], err_msg=path)


@pytest.mark.parametrize("variant", ["base", "large", "large_lamb"])
def test_second_phases_continue_from_the_first(variant):
  first, second = (configuration.load(f"bert_phase{i}:{variant}") for i in (1, 2))
  assert second.init.path == f"runs/bert_phase1_{variant}"
  assert first.model == second.model and (first.data.length, second.data.length) == (128, 512)
  if variant != "large_lamb":  # which warms up again
    _, before = optim.make({}, first.steps, **first.optimizer)
    _, after = optim.make({}, second.steps, **second.optimizer)
    assert (first.steps, second.steps) == (900_000, 100_000)
    assert before(10_000) == pytest.approx(1e-4) and after(100_000) == 0
    # A straight line from there to the last step.
    for rate in (before(first.steps), after(1000)):
      assert rate == pytest.approx(1e-4 * 100 / 990)


MASKED = [n for n in configuration.shipped() if n.startswith(("patch_prediction", "simmim")) and "finetune" not in n]


@pytest.mark.parametrize("name", MASKED)
def test_documented_commands_load_encoders_of_masked_image_modelling(name, tmp_path):
  """A Swin's tables of relative position bias are resampled where its windows are others."""
  fields = dict(width=16, depth=2, mlp_dim=24, num_heads=2)
  if name.startswith("simmim"):
    fields = dict(width=8, depths=(2, 2), num_heads=(1, 2))
  shrink = [f"model.{k}={v}" for k, v in fields.items()]
  *_, command = re.findall(r"zoo train .*", docstring(name).replace("\\\n", " "))
  target, *overrides = shlex.split(command.partition("--workdir")[0])[2:]
  config, source = configuration.load(target, [*shrink, *overrides]), configuration.load(name, shrink)
  assert name.startswith(config.init.path.removeprefix("runs/")) and config.init.ignore and config.init.reinit
  before, model = (zoo.create(c.model.name, **configuration.kwargs(c.model)) for c in (source, config))
  rngs, rng = {"params": jax.random.key(0), "mask": jax.random.key(1)}, np.random.default_rng(0)
  pretrained, fresh = (
    jax.tree.map(
      lambda a: rng.normal(size=a.shape).astype(a.dtype),
      jax.eval_shape(m.init, rngs, *zoo.family(c.model.name).inputs(m.config, 1)),
    )
    for m, c in ((before, source), (model, config))
  )
  config.init.path = str(tmp_path / "pretrained.safetensors")
  zoo.save(config.init.path, source.model.name, configuration.kwargs(source.model), pretrained)
  loaded = load_into(model, fresh, **configuration.kwargs(config.init))
  encoder, wanted = (flatten(unstack_params(v["params"]["encoder"])) for v in (loaded, pretrained))
  assert encoder.keys() == wanted.keys() - {"mask", "stage_0/mask"}
  for path, leaf in encoder.items():
    if leaf.shape == wanted[path].shape:
      np.testing.assert_array_equal(leaf, wanted[path], err_msg=path)
    else:
      assert path.endswith("relative_position_bias/table")
      np.testing.assert_allclose(leaf, resample(wanted[path], leaf.shape[:2], "bicubic"), rtol=1e-5, atol=1e-6)


def test_the_ablation_of_positions_changes_them_alone():
  made = [configuration.load(name).to_dict() for name in configuration.shipped() if "_position_" in name]
  kinds = [config["model"].pop("position_embedding") for config in made]
  assert sorted(kinds) == sorted(KINDS) and all(config == made[0] for config in made)


def test_a_swin_of_large_windows_starts_from_one_of_small_ones(tmp_path):
  """The shipped recipe, on models of the same structure and a small size."""
  shrink = ["model.width=8", "model.depths=(2, 2)", "model.num_heads=(1, 2)"]
  before, config = configuration.load("swin_imagenet:b", shrink), configuration.load("swin_b_384_finetune", shrink)
  assert config.init.path == "runs/swin_b"
  source, model = (zoo.create(c.model.name, **configuration.kwargs(c.model)) for c in (before, config))
  assert (source.config.window_size, model.config.window_size) == (7, 12)
  rng = np.random.default_rng(0)
  image = jnp.zeros((1, 96, 96, 3))
  shapes = [jax.eval_shape(m.init, {"params": jax.random.key(0)}, image) for m in (source, model)]
  pretrained, fresh = (jax.tree.map(lambda a: rng.normal(size=a.shape).astype(a.dtype), s) for s in shapes)
  config.init.path = str(tmp_path / "swin.safetensors")
  zoo.save(config.init.path, before.model.name, configuration.kwargs(before.model), pretrained)
  loaded = load_into(model, fresh, **configuration.kwargs(config.init))
  old, new = flatten(unstack_params(pretrained["params"])), flatten(unstack_params(loaded["params"]))
  assert old.keys() == new.keys()
  for path, leaf in new.items():
    wanted = resample(old[path], (23, 23), "bicubic") if path.endswith("relative_position_bias/table") else old[path]
    np.testing.assert_allclose(leaf, wanted, rtol=1e-5, atol=1e-6, err_msg=path)


MAES = [n for n in configuration.shipped() if ("finetune" in n or "linear" in n) and n.startswith("mae")]


@pytest.mark.parametrize("name", MAES)
def test_recipes_that_start_from_an_mae_load_its_whole_encoder(name, tmp_path):
  """The shipped names of what to ignore and to reinitialise, on models of the same structure and a small size."""
  small = dict(width=16, depth=2, mlp_dim=24, num_heads=2, patch_size=8, image_size=(16, 16))
  shrink = [f"model.{k}={v}" for k, v in small.items()]
  config = configuration.load(name, [*shrink, f"init.path={tmp_path / 'mae.safetensors'}", "data.image_size=16"])
  model = zoo.create(config.model.name, **configuration.kwargs(config.model))
  small |= dict(
    num_channels=model.config.num_channels, decoder_width=16, decoder_depth=1, decoder_mlp_dim=24, decoder_num_heads=2
  )
  mae = zoo.create("mae/test", **small)
  image = jnp.zeros((1, 16, 16, model.config.num_channels))
  rngs = {"params": jax.random.key(0), "mask": jax.random.key(1)}
  pretrained = jax.jit(mae.init)(rngs, image)
  zoo.save(tmp_path / "mae.safetensors", "mae/test", small, pretrained)
  fresh = jax.jit(model.init)({"params": jax.random.key(2)}, image)
  variables = load_into(model, fresh, **configuration.kwargs(config.init))
  encoder = unstack_params(variables["params"]["encoder"])
  for path, leaf in flatten(encoder).items():
    np.testing.assert_array_equal(leaf, flatten(pretrained["params"]["encoder"])[path], err_msg=path)


# ---- Faults that are found before the first step ----


@pytest.mark.parametrize(
  ("overrides", "named"),
  [
    (["model=vit/nano4"], ("config.model", "'vit/nano4'", "model.name=vit/nano4")),
    (["evals.test=3"], ("config.evals.test", 3, "evals.test.name=3")),
    (["evals={'t': {'every': 3}}"], ("config.evals.t", "{'every': 3}", "name")),
    (["parallel.tensor=0"], ("{'tensor': 0}", 1)),
    (["plots=('lss_curve',)"], ("'lss_curve'", "'loss_curve'")),
    (["plots=('alignment',)"], ("alignment", "'image_classification'")),
    (["objective={'name': 'image_classification'}", "model={'name': 'vit/nano4'}"], ("vit/nano4", "reconstruct")),
    (["ema_decay=2.0"], ("ema_decay", 2.0, 0, 1)),
    (["optimizer.learning_rate=-1.0"], ("learning_rate", -1.0, 0)),
    (["optimizer.warmup=1.5"], ("warmup", 1.5, 1)),
    (["checkpoint.every_steps=-1"], ("config.checkpoint.every_steps", -1, 0)),
    (["evals.test.split=tset"], ("config.evals.test", "'tset'", "'test'", "evals={}")),
    (["checkpoint.best_metric=test/acuracy"], ("'test/acuracy'", "test/loss")),
    (["--json", "nowhere/at/all.json"], ("nowhere/at/all.json",)),
  ],
)
def test_an_invalid_run_is_rejected_in_one_message(tmp_path, capsys, overrides, named):
  shorter = ["steps=1", "evals.test.every_steps=1", "plots=('reconstructions',)"]
  # The last override of a key counts; what replaces all evaluations comes before what changes one of them.
  given = [o for o in shorter if not any(o.partition("=")[0].startswith(x.partition("=")[0]) for x in overrides)]
  assert cli.main(["train", TINY_CONFIG, *given, *overrides, "--workdir", str(tmp_path / "run")]) == 2
  error = capsys.readouterr().err
  assert_names(error, *named)
  assert "Traceback" not in error


@pytest.mark.parametrize(
  ("name", "options", "named"),
  [
    ("image_classification", dict(label_smoothing=2.0), ("label_smoothing", 2.0, 0, 1)),
    ("image_classification", dict(mixup=-1.0), ("mixup", -1.0, 0)),
    ("seq2seq", dict(scheduled_sampling=1.0), ("scheduled_sampling", 1.0)),
    ("seq2seq", dict(guided_attention=-1.0), ("guided_attention", -1.0, 0)),
    ("nat", dict(label_smoothing=-0.1), ("label_smoothing", -0.1)),
  ],
)
def test_shares_and_weights_out_of_range(name, options, named):
  with raises(ValueError, "config.objective", *named):
    objectives.make(name, **options)


def test_a_misspelt_key_in_a_file_names_the_nearest(tmp_path):
  (tmp_path / "mine.py").write_text(
    "from train.config import defaults\ndef get_config():\n  c = defaults()\n  c.batch_sise = 3\n  return c\n"
  )
  with raises(ValueError, "mine.py", "'batch_sise'", "'batch_size'"):
    configuration.load(str(tmp_path / "mine.py"))


def test_arguments_are_parsed_before_jax_is_imported():
  """Which device JAX looks for is decided by then: a libtpu that is installed for `zoo plan` alone must not be used."""
  script = (
    "import sys; from train import cli; cli._logging = lambda: sys.exit('jax' in sys.modules); cli.main(sys.argv[1:])"
  )
  for words in (["models", "vit/test"], ["train", "sort", "model={'name': 'x y'}", "steps=1"]):
    assert subprocess.run([sys.executable, "-c", script, *words], timeout=120).returncode == 0
