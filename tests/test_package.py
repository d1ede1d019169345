"""What a package promises before it is used: its version, the packages that it needs, and a quick import."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

import zoo
from train import cli, doctor

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Packages whose modules are imported inside functions alone, where a message says how to install them; or which a
# declared package always brings.
OPTIONAL = {"zoo": {"torch", "orbax"}, "train": {"apache_beam", "pysword", "absl", "array_record"}, "configs": set()}
MODULES = {
  "orbax-checkpoint": "orbax",
  "tensorflow-datasets": "tensorflow_datasets",
  "opencv-python-headless": "cv2",
  "pillow": "PIL",
}


def declared(requirements):
  """The module of each requirement."""
  names = [re.split(r"[^\w.-]", line)[0] for line in requirements]
  return {MODULES.get(name, name) for name in names}


def imported(package):
  """Top-level modules that a package imports: of each its name, and whether outside of every function."""
  for file in (ROOT / package).rglob("*.py"):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    outside = {id(node) for node in ast.iter_child_nodes(tree)}
    for node in ast.walk(tree):
      if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom) and not node.level:
        names = [node.module]
      else:
        continue
      for name in names:
        root = name.partition(".")[0]
        if root not in sys.stdlib_module_names and root not in ("zoo", "train", "configs"):
          yield root, id(node) in outside


def test_the_version_is_defined_once():
  assert zoo.__version__ == metadata.version("transformer-zoo")


@pytest.mark.parametrize("package", ["zoo", "train", "configs"])
def test_what_is_imported_is_declared(package):
  needed = declared(PROJECT["dependencies"])
  if package != "zoo":
    needed |= declared(PROJECT["optional-dependencies"]["train"])
  found = set(imported(package))
  assert {name for name, _ in found} <= needed | OPTIONAL[package]
  assert {name for name, outside in found if outside} <= needed | (
    OPTIONAL[package] - {"torch", "orbax", "apache_beam"}
  )


def public_functions(node, public=True):
  """The public functions and methods under a node of a syntax tree, with `__call__`, and whether each is a method."""
  for child in ast.iter_child_nodes(node):
    if isinstance(child, ast.ClassDef):
      yield from ((function, True) for function, _ in public_functions(child, public and child.name[0] != "_"))
    elif isinstance(child, ast.FunctionDef) and public and (child.name[0] != "_" or child.name == "__call__"):
      yield child, False


@pytest.mark.parametrize("package", ["zoo"])
def test_public_parameters_are_annotated(package):
  missing = []
  for file in (ROOT / package).rglob("*.py"):
    if file.name in ("cli.py", "linear.py") or "datasets" in file.parts:  # options by name, and what TFDS calls
      continue
    for function, method in public_functions(ast.parse(file.read_text(encoding="utf-8"))):
      arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
      names = [a.arg for a in arguments if a.annotation is None and not (method and a.arg in ("self", "cls"))]
      missing += [f"{file.relative_to(ROOT)}:{function.lineno} {name}" for name in names]
  assert missing == []


def test_importing_the_zoo_imports_nothing_for_training():
  code = "import sys, zoo; print(*sys.modules)"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
  loaded = {name.partition(".")[0] for name in done.stdout.split()}
  heavy = {"optax", "orbax", "tensorflow_datasets", "grain", "torch", "matplotlib", "scipy", "cv2", "PIL", "tokenizers"}
  assert {"jax", "flax", "zoo"} <= loaded and not loaded & (heavy | {"train", "configs", "tensorflow"})


def without(*missing):
  """The installed distributions, as if some were missing."""
  requires = ["jax>=0.7.2", 'optax>=0.2.6; extra == "train"', "grain; extra == 'train'", 'pytest>=9; extra == "test"']

  def find(name):
    if name in missing:
      raise metadata.PackageNotFoundError(name)
    return SimpleNamespace(version="1", requires=requires)

  return find


def test_missing_packages_of_the_extra_are_named():
  assert doctor.missing_packages(without()) == []
  assert doctor.missing_packages(without("grain", "pytest")) == ["grain"]
  assert doctor.missing_packages(without("transformer-zoo", "grain")) == []


def test_the_command_names_the_extra_that_is_missing(monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "train.experiment", None)  # the import fails
  monkeypatch.delattr("train.experiment", raising=False)
  monkeypatch.setattr(doctor, "missing_packages", lambda: ["optax", "grain"])
  assert cli.main(["eval", "runs/none"]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert "optax, grain" in line and "transformer-zoo[train]" in line
  monkeypatch.setattr(doctor, "missing_packages", list)  # all there: a bug of our own, which is not hidden
  with pytest.raises(ModuleNotFoundError, match=r"train\.experiment"):
    cli.main(["eval", "runs/none"])


def test_a_run_without_orbax(tmp_path, monkeypatch):
  (tmp_path / "checkpoints/1/state").mkdir(parents=True)
  monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
  with pytest.raises(zoo.weights.WeightsError, match=r"transformer-zoo\[train\]"):
    zoo.load(tmp_path)
