"""What the code takes from JAX: public names, but for a list with reasons, and no flags of XLA."""

import ast
import json
import re
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Modules that JAX guarantees nothing about (its "API compatibility"), with the reason to use them all the same.
NOT_PUBLIC = re.compile(r"jax\.(_(?!_)\w+|extend|interpreters|core|lib)\b|jaxlib\b|flax\._(?!_)\w+|flax\.core\.scope\b")
ALLOWED = {
  ("train/plan/macs.py", "jax.extend.core"): "the types of a traced program, which has no other public name",
  ("train/plan/kernels.py", "jax.extend.core"): "the same",
  **{(f"train/plan/{name}.py", "jax.extend.core"): "the same" for name in ("compiler", "largest")},
  (
    "train/plan/macs.py",
    "jax.interpreters.partial_eval",
  ): "dce_jaxpr, the only way to leave out what no output needs",
}


def sources() -> dict[str, str]:
  """Every Python file by its path, and the code cells of each notebook."""
  files = {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in ROOT.glob("*/**/*.py")}
  for file in ROOT.glob("notebooks/*.ipynb"):
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    files[str(file.relative_to(ROOT))] = re.sub(r"^[%!].*$", "", "\n".join(code), flags=re.M)
  return {
    path: text for path, text in files.items() if path.startswith(("zoo", "train", "configs", "tests", "notebooks"))
  }


def used(text: str) -> set[str]:
  """Dotted names of modules and attributes that a program imports or reads."""
  found = set()
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and not node.level:
      found |= {f"{node.module}.{alias.name}" for alias in node.names}
    elif isinstance(node, ast.Attribute):
      found.add(ast.unparse(node))
  return found


@pytest.mark.parametrize(
  ("line", "name"),
  [
    ("import jax._src.core", "jax._src.core"),
    ("from jax._src import core", "jax._src.core"),
    ("from jax.extend import core as c", "jax.extend.core"),
    ("import jax\nx = jax._src.config", "jax._src.config"),
    ("from jax import core", "jax.core"),
    ("from jax.interpreters import mlir", "jax.interpreters.mlir"),
    ("import jaxlib", "jaxlib"),
  ],
)
def test_what_is_not_public_is_found(line, name):
  assert name in used(line) and NOT_PUBLIC.match(name)


def test_names_of_jax_that_are_not_public_are_listed_with_a_reason():
  found = {(path, name) for path, text in sources().items() for name in used(text) if NOT_PUBLIC.match(name)}
  assert len(sources()) > 200 and found == set(ALLOWED)


def test_no_flag_of_xla_is_set():
  """A flag that a version of XLA does not know ends the process; some go with each release."""
  flags = {path: re.findall(r"--xla_\w+", text) for path, text in sources().items() if path != "tests/test_imports.py"}
  flags |= {name: re.findall(r"--xla_\w+", (ROOT / name).read_text()) for name in ("README.md", ".ci/run")}
  assert not {path: found for path, found in flags.items() if found}


def test_meshes_name_the_type_of_their_axes():
  """The default depends on the version of JAX: Auto in 0.7, Explicit from 0.9 on."""
  calls = [
    (path, node)
    for path, text in sources().items()
    for node in ast.walk(ast.parse(text))
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "jax.make_mesh"
  ]
  assert calls
  assert [path for path, call in calls if "axis_types" not in {word.arg for word in call.keywords}] == []


def test_what_our_code_deprecates_is_an_error():
  """By pyproject.toml: here in a test, and for the packages; a library's is none."""
  with pytest.raises(DeprecationWarning):
    warnings.warn("old", DeprecationWarning, stacklevel=1)
  for module in ("zoo.layers", "train", "configs.quickstart"):
    with pytest.raises(DeprecationWarning):
      warnings.warn_explicit("old", DeprecationWarning, "file.py", 1, module=module)
  for module in ("zoology", "jax._src.core", "trainer.loop"):
    warnings.warn_explicit("old", DeprecationWarning, "file.py", 1, module=module)


def test_the_core_tests_exist():
  """pytest ends with an error at a name that does not, in every environment but that of Python 3.13."""
  for line in (ROOT / "tests" / "core.txt").read_text().splitlines():
    file, _, function = line.partition("::")
    assert f"\ndef {function}(" in (ROOT / file).read_text() or not function, line


# Who imports whom in zoo/: a module imports only from rooms before its own, or from its own room.
ROOMS = (
  ("zoo.errors", "zoo.shapes", "zoo.compat"),
  ("zoo.partitioning", "zoo.config"),
  ("zoo.kernels", "zoo.layers"),
  ("zoo.models",),
  ("zoo.registry", "zoo.decoding"),
  ("zoo.weights",),
  ("zoo",),
)


def imports_of_zoo() -> dict[str, set[str]]:
  """Every module of zoo/ and those of zoo/ that it imports, also within functions."""
  files = {path: text for path, text in sources().items() if path.startswith("zoo/")}
  names = {path: path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in files}
  graph = {}
  for path, text in files.items():
    found = set()
    for node in ast.walk(ast.parse(text)):
      if isinstance(node, ast.Import):
        found |= {alias.name for alias in node.names}
      elif isinstance(node, ast.ImportFrom):
        inner = {f"{node.module}.{alias.name}" for alias in node.names}
        found |= inner & set(names.values()) or {node.module}
    graph[names[path]] = {name for name in found if name in names.values()}
  return graph


def room(module: str) -> int:
  return next(i for i, names in enumerate(ROOMS) if any(f"{module}.".startswith(f"{name}.") for name in names))


def test_zoo_has_no_import_circles():
  graph = imports_of_zoo()
  assert len(graph) > 40 and all(graph["zoo"])
  against = [(a, b) for a, imported in graph.items() for b in imported if room(b) > room(a)]
  assert not against
  while leaves := {module for module, imported in graph.items() if not imported & graph.keys()}:
    graph = {module: imported for module, imported in graph.items() if module not in leaves}
  assert not graph  # what is left imports each other
