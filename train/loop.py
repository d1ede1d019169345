"""A training run in reading order: from its config to its last checkpoint, its evaluations and its plots."""

import contextlib
import json
import math
import os
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from train import config as configuration
from train import metrics, rng
from train.checkpoint import Checkpoints
from train.evaluation import registry as evaluations
from train.evaluation.base import Evaluation
from train.experiment import Experiment
from train.plan.macs import count_macs
from train.plots import registry as plots
from train.prefetch import prefetch
from train.step import State
from zoo.errors import nearest
from zoo.weights.sources import check_exists

# Config keys that do not change what is computed: a resumed run may have others.
MAY_CHANGE = ("parallel", "evals", "checkpoint", "log_every_steps", "plots")


class NonFiniteError(ValueError):
  """The loss or the gradient is not finite."""


class ConfigMismatchError(ValueError):
  """The run in the work directory was made with another config."""


def train(config: ConfigDict, workdir: str | Path, *, resume: bool = True, override_config: bool = False) -> dict:
  """Trains, evaluates and writes checkpoints; resumes the run in `workdir` if there is one.

  Args:
    config: from `train.config.load`.
    workdir: for checkpoints, metrics and plots.
    resume: False raises an error if `workdir` holds a run.
    override_config: resume even if the run was made with another config.

  Returns:
    the last metrics of every evaluation by its name; "step"; "stopped", the name of a signal or ""; "speed", the last
    reading of `metrics.Meter`; and "plots", their paths by name.

  Raises:
    ValueError: anything wrong with config, data, work directory or checkpoints.
    NonFiniteError: the loss or the gradient is not finite.
  """
  workdir = Path(workdir)
  experiment, evals = prepare(config, workdir)  # before anything is written
  saved_config = configuration.as_json(config)
  notes: list[str] = []  # until there is a log
  check_workdir(workdir)
  checkpoints = Checkpoints(workdir, **experiment.config.checkpoint, note=notes.append)
  if checkpoints.steps and not resume:
    raise ValueError(f"{workdir} holds a run (steps {checkpoints.steps}); resume it, or give another --workdir")
  if (meta := checkpoints.newest_meta()) and not override_config:
    check_same_config(meta["config"], saved_config)
  checkpoints.check_room(experiment.abstract_state())
  restored = experiment.restore(checkpoints)
  state = experiment.start() if restored is None else restored
  first_step = int(experiment.parallel.host(state.step))
  _write_json(workdir / "config.json", saved_config)

  with metrics.Log(workdir, experiment.total_steps, first_step, experiment.data.unit) as log, StopSignal() as stop:
    for note in (*notes, experiment.describe()):
      log.note(note)
    if restored is not None:
      log.note(f"resuming at step {first_step} of {experiment.total_steps}")
    trainer = Trainer(experiment, evals, checkpoints, log, stop, first_step)
    state = trainer.run(state)
  result = trainer.result()
  if not result["stopped"]:
    result["plots"] = draw_plots(experiment, state, workdir)
  return result


def prepare(config: ConfigDict, workdir: Path) -> tuple[Experiment, dict[str, Evaluation]]:
  """Makes the experiment and its evaluations; raises ValueError for any fault that can be found before the start."""
  experiment = Experiment(config)
  options = experiment.config
  if options.log_every_steps < 1:
    raise ValueError(f"config.log_every_steps is {options.log_every_steps}; wanted at least 1")
  for name in options.plots:
    plots.check(name, experiment)
  evals = evaluations.make(experiment)
  best_eval = options.checkpoint.best_metric.partition("/")[0]
  if best_eval and best_eval not in evals:
    remedy = nearest(best_eval, evals) if evals else "; there are none: set checkpoint.best_metric=''"
    raise ValueError(f"config.checkpoint.best_metric: no evaluation {best_eval!r}{remedy}")
  if options.init.path and not workdir.exists():  # a run that is resumed does not read it
    sources = {configuration.run_name(name): name for name in configuration.shipped()}
    name = sources.get(Path(options.init.path).name)
    check_exists(options.init.path, f"; `zoo train {name}` makes it" if name else "")
  return experiment, evals


def check_workdir(workdir: Path) -> None:
  """Raises ValueError where the directory cannot be written to."""
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=workdir) as file:
      file.write(b"0")
  except OSError as error:
    raise ValueError(f"cannot write to the work directory {workdir}: {error.strerror}") from error


def check_same_config(saved: dict, config: dict) -> None:
  """Raises ConfigMismatchError, listing the differences, where a run cannot be resumed under this config."""
  old, new = ({k: v for k, v in c.items() if k not in MAY_CHANGE} for c in (saved, config))
  if lines := configuration.differences(old, new):
    raise ConfigMismatchError(
      "the run in this work directory was made with another config:\n  "
      + "\n  ".join(lines)
      + "\nGive another --workdir, or --override-config to resume under the new config all the same."
    )


class Trainer:
  """The loop over steps, and what is due between two of them: logging, evaluations, checkpoints.

  Attributes:
    step: number of completed steps.
    results: metrics of the evaluations at this step, by evaluation.
    speed: the last readings of the meter.
  """

  def __init__(
    self,
    experiment: Experiment,
    evals: dict[str, Evaluation],
    checkpoints: Checkpoints,
    log: metrics.Log,
    stop: "StopSignal",
    first_step: int,
  ) -> None:
    self.experiment, self.config, self.parallel = experiment, experiment.config, experiment.parallel
    self.evals, self.checkpoints, self.log, self.stop = evals, checkpoints, log, stop
    self.step = self.first_step = first_step
    self.results: dict[str, dict[str, float]] = {}
    self.speed: dict[str, float] = {}
    self.meter = metrics.Meter(experiment.batch_size, experiment.data.unit)
    self._key = self.parallel.put(rng.root(self.config.seed, self.config.prng_impl))
    self._train_step: Any = experiment.parallel_step()
    self._schedule = jax.jit(experiment.schedule)
    self._programs = {}  # shapes of a batch -> the compiled step and its FLOPs; images have one shape
    self._unchecked: deque = deque()  # (step, metrics) of steps whose loss is not yet known to be finite
    # Examples skipped so far, of all processes: summed on the devices, so that the loop does not wait for them.
    self._count_invalid = jax.jit(lambda valid: (~valid).sum())
    self._num_corrupt = (checkpoints.newest_meta() or {}).get("num_corrupt", 0) if first_step else 0

  def run(self, state: State) -> State:
    """Trains from the state to the last step, or until a signal; the last checkpoint is written when it returns."""
    with contextlib.closing(self._batches()) as batches:
      while self.step < self.experiment.total_steps and not self.stop.now(self.step):
        state, step_metrics = self._run_step(state, batches)
        self._check_finite(keep=1)  # the step before, while the devices compute this one
        log_due = self._due(self.config.log_every_steps)
        save_due = self._due(self.checkpoints.every_steps)
        evals_due = [name for name, (every_steps, _) in self.evals.items() if self._due(every_steps)]
        if log_due or save_due or evals_due:
          self._check_finite()
        if log_due:
          self._write_metrics(step_metrics)
        self.results = {}
        if evals_due:
          self._evaluate_or_save(evals_due, state)
        if save_due:
          with self.meter.pause():
            self._save(state)
    self._check_finite()
    if self.step < self.experiment.total_steps:
      self._save(state)
    elif self.step == self.first_step:  # the run was complete already
      self._evaluate(self.evals, state)
    self.checkpoints.close()
    return state

  def result(self) -> dict:
    """What `train` returns, without plots."""
    stopped = self.stop.name if self.step < self.experiment.total_steps else ""
    return {"step": self.step, "stopped": stopped, "speed": self.speed, **self.results}

  def _due(self, every_steps: int) -> bool:
    """Whether something that happens every so many steps, and at the last, happens now; 0 is only at the last."""
    return self.step == self.experiment.total_steps or bool(every_steps and self.step % every_steps == 0)

  def _batches(self) -> Generator[dict]:
    """Batches on the devices, from the first step's on."""
    batches = self.experiment.data.train_batches(
      self.experiment.batch_size, self.config.seed, self.first_step, jax.process_index(), jax.process_count()
    )
    return prefetch(batches, self.parallel.put_batch)

  def _run_step(self, state: State, batches: Iterator[dict]) -> tuple[State, dict]:
    """Starts the next step; the devices may still compute it when this returns."""
    with self.meter.waiting():
      batch = next(batches)
    if self.experiment.data.skip_corrupt:
      self._num_corrupt += self._count_invalid(batch["valid"])
    program, flops = self._program(state, batch)
    state, step_metrics = program(state, batch, self._key)
    self.step += 1
    self.meter.step(flops)
    self._unchecked.append((self.step, step_metrics))
    return state, step_metrics

  def _program(self, state: State, batch: dict) -> tuple[jax.stages.Compiled, int]:
    """The step compiled for the batch's shapes, and its FLOPs."""
    shapes = tuple(array.shape for array in batch.values())
    if shapes not in self._programs:
      self.log.status("compiling the step")
      with self.meter.compiling():
        compiled = self._train_step.lower(state, batch, self._key).compile()
        self._programs[shapes] = compiled, 2 * count_macs(self._train_step, state, batch, self._key)
    return self._programs[shapes]

  def _check_finite(self, keep: int = 0) -> None:
    """Raises NonFiniteError for a loss or gradient that is not finite; waits for all but the last `keep` steps."""
    while len(self._unchecked) > keep:
      step, step_metrics = self._unchecked.popleft()
      # The gradient too: the parameters that it changed must not become a checkpoint.
      values = self.parallel.host((step_metrics["loss"], step_metrics["grad_norm"]))
      if not self.config.skip_nonfinite and not all(map(math.isfinite, values)):
        self.checkpoints.wait()
        raise NonFiniteError(nonfinite_message(step, self.checkpoints.steps))

  def _write_metrics(self, step_metrics: dict) -> None:
    scalars = {name: float(value) for name, value in self.parallel.host(step_metrics).items()}
    if self.experiment.data.skip_corrupt:
      scalars[f"corrupt_{self.experiment.data.unit}"] = int(self._num_corrupt)
    latest = self.meter.read()
    self.speed |= latest
    learning_rate = float(self._schedule(self.step - 1))
    self.log.train(self.step, scalars | {"learning_rate": learning_rate} | latest)

  def _evaluate(self, names, state: State) -> None:
    for name in names:
      with self.meter.pause():
        self.log.status(f"evaluating: {name}")
        self.results[name] = self.evals[name].function(state.eval_variables())
      self.log.eval(self.step, name, self.results[name])
      best, known = self.checkpoints.best_metric, [f"{name}/{key}" for key in self.results[name]]
      if name == best.partition("/")[0] and best not in known:
        raise ValueError(f"config.checkpoint.best_metric: no metric {best!r}{nearest(best, known)}")

  def _evaluate_or_save(self, names, state: State) -> None:
    """Evaluates; if that fails, writes a checkpoint first, so that no step is lost."""
    try:
      self._evaluate(names, state)
    except Exception:
      self._save(state)
      self.checkpoints.wait()
      raise

  def _save(self, state: State) -> None:
    examples = self.step * self.experiment.batch_size
    epoch, index = divmod(examples, self.experiment.data.num_train)
    flat_metrics = {f"{name}/{key}": value for name, values in self.results.items() for key, value in values.items()}
    meta = {
      "step": self.step,
      "config": configuration.as_json(self.config),
      "data_position": dict(examples=examples, epoch=epoch, index_in_epoch=index, seed=self.config.seed),
      "metrics": flat_metrics,
      "num_corrupt": int(self._num_corrupt),
    }
    self.checkpoints.save(self.parallel.gather(state), meta, flat_metrics)


def nonfinite_message(step: int, checkpoint_steps: list[int]) -> str:
  """The error for a step whose loss or gradient is not finite, with remedies."""
  last = f"The last checkpoint is of step {checkpoint_steps[-1]}." if checkpoint_steps else "There is no checkpoint."
  return (
    f"the loss or the gradient of step {step} is not finite. {last} Try a lower optimizer.learning_rate, a longer "
    "optimizer.warmup, optimizer.grad_clip_norm=1.0, model.dtype='float32', or skip_nonfinite=True to skip such steps."
  )


def draw_plots(experiment: Experiment, state: State, workdir: Path) -> dict[str, str]:
  """Draws `config.plots` into the work directory; returns their paths by name."""
  paths = {name: str(workdir / f"{name}.png") for name in experiment.config.plots}
  variables = experiment.parallel.host(state.eval_variables()) if paths else {}  # all processes together
  if jax.process_index() == 0:
    for name, path in paths.items():
      plots.draw(name, experiment, variables, workdir, Path(path))
  return paths


class StopSignal:
  """Remembers SIGTERM and SIGINT, so that the loop can stop between two steps. A second one stops at once."""

  def __init__(self) -> None:
    self.name = ""

  def __enter__(self):
    main = threading.current_thread() is threading.main_thread()  # the only one that may handle signals
    self._old = {s: signal.signal(s, self._remember) for s in (signal.SIGTERM, signal.SIGINT) if main}
    return self

  def __exit__(self, *_):
    for number, handler in self._old.items():
      signal.signal(number, handler)

  def now(self, step: int) -> bool:
    """Whether to stop before the next step; the same in all processes of a run."""
    if jax.process_count() == 1:
      return bool(self.name)
    if step % 10 == 0 and multihost_utils.process_allgather(np.array(bool(self.name))).any():
      self.name = self.name or "a signal to another process"
      return True
    return False

  def _remember(self, number, _):
    self.name = signal.Signals(number).name
    signal.signal(number, self._old[number])


def _write_json(path: Path, value: dict) -> None:
  """Writes the file whole or not at all."""
  if jax.process_index() == 0:
    part = path.with_suffix(".tmp")
    part.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(part, path)
