"""Metrics of a run: a progress bar, `metrics.jsonl`, TensorBoard event files, and a meter of its speed.

A line of `metrics.jsonl` is one JSON object: `{"step": 20, "train/loss": 1.5, "train/learning_rate": 1e-3}`,
`{"step": 20, "test/accuracy": 0.6}` or `{"step": 20, "note": "..."}`. TensorBoard shows the same names.
"""

import contextlib
import functools
import json
import math
import os
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from train.plan.chips import peak_flops
from zoo.errors import Unwritable

FILE = "metrics.jsonl"


def read(path: str | os.PathLike) -> list[dict]:
  """The lines of a `metrics.jsonl`, without incomplete ones of a killed process.

  Args:
    path: the file, or the directory it is in.

  Returns:
    one dict a line, in the order of writing; nan and inf are floats.
  """
  path = Path(path)
  text = (path / FILE if path.is_dir() else path).read_bytes().decode(errors="replace")
  lines = []
  for line in text.splitlines():
    with contextlib.suppress(ValueError):
      entry = json.loads(line)
      if isinstance(entry, dict) and isinstance(entry.get("step"), int):
        lines.append({k: float(v) if v in ("nan", "inf", "-inf") else v for k, v in entry.items()})
  return lines


def _line(entry: Mapping) -> str:
  # JSON has no nan: as strings they are readable by every parser.
  plain = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in entry.items()}
  return json.dumps(plain) + "\n"


def _scalars(metrics: Mapping, prefix: str) -> dict[str, float]:
  """Arrays of one element as Python numbers."""
  values = {f"{prefix}/{k}": np.asarray(v) for k, v in metrics.items()}
  wrong = [f"{k} {v.shape}" for k, v in values.items() if v.size != 1 or not np.issubdtype(v.dtype, np.number)]
  if wrong:
    raise ValueError(f"a metric is one number; got {', '.join(wrong)}")
  return {k: v.item() for k, v in values.items()}


def number(value: float) -> str:
  """A number with four digits, or all digits before the decimal point."""
  return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


class Log:
  """Writes metrics to the console, to `metrics.jsonl` and to TensorBoard event files; only process 0 writes.

  A run that is resumed at step n removes the lines after n, so that each step is logged once.

  Args:
    workdir: where `metrics.jsonl` and `tensorboard/` go; made if missing.
    total_steps: of the whole run.
    first_step: number of completed steps; 0 starts a new log.
    unit: plural of an example, as in `Meter`.
    console: where to write; the standard output if None.
    every_seconds: between the lines that are printed in place of the bar if there is no terminal.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    total_steps: int,
    first_step: int = 0,
    unit: str = "images",
    *,
    console: Console | None = None,
    every_seconds: float = 5.0,
  ) -> None:
    self.total_steps, self.unit, self.every_seconds = total_steps, unit, every_seconds
    self.step = first_step
    self.console = console or Console(highlight=False)
    self._began: tuple[float, int] | None = None  # the clock and the step at the first call of `train`
    self._printed = -math.inf
    self._progress = self._file = None
    if jax.process_index() != 0:
      return
    path = Path(workdir) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    self._cut(path, first_step)
    self._file = path.open("a", encoding="utf-8")
    from tensorboardX import SummaryWriter  # it imports PyTorch if that is installed, which takes three seconds

    # TensorBoard discards events from purge_step on in favour of this newer file.
    self._events = SummaryWriter(str(path.parent / "tensorboard"), purge_step=first_step + 1 if first_step else 0)
    if self.console.is_terminal:
      self._progress = Progress(
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[status]}"),
        console=self.console,
      )
      self._task = self._progress.add_task("", total=total_steps, completed=first_step, status="")
      self._progress.start()

  @staticmethod
  def _cut(path: Path, step: int) -> None:
    """Removes the lines after `step`; the file is replaced atomically."""
    if not path.exists():
      return
    kept = [entry for entry in read(path) if step and entry["step"] <= step]
    whole = path.with_suffix(".tmp")
    whole.write_text("".join(map(_line, kept)), encoding="utf-8")
    whole.replace(path)

  def train(self, step: int, metrics: Mapping[str, float]) -> None:
    """Logs metrics of training after `step` steps, each one number, and updates the bar."""
    self.step = step
    if self._file is None:
      return
    self._write(_scalars(metrics, "train"))
    self._began = self._began or (time.monotonic(), step)
    parts = [f"loss {float(metrics['loss']):.4g}"] if "loss" in metrics else []
    if (speed := f"{self.unit}_per_second") in metrics:
      parts.append(f"{number(float(metrics[speed]))} {self.unit}/s")
    seconds, steps = time.monotonic() - self._began[0], step - self._began[1]
    if steps > 0:
      left = timedelta(seconds=round(seconds / steps * (self.total_steps - step)))
      parts.append(f"{left} left" if step < self.total_steps else "done")
    if self._progress:
      self._progress.update(self._task, completed=step, status="  ".join(parts))
    elif time.monotonic() - self._printed >= self.every_seconds or step >= self.total_steps:
      self._printed = time.monotonic()
      self._print("  ".join([f"step {step}/{self.total_steps}", *parts]))

  def eval(self, step: int, name: str, metrics: Mapping[str, float]) -> None:
    """Logs metrics of the evaluation `name` at `step`."""
    self.step = step
    if self._file is None:
      return
    values = _scalars(metrics, name)
    self._write(values)
    self._print(f"step {step}  " + "  ".join(f"{k} {number(v)}" for k, v in values.items()))

  def note(self, text: str) -> None:
    """Logs a message; shown above the bar."""
    if self._file is None:
      return
    self._write({"note": text})
    self._print(text)

  def status(self, text: str) -> None:
    """Shows beside the bar what takes time; without a terminal only until the first step."""
    if self._progress:
      self._progress.update(self._task, status=text)
    elif self._file is not None and self._began is None:
      self._print(text)

  def close(self) -> None:
    """Closes the bar and the files; a second call does nothing."""
    if self._file is None:
      return
    if self._progress:
      self._progress.stop()
    with contextlib.suppress(OSError):  # on a full disk, which has been reported
      self._file.close()
      self._events.close()
    self._file = None

  def __enter__(self) -> "Log":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def _print(self, text: str) -> None:
    # Metrics and paths are not markup, and a file has no width to wrap at.
    self.console.print(text, markup=False, soft_wrap=True)

  def _write(self, values: Mapping) -> None:
    assert self._file is not None
    try:
      self._file.write(_line({"step": self.step} | dict(values)))
      self._file.flush()  # so that a killed process loses nothing
    except OSError as error:
      raise Unwritable(
        f"cannot write {self._file.name}: {error.strerror}. After freeing space, the same command resumes at the "
        "last checkpoint"
      ) from error
    for key, value in values.items():
      if isinstance(value, str):
        self._events.add_text(key, value, self.step)
      else:
        self._events.add_scalar(key, value, self.step)


class Meter:
  """Measures throughput, time spent waiting for data, FLOP utilisation and memory.

      with meter.waiting():
        batch = next(batches)
      state, metrics = step(state, batch, key)
      meter.step(flops)
      if time_to_log:
        metrics = jax.device_get(metrics)  # waits for the device before the clock is read
        log.train(n, metrics | meter.read())

  Args:
    examples: in the global batch.
    unit: plural of an example, as in `images_per_second`.
  """

  def __init__(self, examples: int, unit: str = "images") -> None:
    self.examples, self.unit = examples, unit
    self.compile_seconds = 0.0
    self._restart()

  def _restart(self) -> None:
    self._start, self._steps, self._flops, self._waited, self._paused = time.perf_counter(), 0, 0.0, 0.0, 0.0

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Encloses the loading of a batch."""
    start = time.perf_counter()
    try:
      yield
    finally:
      self._waited += time.perf_counter() - start

  @contextlib.contextmanager
  def pause(self) -> Iterator[None]:
    """Encloses what is not training, such as an evaluation: its time is not counted."""
    start = time.perf_counter()
    try:
      yield
    finally:
      self._paused += time.perf_counter() - start

  @contextlib.contextmanager
  def compiling(self) -> Iterator[None]:
    """Encloses a compilation: not counted in the speed, and reported once as `compile_seconds`."""
    start = time.perf_counter()
    try:
      with self.pause():
        yield
    finally:
      self.compile_seconds += time.perf_counter() - start

  def step(self, flops: float = 0.0) -> None:
    """Counts a step that was started, and its FLOPs: 2 x `count_macs` of the global batch; 0 if unknown."""
    self._steps += 1
    self._flops += flops

  def read(self) -> dict[str, float]:
    """Measurements since the last call; the devices must have finished.

    Returns:
      `UNIT_per_second`, `seconds_per_step`; `data_wait`, the share of time spent in `waiting`; `flops_utilisation`, the
      share of `peak()`, if the FLOPs are known; `compile_seconds`, if something was compiled; `memory_bytes`, the peak
      of the run. Without a step since the last call only the last two.
    """
    seconds = time.perf_counter() - self._start - self._paused
    result = {}
    if self._steps:
      result = {
        f"{self.unit}_per_second": self._steps * self.examples / seconds,
        "seconds_per_step": seconds / self._steps,
        "data_wait": self._waited / seconds,
      }
      if self._flops:
        result["flops_utilisation"] = self._flops / seconds / peak()
    if self.compile_seconds:
      result["compile_seconds"], self.compile_seconds = self.compile_seconds, 0.0
    result["memory_bytes"] = memory_bytes()
    self._restart()
    return result


@functools.cache
def measured_matmul() -> float:
  """FLOP/s of a matmul on the default device, the best of ten: float32 on a CPU, bfloat16 elsewhere."""
  # On a CPU the smaller one has the same rate, and every run measures this.
  size, dtype = (1024, jnp.float32) if jax.default_backend() == "cpu" else (2048, jnp.bfloat16)
  x = jnp.ones((size, size), dtype)
  multiply = jax.jit(jnp.matmul).lower(x, x).compile()
  best = math.inf
  for _ in range(10):
    start = time.perf_counter()
    multiply(x, x).block_until_ready()
    best = min(best, time.perf_counter() - start)
  return 2 * size**3 / best


@functools.cache
def peak() -> float:
  """Peak FLOP/s of all devices of the run: the chips' bf16 peak, or a measured matmul for devices without an entry."""
  if jax.default_backend() == "cpu":
    return measured_matmul() * jax.process_count()  # shared by all devices that a CPU simulates
  return sum(peak_flops(device) or measured_matmul() for device in jax.devices())


def memory_bytes() -> int:
  """Peak memory: the maximum over local devices, or that of the process where devices do not report it."""
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  used = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
  if used:
    return max(used)
  kilobyte = 1 if sys.platform == "darwin" else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobyte
