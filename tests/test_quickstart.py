"""The first thing anybody does: one command that pretrains, probes, and draws."""

import json
import subprocess
import sys

import pytest
from PIL import Image


@pytest.mark.slow
def test_the_first_command_trains_an_encoder(tmp_path, as_users_have_it):
  # One device, code that is optimised, and large pages: it trains in half the time.
  environment = as_users_have_it | dict(GLIBC_TUNABLES="glibc.malloc.hugetlb=1")
  # A third of its epochs; all of them make it nearly twice as much better as these (README).
  command = [sys.executable, "-m", "train", "train", "quickstart", "epochs=6", "--workdir", str(tmp_path / "run")]
  done = subprocess.run(
    [*command, "--json", str(tmp_path / "result.json")], env=environment, capture_output=True, text=True, timeout=1500
  )
  assert done.returncode == 0, done.stderr
  result = json.loads((tmp_path / "result.json").read_text())
  # What was learned, not what random features give, and both are reported.
  assert result["probe"]["gain"] >= 0.02
  assert result["probe"]["accuracy"] - result["probe"]["untrained_accuracy"] == pytest.approx(result["probe"]["gain"])
  assert "untrained_accuracy" in done.stdout
  assert (tmp_path / "run" / "checkpoints" / str(result["step"])).is_dir()
  for name in ("images_per_second", "flops_utilisation", "data_wait", "compile_seconds", "memory_bytes"):
    assert result["speed"][name] >= 0 and name in done.stdout
  for name in ("loss_curve", "reconstructions"):
    assert str(tmp_path / "run" / f"{name}.png") in done.stdout
    with Image.open(tmp_path / "run" / f"{name}.png") as plot:
      assert min(plot.size) > 300
