"""The examples of docs/extending.md are extracted from the page, written to the paths they name, and used."""

import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from support import TINY_CONFIG, raises

import train.datasets
import train.objectives
import zoo
from train import cli, loop
from train import config as configuration
from train.data import image_classification, prepare
from train.data.transforms import decode
from zoo import partitioning, registry

pytestmark = pytest.mark.usefixtures("one_device")

PAGE = Path(__file__).parents[1].joinpath("docs/extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M)
EXAMPLES = {block.partition("\n")[0].removeprefix("# "): block for block in BLOCKS}
# Each "zoo ..." of the page as a list of words, without the name of the command.
COMMANDS = [shlex.split(line.replace("\\\n", " "))[1:] for line in re.findall(r"^(zoo (?:.*\\\n)*.*)", PAGE, re.M)]
TINY = dict(name="deepset/nano4", patch_size=14, width=32, depth=2, mlp_dim=48)
PIXELS = dict(mean=(0.286,), std=(0.353,))


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory):
  """The examples' files in folders beside those of the packages, as if they lay in them."""
  folder = tmp_path_factory.mktemp("contributed")
  with pytest.MonkeyPatch.context() as patch:
    for package in (zoo.models, train.objectives, train.datasets):
      path = folder.joinpath(*package.__name__.split("."))
      path.mkdir(parents=True)
      patch.setattr(package, "__path__", [*package.__path__, str(path)])
    for path, text in EXAMPLES.items():
      folder.joinpath(path).write_text(text)
    importlib.invalidate_caches()
    registry._families.cache_clear()
    yield folder
  for path in EXAMPLES:
    package, _, name = path.removesuffix(".py").replace("/", ".").rpartition(".")
    sys.modules.pop(f"{package}.{name}", None)
    vars(sys.modules[package]).pop(name, None)
  registry._families.cache_clear()


@pytest.fixture(scope="module")
def image_files(tmp_path_factory):
  """A folder with FOLDER, one folder a class of real images in it, and with data/, where they are prepared."""
  here = tmp_path_factory.mktemp("plots")
  source = image_classification.make_source("fashion_mnist_small", "test[:120]")
  for i, (encoded, label) in enumerate(source):
    file = here / "FOLDER" / source.class_names[label].replace("/", " or ") / f"{i:03}.{('png', 'JPG')[i % 2]}"
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(decode(encoded, 1)[..., 0]).save(file)
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(here)
    (prepare,) = [command for command in COMMANDS if command[0] == "prepare"]
    assert cli.main(prepare) == 0
  return here


def tiny_config(steps, model, objective, **changes):
  """A config of seconds on the bundled images."""
  config = configuration.load(TINY_CONFIG)
  config.model, config.objective, config.steps, config.batch_size = model, objective | PIXELS, steps, 64
  config.data.train_split, config.ema_decay = "train", 0.0
  config.optimizer.learning_rate = 5e-3
  for path, value in changes.items():
    configuration.apply(config, f"{path.replace('__', '.')}={value!r}")
  return config


def losses(workdir):
  entries = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
  return [entry["train/loss"] for entry in entries if "train/loss" in entry]


def test_an_example_is_a_file_of_less_than_70_lines():
  assert [path.rpartition("/")[0] for path in EXAMPLES] == ["zoo/models", "train/objectives", "train/datasets"]
  for path, text in EXAMPLES.items():
    assert len(text.splitlines()) < 70, path
    assert max(map(len, text.splitlines())) <= 120, path


def test_the_model_is_one_of_the_zoo():
  assert {"deepset/nano4", "deepset/test"} <= set(zoo.list_models("deepset/*"))
  for name in zoo.list_models("deepset/*"):
    model = zoo.create(name)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *zoo.family(name).inputs(model.config, 2))
    paths = partitioning.flatten(
      partitioning.logical_axes(shapes["params"], zoo.family(name).LOGICAL_AXES)
    )  # each fits one rule
    assert not [path for path in paths if re.search(r"[A-Z]", path)]  # each part has a name of its own
  with raises(ValueError, "'widht'", "'width'"):
    zoo.create("deepset/test", widht=3)


def test_the_model_keeps_the_promises_of_all():
  model = zoo.create("deepset/test")
  (shape,) = zoo.family("deepset/test").inputs(model.config, 3)
  x = jax.random.normal(jax.random.key(1), shape.shape)
  variables = jax.tree.map(lambda p: p + 0.1, model.init(jax.random.key(0), x))  # so that no zero hides a gradient

  def mean_square(variables):
    logits, aux = model.apply(variables, x)
    return jnp.square(logits).mean(), (logits, aux)

  grads, (logits, aux) = jax.jit(jax.grad(mean_square, has_aux=True))(variables)
  assert logits.shape == (3, 7) and np.isfinite(logits).all()
  assert set(aux) == {"block_00", "block_01", "block_02", "features"}
  assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))
  np.testing.assert_allclose(model.apply(variables, x)[0], logits, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(model.apply(variables, x[::-1])[0], logits[::-1], rtol=1e-4, atol=1e-5)
  half = zoo.create("deepset/test", dtype="bfloat16")
  assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(jax.eval_shape(half.init, jax.random.key(0), x)))
  output, aux = jax.eval_shape(half.apply, variables, x)
  assert output.dtype == jnp.float32 and aux["block_00"].dtype == jnp.bfloat16


def test_the_model_is_invariant_to_permutations_of_patches():
  """The order of the patches does not matter; what is in them does."""
  model = zoo.create("deepset/test")
  x = jax.random.normal(jax.random.key(1), (2, 20, 12, 3))
  variables = jax.tree.map(lambda p: p + 0.1, model.init(jax.random.key(0), x))
  logits, _ = model.apply(variables, x)
  swapped = jnp.concatenate([x[:, 8:], x[:, :8]], 1)  # two rows of patches from the top to the bottom
  np.testing.assert_allclose(model.apply(variables, swapped)[0], logits, rtol=1e-4, atol=1e-5)
  assert np.abs(model.apply(variables, jnp.roll(x, 1, 1))[0] - logits).max() > 1e-4


def test_weights_are_saved_and_loaded(tmp_path):
  model = zoo.create("deepset/test")
  variables = model.init(jax.random.key(0), jnp.zeros((1, 20, 12, 3)))
  zoo.save(tmp_path / "deepset.safetensors", "deepset/test", {}, variables)
  again, loaded = zoo.load(tmp_path / "deepset.safetensors")
  assert again.config == model.config
  jax.tree.map(np.testing.assert_array_equal, loaded, variables)


def test_the_objective_turns_each_image_by_its_id():
  from train.objectives.rotate import Objective

  class Model:
    """Records its inputs."""

    def apply(self, variables, image_BYXC, rngs):
      self.image = image_BYXC
      return jnp.zeros((len(image_BYXC), 4)), {}

  image = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 1)).astype(np.uint8)
  batch = dict(image=image, valid=np.arange(12) < 9, id=np.arange(12))
  model, key = Model(), jax.random.key(3)
  loss = Objective()(model, {}, batch, key)
  np.testing.assert_allclose([loss.total, loss.weight], [9 * np.log(4), 9], rtol=1e-6)  # padding does not count
  normal = (image / 255 - 0.5) / 0.5
  pairs = zip(normal, model.image, strict=True)
  turns = [[np.allclose(np.rot90(x, k), y, atol=1e-6) for k in range(4)] for x, y in pairs]
  assert np.sum(turns) == 12 and np.any(turns, 0).all()  # each by one turn, and every turn comes
  assert loss.metrics["accuracy"] == np.sum(turns[:9], 0)[0]  # of equal logits the first is the largest
  whole = model.image
  Objective()(model, {}, {k: v[6:] for k, v in batch.items()}, key)
  np.testing.assert_array_equal(model.image, whole[6:])  # half a batch is turned as it is in the whole
  with raises(ValueError, "square", (20, 12)):
    Objective()(model, {}, dict(batch, image=np.zeros((12, 20, 12, 1))), key)


def test_model_and_objective_train_together(tmp_path):
  config = tiny_config(60, TINY | dict(num_classes=4), dict(name="rotate"), evals__test__every_steps=0)
  config.data.eval_split = "test[:500]"
  result = loop.train(config, tmp_path)
  curve = losses(tmp_path)
  assert np.mean(curve[-10:]) < 0.95 * np.mean(curve[:5]), curve
  assert result["test"]["accuracy"] > 0.33  # by chance: 0.25
  _, variables = zoo.load(tmp_path)
  assert variables["params"]["head"]["kernel"].shape == (32, 4)


def test_the_objective_requires_its_number_of_classes(tmp_path):
  with raises(ValueError, "3 classes", "num_classes=4"):
    loop.train(tiny_config(1, TINY | dict(num_classes=3), dict(name="rotate")), tmp_path)


def test_the_data_set_holds_what_the_folder_holds(image_files):
  source = image_classification.make_source("image_folder", "train", str(image_files / "data"))
  files = sorted(image_files.glob("FOLDER/*/*"))
  assert len(source) == len(files) == 120 and source.num_classes == 10
  assert source.class_names == sorted({file.parent.name for file in files})
  wanted = sorted((file.read_bytes(), file.parent.name) for file in files)
  assert sorted((encoded, source.class_names[label]) for encoded, label in source) == wanted
  assert decode(source[0][0], 3).shape == (28, 28, 3)


def test_a_folder_without_images_is_an_error(tmp_path):
  with raises(ValueError, "image_folder", "CLASS/NAME", ".jpg"):
    prepare.prepare("image_folder", str(tmp_path / "data"), str(tmp_path))
  with raises(ValueError, "--source FOLDER"):
    prepare.prepare("image_folder", str(tmp_path / "data"))


def test_the_data_set_trains(image_files, tmp_path):
  config = tiny_config(2, TINY, dict(name="image_classification"), evals__test__every_steps=0)
  config.data.update(
    dataset="image_folder", data_dir=str(image_files / "data"), channels=1, train_split="train[:90%]",
    eval_split="train[90%:]",
  )  # fmt: skip
  result = loop.train(config, tmp_path)
  assert np.isfinite(losses(tmp_path)).all() and result["test"]["examples"] == 12


def test_the_commands_of_the_page_are_valid(image_files, monkeypatch, capsys):
  monkeypatch.chdir(image_files)
  assert [command[0] for command in COMMANDS] == ["models", "train", "train", "prepare", "train"]
  assert cli.main(COMMANDS[0]) == 0 and "deepset/nano4" in capsys.readouterr().out
  for command in (command for command in COMMANDS if command[0] == "train"):
    overrides = [word for word in command[2:] if "=" in word]
    if "data.dataset=image_folder" in overrides:
      overrides.append("batch_size=64")  # there are few images here
    loop.prepare(configuration.load(command[1], overrides), Path("run"))  # all checks before the first step
