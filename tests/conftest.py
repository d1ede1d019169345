"""What every test runs on: eight simulated CPU devices; and what is left out where an extra is not installed."""

import gc
import importlib.util
import os
from pathlib import Path

import pytest

# Before anybody imports jax. The libtpu of the extra [plan] would otherwise look for a TPU first.
os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling is most of the tests' time, and unoptimised machine code takes 40 % less of it. Options of JAX, and none of
# XLA: a flag that a version of XLA does not know ends the process.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # no cloud to ask which TPU this is
os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"

# Tests of an extra are left out where it is not installed, so that plain `pytest` passes with the extra [test]
# alone. A variable that says they must run, as in CI, makes its absence a failure.
_EXTRAS = {
  "parity": ("timm", "ZOO_PARITY"),
  "plan/test_tpu.py": ("libtpu", "ZOO_PLAN"),
  "plan/test_tpu_window_kernel.py": ("libtpu", "ZOO_PLAN"),
  "test_notebooks.py": ("nbclient", "ZOO_NOTEBOOKS"),
  "data/test_beam.py": ("apache_beam", "ZOO_BEAM"),
}
collect_ignore = [
  path
  for path, (module, variable) in _EXTRAS.items()
  if importlib.util.find_spec(module) is None and not os.environ.get(variable)
]


# GiB of memory that a process may have when the next file of tests begins.
_MEMORY = 1.25


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
  """Drops what was compiled for earlier files once it takes much memory: the next file shares little of it."""
  yield
  statm = Path("/proc/self/statm")  # of Linux
  if not statm.exists() or int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") > _MEMORY * 2**30:
    import jax

    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def as_users_have_it(tmp_path_factory):
  """The environment of other processes: one device, optimised machine code, and a compilation cache they share."""
  return os.environ | dict(
    JAX_DISABLE_MOST_OPTIMIZATIONS="false",
    JAX_NUM_CPU_DEVICES="1",
    JAX_COMPILATION_CACHE_DIR=os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(tmp_path_factory.mktemp("cache")),
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
  )


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
def chapters():
  """The English Bible, a chapter a document."""
  from train.data.text.corpora import TextRecords

  source = TextRecords("verses_en_es")
  return [document for chunk in source.chunks() for document in source.read(chunk)]
