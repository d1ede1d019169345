"""What every test runs on: eight simulated CPU devices; and what is left out where an extra is not installed."""

import importlib.util
import os

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
def as_users_have_it():
  """The environment of another process that sees one device, whose machine code is optimised."""
  return os.environ | dict(JAX_DISABLE_MOST_OPTIMIZATIONS="false", JAX_NUM_CPU_DEVICES="1")


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
