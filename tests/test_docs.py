"""README and the guides: commands and Python blocks run with small sizes, or are checked down to each argument."""

import functools
import re
import shlex
import tomllib
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn

import zoo
from train import cli, data, experiment, objectives
from train import config as configuration
from zoo.weights import tables

pytestmark = pytest.mark.usefixtures("one_device")

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
SHORT = ["epochs=0", "steps=2", "batch_size=8", "evals={}", "model.depth=1", "model.width=16"]
# What is run, in the order of the pages, with what is added to make it small. The rest is only checked.
RUN = {
  ("train", "quickstart"): [*SHORT, "model.decoder_depth=1", "checkpoint.every_steps=1", "plots=()"],
  ("average", "runs/quickstart"): [],
  ("plot", "runs/quickstart"): [],
  ("configs",): [],
}


def blocks(page, language):
  """The fenced blocks of a page."""
  return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)


def commands(page):
  """Each command of a page as a list of words: of the blocks, and `zoo ...` in the text if it is complete."""
  lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
  lines += [text for text in re.findall(r"`(zoo (?:train|plan|eval) [^`]+)`", page.read_text()) if "..." not in text]
  parts = [part for line in lines for part in line.split("&&")]
  found = [shlex.split(part, comments=True) for part in parts]
  return [words for words in found if words and not any(word.isupper() and len(word) > 3 for word in words[:3])]


# docs/extending.md has a test of its own, which also installs the files that it shows.
ALL = [(page.relative_to(ROOT), words) for page in PAGES if page.name != "extending.md" for words in commands(page)]


@pytest.fixture(scope="module")
def parsed():
  """From the words of a `zoo` command to its verb and options, as the command line reads them."""

  def record(function):
    @functools.wraps(function)
    def recorded(**options):
      calls.append(options)

    return recorded

  calls, verbs = [], {verb: record(function) for verb, function in cli.VERBS.items()}

  def parse(words):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(cli, "VERBS", verbs)
      assert cli.main(words) == 0, words
    return calls.pop()

  return parse


def check_config(source, overrides):
  """All that is known of an experiment without its data."""
  config = configuration.load(source, overrides)
  zoo.create(config.model.name, **configuration.kwargs(config.model))
  objectives.make(config.objective.name, **configuration.kwargs(config.objective))
  data.kind(config.data.name)


@pytest.mark.parametrize("page", sorted({page for page, _ in ALL}), ids=str)
def test_zoo_commands_are_valid(page, parsed):
  for words in (words[1:] for found, words in ALL if found == page and words[0] == "zoo"):
    options = parsed(words)
    if words[0] in ("train", "plan") and options["config"]:
      check_config(options["config"], options["overrides"])
    if words[0] == "plan":
      assert re.fullmatch(r"v\w+:\d+x\d+(x\d+)?", options["tpu"])


def test_other_commands_name_what_is_there():
  for page, (program, *words) in ALL:
    if program in ("pip", "uv"):
      for extra in re.findall(r"\[([\w,]+)\]", " ".join(words)):
        assert set(extra.split(",")) <= set(EXTRAS), (page, words)
    elif program in ("python", "pytest", ".ci/run"):
      files = [word.lstrip("@") for word in [program, *words] if "/" in word]
      assert all((ROOT / file.partition("::")[0]).exists() for file in files), (page, words)
    else:
      assert program in ("zoo", "ruff", "basedpyright", "mkdocs", "mkdir", "git", "pre-commit", "."), (page, program)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
  """A folder in which the commands of `RUN` have been run, in their order."""
  folder = tmp_path_factory.mktemp("docs")
  done = set()
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    for _, (program, *words) in sorted(ALL, key=lambda entry: entry[1][1:2] != ["train"]):
      for key, more in RUN.items():
        if program == "zoo" and tuple(words[: len(key)]) == key and tuple(words) not in done and len(words) < 12:
          done.add(tuple(words))
          if key[0] == "train" and len(words) > len(key):
            continue
          assert cli.main([*words, *more]) == 0, words
    assert {key for key in RUN if not any(words[: len(key)] == key for words in done)} == set()
    yield folder


def test_commands_leave_what_they_promise(here):
  for file in ("runs/quickstart/reconstructions.png", "runs/quickstart/attention_maps.png", "average.safetensors"):
    assert (here / file).stat().st_size > 0, file


def abstract(function):
  """A function that returns zeros of the right shapes, in no time."""

  def called(*args, **kwargs):
    shapes = jax.eval_shape(lambda: function(*args, **kwargs))
    return jax.tree.map(lambda shape: np.zeros(shape.shape, shape.dtype), shapes)

  return called


@pytest.fixture
def small(monkeypatch):
  """Nothing is computed, and published files and a run that are not here are models of zeros."""
  load = zoo.load

  def load_or_make(path, name=None, *, layout=None, **overrides):
    if Path(path).exists():
      return load(path, name, layout=layout, **overrides)
    name = name or "vit/test"
    model = zoo.create(name, **overrides)
    assert layout is None or layout in tables.of(name).tables(model.config)
    inputs = [np.zeros(shape.shape, shape.dtype) for shape in zoo.family(name).inputs(model.config, 1)]
    return model, model.init(jax.random.key(0), *inputs)

  def open_run(source, overrides=()):
    model = dict(name="segmenter/linear", backbone="vit/test", num_classes=11, image_size=(20, 12))
    config = configuration.load(Path(source).name, [f"model={model}"])
    run = experiment.Experiment(config, load_data=False)
    return run, run.init_variables(), 10

  monkeypatch.setattr(zoo, "load", load_or_make)
  monkeypatch.setattr(experiment, "open_run", open_run)
  monkeypatch.setattr(nn.Module, "init", abstract(nn.Module.init))
  monkeypatch.setattr(nn.Module, "apply", abstract(nn.Module.apply))
  monkeypatch.setattr(zoo.decoding, "beam_search", abstract(zoo.decoding.beam_search))


@pytest.mark.parametrize(
  "page", [page for page in PAGES if page.name != "extending.md" and blocks(page, "python")], ids=lambda page: page.name
)
def test_python_blocks_run(page, here, small, monkeypatch):
  monkeypatch.chdir(here)
  names = {"images": np.zeros((2, 20, 12, 3), np.uint8)}
  for block in blocks(page, "python"):
    exec(compile(block, str(page), "exec"), names)


def test_links_lead_to_files():
  for page in PAGES:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
      assert (page.parent / target).exists(), (page, target)


def test_readme_is_short():
  assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200
  assert (ROOT / "docs/reconstructions.png").stat().st_size < 200_000


def test_pages_are_in_the_navigation():
  navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
  assert all(f" {page.name}\n" in navigation for page in PAGES if page.parent.name == "docs")
