import io
import json
import math
import os
import struct
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from support import raises
from tensorboardX.proto.event_pb2 import Event

from train import metrics
from train.plan import chips


def log(workdir, *, terminal=False, out=None, **kwargs):
  console = Console(file=out or io.StringIO(), force_terminal=terminal, width=100, highlight=False)
  return metrics.Log(workdir, 10, console=console, every_seconds=0, **kwargs)


def events(workdir):
  """Every (tag, step, value) that TensorBoard would read, in the order of the files."""
  found = []
  for path in sorted((workdir / "tensorboard").iterdir(), key=lambda p: p.stat().st_mtime_ns):
    data = path.read_bytes()
    while data:
      size = struct.unpack("Q", data[:8])[0]
      event = Event.FromString(data[12 : 12 + size])
      data = data[16 + size :]
      if event.session_log.status == event.session_log.START and event.step:
        found.append(("start", event.step, 0.0))
      found += [(v.tag, event.step, v.simple_value) for v in event.summary.value if v.HasField("simple_value")]
  return found


def test_a_line_is_an_object_with_its_step(tmp_path):
  with log(tmp_path) as run:
    run.train(1, {"loss": jnp.float32(0.5), "learning_rate": np.float64(0.1), "skipped": 3})
    run.eval(1, "test", {"accuracy": 0.25})
    run.note("an [image] is broken")
  assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
    {"step": 1, "train/loss": 0.5, "train/learning_rate": 0.1, "train/skipped": 3},
    {"step": 1, "test/accuracy": 0.25},
    {"step": 1, "note": "an [image] is broken"},
  ]


def test_status_is_printed_to_a_file_until_the_first_step(tmp_path):
  with log(tmp_path, out=(out := io.StringIO())) as run:
    run.status("compiling the step")
    run.train(1, {"loss": 0.5})
    run.status("evaluating: test")
  assert out.getvalue().splitlines() == ["compiling the step", "step 1/10  loss 0.5"]


def test_lines_after_the_checkpoint_are_removed(tmp_path):
  with log(tmp_path) as run:
    for step in (2, 4, 6):
      run.train(step, {"loss": float(step)})
  with log(tmp_path, first_step=4) as run:
    run.train(6, {"loss": -6.0})
  assert [(x["step"], x["train/loss"]) for x in metrics.read(tmp_path)] == [(2, 2.0), (4, 4.0), (6, -6.0)]
  with log(tmp_path) as run:  # a new run in the same folder
    run.train(1, {"loss": 1.0})
  assert [x["step"] for x in metrics.read(tmp_path)] == [1]


@pytest.mark.parametrize("ruin", ['{"step": 3, "train/lo', '{"step": 3, "train/loss": 1', "\n{", "3\n", "\xff\x00\n"])
def test_a_half_written_last_line_is_skipped_and_then_removed(tmp_path, ruin):
  with log(tmp_path) as run:
    run.train(2, {"loss": 1.0})
  path = tmp_path / "metrics.jsonl"
  path.write_bytes(path.read_bytes() + ruin.encode("latin-1"))
  assert len(metrics.read(path)) == 1
  with log(tmp_path, first_step=4) as run:
    run.train(6, {"loss": 0.5})
  assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [2, 6]


def test_nan_and_infinity_are_valid_json(tmp_path):
  with log(tmp_path) as run:
    run.train(1, {"loss": math.nan, "top": math.inf})
  strict = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
  assert strict == {"step": 1, "train/loss": "nan", "train/top": "inf"}
  entry = metrics.read(tmp_path)[0]
  assert math.isnan(entry["train/loss"]) and entry["train/top"] == math.inf


def test_a_killed_process_loses_no_line(tmp_path):
  script = (
    "import os, signal, sys; from train import metrics\n"
    "run = metrics.Log(sys.argv[1], 10); run.train(1, {'loss': 2.0}); os.kill(os.getpid(), signal.SIGKILL)"
  )
  subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, check=False)
  assert metrics.read(tmp_path) == [{"step": 1, "train/loss": 2.0}]


def test_tensorboard_has_the_same_values(tmp_path):
  with log(tmp_path) as run:
    run.train(3, {"loss": 0.5})
    run.eval(3, "probe", {"accuracy": 0.75})
  assert events(tmp_path) == [("train/loss", 3, 0.5), ("probe/accuracy", 3, 0.75)]


def test_tensorboard_drops_events_after_the_checkpoint(tmp_path):
  with log(tmp_path) as run:
    run.train(6, {"loss": 0.5})
  with log(tmp_path, first_step=4) as run:
    run.train(6, {"loss": 0.25})
  # A newer file's start at step 5 makes TensorBoard drop older events from there on.
  assert ("start", 5, 0.0) in events(tmp_path) and events(tmp_path)[-1] == ("train/loss", 6, 0.25)


def test_plain_lines_without_a_terminal(tmp_path):
  out = io.StringIO()
  with log(tmp_path, out=out) as run:
    run.train(4, {"loss": 0.25, "images_per_second": 1234.0})
    run.train(6, {"loss": 0.125, "images_per_second": 50.5})
    run.train(10, {"loss": 0.125})
    run.note("no [red] in a file of this name " + 100 * "x")
  lines = out.getvalue().splitlines()
  assert lines[0] == "step 4/10  loss 0.25  1,234 images/s"
  assert lines[1] == "step 6/10  loss 0.125  50.5 images/s  0:00:00 left"
  assert lines[3] == "no [red] in a file of this name " + 100 * "x"  # neither markup nor wrapped
  assert lines[2].endswith("done") and "\x1b" not in out.getvalue()


def test_the_progress_bar_shows_step_loss_speed_and_time_left(tmp_path):
  out = io.StringIO()
  with log(tmp_path, out=out, terminal=True, unit="tokens") as run:
    run.train(4, {"loss": 0.25, "tokens_per_second": 1234.0})
    run.train(5, {"loss": 0.25, "tokens_per_second": 1234.0})
    run.note("halfway")
  for part in ("5/10", "━", "loss 0.25", "1,234 tokens/s", "0:00:00 left", "halfway"):
    assert part in out.getvalue()


def test_only_one_process_writes(tmp_path, monkeypatch):
  monkeypatch.setattr(metrics.jax, "process_index", lambda: 1)
  out = io.StringIO()
  with log(tmp_path / "nowhere", out=out) as run:
    run.train(1, {"loss": 1.0})
    run.eval(1, "test", {"accuracy": 1.0})
    run.note("hello")
  assert not list(tmp_path.iterdir()) and not out.getvalue()


def test_a_metric_is_one_number(tmp_path):
  with log(tmp_path) as run, raises(ValueError, "train/loss", (2,)):
    run.train(1, {"loss": np.ones(2)})


class Clock:
  """A perf_counter that advances only on request."""

  def __init__(self, monkeypatch):
    self.now = 100.0
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: self.now)

  def sleep(self, seconds):
    self.now += seconds


def test_meter(monkeypatch):
  clock = Clock(monkeypatch)
  monkeypatch.setattr(metrics, "peak", lambda: 1000.0)
  meter = metrics.Meter(examples=32)
  with meter.compiling():
    clock.sleep(7)
  for _ in range(4):
    with meter.waiting():
      clock.sleep(0.5)
    clock.sleep(1.5)
    meter.step(flops=200.0)
  with meter.pause():
    clock.sleep(100)
  first = meter.read()
  assert first.pop("memory_bytes") > 1e7
  assert first == {
    "images_per_second": 4 * 32 / 8,
    "seconds_per_step": 2.0,
    "data_wait": 0.25,
    "flops_utilisation": 200 * 4 / 8 / 1000,
    "compile_seconds": 7.0,
  }
  clock.sleep(4)  # a reading starts the next
  meter.step()
  second = meter.read()
  assert second["seconds_per_step"] == 4 and second["data_wait"] == 0
  assert not {"compile_seconds", "flops_utilisation"} & set(second)
  assert set(meter.read()) == {"memory_bytes"}


def test_peak_of_a_cpu_is_a_measured_matmul(monkeypatch):
  assert metrics.peak() == metrics.measured_matmul() > 1e9
  metrics.peak.cache_clear()


def test_peak_of_chips_is_the_sum_of_the_table(monkeypatch):
  class Device:
    device_kind = "TPU v5 lite"

  monkeypatch.setattr(metrics.jax, "default_backend", lambda: "tpu")
  monkeypatch.setattr(metrics.jax, "devices", lambda: [Device()] * 4)
  metrics.peak.cache_clear()
  assert metrics.peak() == 4 * chips.CHIPS["v5e"].peak_flops
  metrics.peak.cache_clear()


def test_memory_of_this_process():
  held = np.ones(2**24)
  assert held.nbytes < metrics.memory_bytes() < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_memory_of_the_fullest_device(monkeypatch):
  class Device:
    def __init__(self, peak):
      self.peak = peak

    def memory_stats(self):
      return {"peak_bytes_in_use": self.peak}

  monkeypatch.setattr(metrics.jax, "local_devices", lambda: [Device(3), Device(5)])
  assert metrics.memory_bytes() == 5


def test_a_log_line_costs_little(tmp_path):
  with log(tmp_path) as run:
    start = time.perf_counter()
    for step in range(100):
      run.train(step, {"loss": 1.0, "learning_rate": 0.1, "images_per_second": 1.0})
    assert (time.perf_counter() - start) / 100 < 0.01
