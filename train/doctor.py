"""The accelerators of this machine and whether JAX uses them, incompatible versions, the speed of a step.

JAX and `packaging` are imported only by the functions that need them: with an incompatible jaxlib the import of JAX
fails, and without the extra [train] there is no `packaging`.
"""

import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from packaging.requirements import Requirement

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")
OPTIONAL = ("libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "torch", "transformers")
# The device files of each kind of accelerator: TPUs up to v4 and from v5e on; NVIDIA's driver, and that of WSL2.
DEVICE_FILES = {"TPU": ("dev/accel[0-9]*", "dev/vfio/[0-9]*"), "GPU": ("dev/nvidia[0-9]*", "dev/dxg")}
NVIDIA, DISPLAY = "0x10de", "0x03"  # a PCI vendor and a PCI class
# The oldest NVIDIA driver that CUDA 13 runs with (CUDA 13.0 release notes, table 3).
CUDA13_DRIVER = 580
CUDA = ("cuda12", "cuda13")  # extras of JAX


@dataclass(frozen=True)
class Problem:
  """What is wrong, and the command or step that fixes it."""

  problem: str
  remedy: str


def accelerators(root: Path = Path("/")) -> set[str]:
  """The kinds of accelerator that this process can open: any of "TPU" and "GPU"."""
  return {kind for kind, patterns in DEVICE_FILES.items() if any(any(root.glob(p)) for p in patterns)}


def nvidia_driver(root: Path = Path("/")) -> int | None:
  """The major version of the loaded NVIDIA driver; None without one."""
  file = root / "proc/driver/nvidia/version"
  found = re.search(r"Kernel Module\D*(\d+)", file.read_text()) if file.exists() else None
  return found and int(found[1])


def versions() -> dict[str, str]:
  """The installed version of each package that matters here, or "not installed"."""
  return {name: _version(name) or "not installed" for name in (*PACKAGES, *OPTIONAL)}


def _version(name: str, find: Callable[[str], metadata.Distribution] = metadata.distribution) -> str | None:
  try:
    return find(name).version
  except metadata.PackageNotFoundError:
    return None


def missing_packages(find: Callable[[str], metadata.Distribution] = metadata.distribution) -> list[str]:
  """The packages of the extra [train] that are not installed; none where the zoo itself is not installed.

  Args:
    find: a distribution by its name, or PackageNotFoundError.
  """
  requires = (find("transformer-zoo").requires or ()) if _version("transformer-zoo", find) else ()
  names = [re.split(r"[^\w.-]", line)[0] for line in requires if re.search(r"""extra == ["']train["']""", line)]
  return [name for name in names if not _version(name, find)]


def version_problems(find: Callable[[str], metadata.Distribution] = metadata.distribution) -> list[Problem]:
  """Installed versions that the zoo, JAX or one of JAX's plugins does not work with, by their own metadata.

  Args:
    find: a distribution by its name, or PackageNotFoundError.
  """
  from packaging.requirements import Requirement

  jax, problems = _version("jax", find), {}
  # (distribution, extra, what to install instead; None: the requirement itself)
  sources = [("transformer-zoo", "", None), ("transformer-zoo", "train", None), ("jax", "", f"jax=={jax}")]
  sources += [("jax", extra, f"jax[{extra}]=={jax}") for extra in ("tpu", *CUDA)]
  sources += [(f"jax-{cuda}-plugin", "", f"jax[{cuda}]=={jax}") for cuda in CUDA]
  for source, extra, remedy in sources:
    if not (wanted_by := _version(source, find)):
      continue
    for requirement in map(Requirement, find(source).requires or ()):
      have = _version(requirement.name, find)
      if have is None and extra:
        continue  # the package of an extra is optional
      if _applies(requirement, extra) and (have is None or not requirement.specifier.contains(have, True)):
        text = f"{requirement.name}{requirement.specifier}"
        what = f"{requirement.name} is {have or 'not installed'}; {source} {wanted_by} needs {text}"
        problems.setdefault(requirement.name, Problem(what, f"pip install '{remedy or text}'"))
  if all(_version(f"jax-{cuda}-plugin", find) for cuda in CUDA):
    problems["both"] = Problem(
      "jax-cuda12-plugin and jax-cuda13-plugin are both installed; JAX can load one of them",
      "pip uninstall -y jax-cuda12-plugin jax-cuda12-pjrt",
    )
  return [*problems.values()]


def _applies(requirement: "Requirement", extra: str) -> bool:
  """Whether a requirement belongs to exactly this extra, "" for none, on this machine."""
  if requirement.marker is None:
    return not extra
  return requirement.marker.evaluate({"extra": extra}) and (not extra or not requirement.marker.evaluate({"extra": ""}))


def device_problems(backend: str, failure: Callable[[str], str], root: Path = Path("/")) -> list[Problem]:
  """Accelerators that are present but unused, with the cause.

  Args:
    backend: what JAX runs on: "cpu", "gpu" or "tpu".
    failure: from a platform, "tpu" or "cuda", to the error that JAX raises for it; "" if it raises none.
    root: where /dev, /proc and /sys are.
  """
  jax, kinds, problems = _version("jax"), accelerators(root), []
  driver = nvidia_driver(root)
  if "GPU" not in kinds and any(_is_nvidia_gpu(device) for device in root.glob("sys/bus/pci/devices/*")):
    problems.append(
      Problem(
        "an NVIDIA GPU is on the PCI bus, but it has no device file", "install NVIDIA's driver, and see nvidia-smi"
      )
    )
  if backend != "cpu":
    return problems
  for kind in sorted(kinds):
    name = kind.lower()
    extra = "tpu" if kind == "TPU" else "cuda12" if driver and driver < CUDA13_DRIVER else "cuda13"
    plugins = ("libtpu",) if kind == "TPU" else tuple(f"jax-{cuda}-plugin" for cuda in CUDA)
    allowed = os.environ.get("JAX_PLATFORMS", "")
    if allowed and not {name, "cuda" if kind == "GPU" else name} & {*allowed.split(",")}:
      cause, remedy = f"JAX_PLATFORMS is {allowed!r}", "unset JAX_PLATFORMS"
    elif not any(map(_version, plugins)):
      cause, remedy = f"{' or '.join(plugins)} is not installed", f"pip install 'jax[{extra}]=={jax}'"
    elif extra == "cuda12" and not _version("jax-cuda12-plugin"):
      cause = f"driver {driver} is older than {CUDA13_DRIVER}, which CUDA 13 needs"
      remedy = f"pip uninstall -y jax-cuda13-plugin jax-cuda13-pjrt && pip install 'jax[cuda12]=={jax}'"
    else:
      cause = failure("tpu" if kind == "TPU" else "cuda") or "its plugin was not loaded"
      files = " ".join(f"/{pattern}" for pattern in DEVICE_FILES[kind])
      remedy = f"end the processes that hold it (sudo lsof {files}), or pip install 'jax[{extra}]=={jax}'"
    problems.append(Problem(f"a {kind} is present, but JAX runs on the CPU: {cause}", remedy))
  return problems


def _is_nvidia_gpu(device: Path) -> bool:
  try:
    vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
  except OSError:
    return False
  return vendor == NVIDIA and kind.startswith(DISPLAY)


def _failure(name: str) -> str:
  """The first line of the error with which JAX starts a platform; "" if it starts."""
  import jax

  try:
    jax.devices(name)
  except RuntimeError as error:
    return str(error).partition("\n")[0]
  return ""


def examine() -> tuple[dict, list[Problem]]:
  """Facts about this machine by their names, and what is wrong with it.

  The problems of versions come first: with one of them JAX may not import, and the facts end there.
  """
  facts: dict = {"python": platform.python_version(), **versions()}
  problems = version_problems()
  try:
    facts = _measure() | facts
  except (ImportError, RuntimeError) as error:
    first = str(error).partition("\n")[0]
    return facts, [*problems, Problem(f"JAX does not start: {first}", f"pip install 'jax=={facts['jax']}'")]
  return facts, [*problems, *device_problems(facts["backend"], _failure)]


def _measure() -> dict:
  """Devices, and how long JAX takes for a tiny training step and a product of matrices."""
  import jax
  import jax.numpy as jnp

  import zoo
  from train import metrics, rng
  from train.objectives.image_classification import Objective
  from train.optim import make
  from train.step import init_state, make_step

  devices = jax.devices()
  model = zoo.create("vit/test")
  image = jnp.zeros((8, *model.config.image_size, 3), jnp.uint8)
  batch = dict(image=image, label=jnp.zeros(8, jnp.int32), valid=jnp.ones(8, bool), id=jnp.arange(8))
  variables = jax.jit(model.init)({"params": jax.random.key(0)}, image.astype(jnp.float32))
  optimizer, _ = make(variables["params"], 10, learning_rate=1e-3)
  state = init_state(variables, optimizer)
  start = time.perf_counter()
  step = jax.jit(make_step(Objective(), model, optimizer)).lower(state, batch, rng.root(0)).compile()
  compile_seconds = time.perf_counter() - start
  times = []
  for _ in range(20):
    start = time.perf_counter()
    state, values = step(state, batch, rng.root(0))
    jax.block_until_ready(values)
    times.append(time.perf_counter() - start)
  return {
    "backend": jax.default_backend(),
    "devices": [f"{d.id}: {d.device_kind}" for d in devices],
    "processes": jax.process_count(),
    "tiny step compiled in": f"{compile_seconds:.1f} s",
    "tiny step runs in": f"{sorted(times)[len(times) // 2] * 1e3:.2f} ms",
    "matmul": f"{metrics.measured_matmul() / 1e9:,.0f} GFLOP/s",
  }
