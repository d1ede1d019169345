"""What every test runs on: eight simulated CPU devices; and what is left out where an extra is not installed."""

import importlib.util
import os

# Before anybody imports jax. The libtpu of the extra [plan] would otherwise look for a TPU first.
os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling is most of the tests' time. Unoptimised machine code takes 40 % less of it, and XLA's older way to write it
# half of the rest; but libtpu reads the same flags, and ends the program at one that it does not know.
QUICK = "--xla_backend_optimization_level=0"
if importlib.util.find_spec("libtpu") is None:
  QUICK += " --xla_cpu_use_fusion_emitters=false"
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
