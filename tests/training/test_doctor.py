"""`zoo doctor`: incompatible versions, and accelerators that are present but unused."""

import re
from importlib import metadata
from types import SimpleNamespace

import pytest

from train import cli, doctor

# What the published packages declare, as far as it matters here.
JAX = [
  "jaxlib<=0.12.0.1,>=0.11.2",
  "numpy>=2.2",
  'jaxlib==0.11.2; extra == "minimum-jaxlib"',
  'jaxlib<=0.12.0.1,>=0.12.0.1; extra == "tpu"',
  'libtpu==0.0.50.*; extra == "tpu"',
  'jax-cuda12-plugin[with-cuda]<=0.12.0.1,>=0.12.0.1; extra == "cuda12"',
  'jax-cuda13-plugin[with-cuda]<=0.12.0.1,>=0.12.0.1; extra == "cuda13"',
]
PLUGIN = ["jax-cuda13-pjrt==0.12.0.1", 'nvidia-cublas>=13; extra == "with-cuda"']
GOOD = {"transformer-zoo": "0.1.0", "jax": "0.12.0.1", "jaxlib": "0.12.0.1", "numpy": "2.5.5"}
REQUIRES = {"transformer-zoo": ["jax>=0.7.2", 'pytest>=9; extra == "test"'], "jax": JAX, "jax-cuda13-plugin": PLUGIN}


def installed(versions):
  def find(name):
    if versions.get(name) is None:
      raise metadata.PackageNotFoundError(name)
    return SimpleNamespace(version=versions[name], requires=REQUIRES.get(name))

  return find


def test_compatible_versions_are_no_problem():
  more = {"libtpu": "0.0.50.1", "jax-cuda13-plugin": "0.12.0.1", "jax-cuda13-pjrt": "0.12.0.1"}
  assert doctor.version_problems(installed(GOOD)) == []
  assert doctor.version_problems(installed(GOOD | more)) == []


@pytest.mark.parametrize(
  ("versions", "words", "remedy"),
  [
    ({"jaxlib": "0.10.2"}, ("jaxlib", "0.10.2", ">=0.11.2"), "jax==0.12.0.1"),
    ({"jaxlib": None}, ("jaxlib", "not installed"), "jax==0.12.0.1"),
    ({"numpy": "2.1.3"}, ("numpy", "2.1.3", ">=2.2"), "jax==0.12.0.1"),
    ({"libtpu": "0.0.42"}, ("libtpu", "0.0.42", "0.0.50.*"), "jax[tpu]==0.12.0.1"),
    ({"jax-cuda12-plugin": "0.10.2"}, ("jax-cuda12-plugin", "0.10.2"), "jax[cuda12]==0.12.0.1"),
    (
      {"jax-cuda13-plugin": "0.12.0.1", "jax-cuda13-pjrt": "0.11.0"},
      ("jax-cuda13-pjrt", "0.11.0", "0.12.0.1"),
      "jax[cuda13]==0.12.0.1",
    ),
    ({"jax": "0.6.0", "jaxlib": "0.12.0.1"}, ("jax", "0.6.0", ">=0.7.2"), "jax>=0.7.2"),
  ],
)
def test_incompatible_versions_are_named_with_a_command(versions, words, remedy):
  (found,) = doctor.version_problems(installed(GOOD | versions))
  assert all(word in found.problem for word in words), found
  assert found.remedy == f"pip install '{remedy}'"


def test_two_plugins_for_gpus():
  both = {f"jax-cuda{n}-{part}": "0.12.0.1" for n in (12, 13) for part in ("plugin", "pjrt")}
  (found,) = doctor.version_problems(installed(GOOD | both))
  assert "jax-cuda12-plugin and jax-cuda13-plugin" in found.problem and "uninstall" in found.remedy


def machine(root, *files, driver=None, pci=()):
  for file in files:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).touch()
  if driver:
    (root / "proc/driver/nvidia").mkdir(parents=True)
    text = f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}  Tue Aug 5 2026\nGCC version: gcc 12.2.0\n"
    (root / "proc/driver/nvidia/version").write_text(text)
  for number, (vendor, kind) in enumerate(pci):
    folder = root / f"sys/bus/pci/devices/0000:00:{number:02x}.0"
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(f"{vendor}\n")
    (folder / "class").write_text(f"{kind}\n")
  return root


@pytest.mark.parametrize(
  ("files", "kinds"),
  [
    ((), set()),
    (("dev/null", "dev/vfio/vfio", "dev/nvidiactl"), set()),
    (("dev/accel0", "dev/accel1"), {"TPU"}),
    (("dev/vfio/0",), {"TPU"}),
    (("dev/nvidia0", "dev/nvidiactl"), {"GPU"}),
    (("dev/dxg",), {"GPU"}),
  ],
)
def test_accelerators_by_their_device_files(tmp_path, files, kinds):
  assert doctor.accelerators(machine(tmp_path, *files)) == kinds


@pytest.fixture
def packages(monkeypatch):
  """Sets what is installed, and JAX_PLATFORMS."""

  def use(platforms="", **versions):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(doctor, "_version", lambda name: (GOOD | versions).get(name))

  return use


def no_failure(platform):
  raise AssertionError(f"asked for {platform}")


def test_an_accelerator_in_use_is_no_problem(tmp_path, packages):
  packages()
  assert doctor.device_problems("tpu", no_failure, machine(tmp_path, "dev/accel0")) == []
  assert doctor.device_problems("cpu", no_failure, tmp_path / "empty") == []


@pytest.mark.parametrize(
  ("files", "driver", "versions", "platforms", "cause", "remedy"),
  [
    ("dev/accel0", None, {}, "", "TPU.*libtpu", r"pip install 'jax\[tpu\]==0.12.0.1'"),
    ("dev/accel0", None, {"libtpu": "0.0.50"}, "cpu", "TPU.*JAX_PLATFORMS.*cpu", "unset JAX_PLATFORMS"),
    ("dev/vfio/0", None, {"libtpu": "0.0.50"}, "", "TPU.*in use by process 7", "lsof"),
    ("dev/nvidia0", "590.44", {}, "", "GPU.*jax-cuda13-plugin", r"pip install 'jax\[cuda13\]==0.12.0.1'"),
    ("dev/nvidia0", "550.54.15", {}, "", "GPU.*jax-cuda12-plugin", r"pip install 'jax\[cuda12\]==0.12.0.1'"),
    ("dev/nvidia0", "550.54", {"jax-cuda13-plugin": "0.12.0.1"}, "", "550.*580", r"uninstall.*jax\[cuda12\]"),
    ("dev/nvidia0", "590.44", {"jax-cuda13-plugin": "0.12.0.1"}, "cuda,cpu", "in use by process 7", "lsof"),
  ],
)
def test_an_accelerator_that_is_not_used(tmp_path, packages, files, driver, versions, platforms, cause, remedy):
  packages(platforms, **versions)
  root = machine(tmp_path, files, driver=driver)
  (found,) = doctor.device_problems("cpu", lambda platform: f"{platform} is in use by process 7", root)
  assert re.search(cause, found.problem) and re.search(remedy, found.remedy), found


def test_a_gpu_without_a_driver(tmp_path, packages):
  packages()
  root = machine(tmp_path, pci=[("0x8086", "0x030000"), ("0x10de", "0x040300"), ("0x10de", "0x030200")])
  (found,) = doctor.device_problems("cpu", no_failure, root)
  assert "NVIDIA" in found.problem and "driver" in found.remedy
  assert doctor.device_problems("cpu", no_failure, machine(tmp_path / "intel", pci=[("0x8086", "0x030000")])) == []


def test_a_problem_is_printed_with_its_remedy_and_is_a_failure(monkeypatch, capsys):
  found = [doctor.Problem("jaxlib is 0.1", "pip install 'jax==0.9'")]
  monkeypatch.setattr(doctor, "version_problems", lambda: found)
  monkeypatch.setattr(doctor, "_measure", lambda: {"backend": "cpu", "devices": ["0: cpu"]})
  assert cli.main(["doctor"]) == 1
  printed = capsys.readouterr().out
  assert "jaxlib is 0.1" in printed and "pip install 'jax==0.9'" in printed


def test_a_jax_that_does_not_import_is_reported(monkeypatch, capsys):
  def fail():
    raise RuntimeError("jaxlib version 0.1 is newer than and incompatible with jax version 0.0\nmore")

  monkeypatch.setattr(doctor, "_measure", fail)
  assert cli.main(["doctor"]) == 1
  printed = capsys.readouterr().out
  assert "incompatible with jax version 0.0" in printed and "more" not in printed
