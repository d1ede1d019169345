"""What every test runs on: eight simulated CPU devices; and what is left out where an extra is not installed."""

import importlib.util
import os

import pytest

# Before anybody imports jax. The libtpu of the extra [plan] would otherwise look for a TPU first.
os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling is most of the tests' time. Unoptimised machine code takes 40 % less of it, and XLA's older way to write it
# half of the rest; but libtpu ends the program at the second flag, which it does not know (below).
OLDER = "--xla_cpu_use_fusion_emitters=false"
QUICK = f"--xla_backend_optimization_level=0 {OLDER}"
os.environ["XLA_FLAGS"] = f"{QUICK} {os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # no cloud to ask which TPU this is
os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"

# Tests of an extra are left out where it is not installed, so that plain `pytest` passes with the extra [test]
# alone. A variable that says they must run, as in CI, makes its absence a failure.
_EXTRAS = {
  "parity": ("timm", "ZOO_PARITY"),
  "test_tpu.py": ("libtpu", "ZOO_PLAN"),
  "test_notebooks.py": ("nbclient", "ZOO_NOTEBOOKS"),
  "test_beam.py": ("apache_beam", "ZOO_BEAM"),
}
collect_ignore = [
  path
  for path, (module, variable) in _EXTRAS.items()
  if importlib.util.find_spec(module) is None and not os.environ.get(variable)
]


@pytest.fixture(scope="session")
def quick_flags():
  """XLA's flags for another process, which sees one device."""
  return QUICK


@pytest.fixture(scope="module")
def one_device():
  """For trainings that are about something else: eight devices that share a core take twice the time of one."""
  import jax

  first = jax.devices()[:1]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, "devices", lambda *_: first)
    patch.setattr(jax, "local_devices", lambda *_, **__: first)
    yield


@pytest.fixture(scope="session")
def flags_that_libtpu_knows():
  """It reads them when it is loaded; what compiles for the CPU reads them once, before its first program."""
  import jax

  jax.block_until_ready(jax.numpy.arange(2) + 1)
  os.environ["XLA_FLAGS"] = os.environ["XLA_FLAGS"].replace(OLDER, "")


@pytest.fixture(scope="session")
def chapters():
  """The English Bible, a chapter a document."""
  from train.text.documents import TextRecords

  source = TextRecords("verses_en_es")
  return [document for chunk in source.chunks() for document in source.read(chunk)]
