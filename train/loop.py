"""A training run, from its config to its last checkpoint. The only module that knows all the others."""

import contextlib
import json
import math
import os
import signal
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

import zoo
from train import config as configuration
from train import data, metrics, rng, sharding
from train.checkpoint import Checkpoints
from train.evaluation import evaluations
from train.experiment import Program
from train.plan import compiler
from train.plots import registry
from train.step import State
from zoo.errors import check_call, nearest
from zoo.weights import load_into
from zoo.weights.sources import check_exists

# Config keys that say how a run runs and not what it computes: a resumed run may have others.
MAY_CHANGE = ("parallel", "evals", "checkpoint", "log_every_steps", "plots")


class NonFinite(ValueError):
  """The loss is no longer a number."""


class Mismatch(ValueError):
  """The run in the work directory was made with another config."""


class Run(Program):
  """A program with its data and devices; what evaluations and pictures may know of it.

  Attributes (beside those of `Program`):
    data: the data set. parallel: `train.sharding.Jit` or `Pmap`.
  """

  def __init__(self, config: ConfigDict):
    check_call(sharding.parallel, config.parallel, "config.parallel", given=("axes",))
    if config.log_every_steps < 1:
      raise ValueError(f"config.log_every_steps is {config.log_every_steps}; wanted at least 1 step")
    self.parallel = sharding.parallel(**config.parallel, axes=zoo.family(config.model.name).LOGICAL_AXES)
    sharding.check_batch(config.batch_size, self.parallel.data_devices, config.grad_accum_steps, jax.process_count())
    self.data = data.make(config.data.name, **configuration.kwargs(config.data))
    super().__init__(config, self._count_steps(config))
    self.data.check_fit(self.model.config, self.objective)
    for name in config.plots:
      registry.check(name, self)

  def make_evaluations(self) -> dict[str, evaluations.Evaluation]:
    """Those of the config, by their names there."""
    known = [
      name
      for name, function in vars(evaluations).items()
      if getattr(function, "__annotations__", {}).get("return") is evaluations.Evaluation
    ]
    made = {}
    for name, component in self.config.evals.items():
      if not isinstance(component, ConfigDict) or "name" not in component:
        given = component.to_dict() if isinstance(component, ConfigDict) else component
        raise ValueError(f"config.evals.{name} is {given!r}; wanted a name and its arguments, such as name='loss'")
      if component.name not in known:
        raise ValueError(f"config.evals.{name}: unknown evaluation {component.name!r}{nearest(component.name, known)}")
      make = getattr(evaluations, component.name)
      options = configuration.kwargs(component)
      check_call(make, options, f"config.evals.{name} ({component.name})", given=("run",))
      try:  # what would otherwise be found missing after the last step
        self.data.num_eval(options.get("split"))
      except ValueError as error:
        cure = f"set evals.{name}.split or data.eval_split, or evaluate nothing: evals={{}}"
        raise ValueError(f"config.evals.{name}: {error}; {cure}") from error
      made[name] = make(self, **options)
    return made

  def about(self) -> str:
    """What is trained, on what and where, in a line for the log."""
    devices = jax.devices()
    parts = [
      f"{self.config.model.name}, {compiler.count_parameters(self.abstract_state().params):,} parameters",
      f"on {len(devices)} x {devices[0].device_kind}",
      f"{self.total_steps:,} steps of {self.batch_size:,} {self.data.unit}",
    ]
    if hasattr(self.data, "about"):
      parts.append(self.data.about(self.batch_size, self.config.seed))
    return "; ".join(parts)

  def _count_steps(self, config: ConfigDict) -> int:
    if config.epochs < 0 or config.steps < 0 or bool(config.epochs) == bool(config.steps):
      raise ValueError(
        f"config.epochs is {config.epochs} and config.steps is {config.steps}; wanted one of them, and 0 for the "
        "other, such as epochs=0 steps=1000"
      )
    return config.steps or max(round(config.epochs * self.data.num_train / config.batch_size), 1)

  def start(self) -> State:
    """The state of step 0, on the devices: from the seed, then whatever `config.init` replaces."""
    options = configuration.kwargs(self.config.init)
    check_call(load_into, options, "config.init", given=("model", "variables"))
    if not options["path"]:
      return self.parallel.init(lambda: self.make_state(self.make_variables()))
    variables = load_into(self.model, jax.device_get(jax.jit(self.make_variables)()), **options)
    return self.parallel.init(self.make_state, jax.device_get(variables))

  def checkpointed(self) -> State:
    """Shapes of the state as a checkpoint holds it, with where its arrays go on these devices."""
    return self.parallel.abstract(self.abstract_state())

  def jitted_step(self) -> Callable:
    """The step over all devices. To lower it and to count its operations traces it but once."""
    return self.parallel.compile(self.step(axis=self.parallel.axis))


def eval_variables(state: State) -> dict:
  """What is evaluated and handed on: the average of the parameters where there is one."""
  return {"params": state.params if state.ema_params is None else state.ema_params, **state.model_state}


def check_workdir(workdir: Path) -> None:
  """Raises ValueError where the directory cannot be written to."""
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=workdir) as file:
      file.write(b"0")
  except OSError as error:
    raise ValueError(f"cannot write to the work directory {workdir}: {error.strerror}") from error


def check_same_config(saved: dict, config: dict) -> None:
  """Raises Mismatch, listing the differences, where a run cannot go on under this config."""
  old, new = ({k: v for k, v in c.items() if k not in MAY_CHANGE} for c in (saved, config))
  if lines := configuration.differences(old, new):
    raise Mismatch(
      "the run in this work directory was made with another config:\n  "
      + "\n  ".join(lines)
      + "\nGive another --workdir, or --override-config to go on under the new config all the same."
    )


class StopSignal:
  """Remembers SIGTERM and SIGINT, so that the loop can stop between two steps. A second one stops at once."""

  def __init__(self):
    self.name = ""

  def __enter__(self):
    main = threading.current_thread() is threading.main_thread()  # the only one that may handle signals
    self._old = {s: signal.signal(s, self._remember) for s in (signal.SIGTERM, signal.SIGINT) if main}
    return self

  def __exit__(self, *_):
    for number, handler in self._old.items():
      signal.signal(number, handler)

  def now(self, step: int) -> bool:
    """Whether to stop before the next step; all processes of a run answer alike."""
    if jax.process_count() == 1:
      return bool(self.name)
    if step % 10 == 0 and multihost_utils.process_allgather(np.array(bool(self.name))).any():
      self.name = self.name or "a signal to another process"
      return True
    return False

  def _remember(self, number, _):
    self.name = signal.Signals(number).name
    signal.signal(number, self._old[number])


def train(config: ConfigDict, workdir: str | Path, *, resume: bool = True, override_config: bool = False) -> dict:
  """Trains, evaluates, writes checkpoints; goes on where the run in `workdir` stopped.

  Args:
    config: from `train.config.load`.
    workdir: for checkpoints, metrics and pictures.
    resume: go on with the run in `workdir`; False wants an empty one.
    override_config: go on even if the run was made with another config.

  Returns:
    the last metrics of every evaluation, "step", "stopped" (the signal's name, or ""), and "speed", what
    `metrics.Meter` read last.

  Raises:
    ValueError: anything wrong with config, data, work directory or checkpoints.
    NonFinite: the loss is no longer a number.
  """
  workdir = Path(workdir)
  # First, so that a wrong config leaves no empty directory.
  run = Run(config)
  evaluations = run.make_evaluations()
  if (judge := config.checkpoint.best_metric.partition("/")[0]) and judge not in evaluations:
    known = nearest(judge, evaluations) if evaluations else ", for there is none: set checkpoint.best_metric=''"
    raise ValueError(f"config.checkpoint.best_metric: no evaluation {judge!r}{known}")
  if config.init.path and not workdir.exists():  # a run that goes on needs it no more
    sources = {configuration.run_name(name): name for name in configuration.shipped()}
    name = sources.get(Path(config.init.path).name)
    check_exists(config.init.path, f"; `zoo train {name}` makes it" if name else "")
  check_workdir(workdir)
  saved = json.loads(json.dumps(config.to_dict()))  # as JSON gives it back: tuples are lists
  notes: list[str] = []  # said before there is a log to say them
  checkpoints = Checkpoints(workdir, **config.checkpoint, note=notes.append)
  if checkpoints.steps and not resume:
    raise ValueError(f"{workdir} holds a run (steps {checkpoints.steps}); resume it, or give another --workdir")
  if (meta := checkpoints.newest_meta()) and not override_config:
    check_same_config(meta["config"], saved)

  checkpoints.check_room(run.abstract_state())
  found = checkpoints.restore(run.checkpointed())
  state = run.parallel.scatter(found[0]) if found else run.start()
  first = int(run.parallel.host(state.step))
  _write_json(workdir / "config.json", saved)

  with metrics.Log(workdir, run.total_steps, first, run.data.unit) as log, StopSignal() as stop:
    notes.append(run.about())
    for text in notes:
      log.note(text)
    if found:
      log.note(f"going on at step {first} of {run.total_steps}")
    state, result = _loop(run, state, first, evaluations, checkpoints, log, stop, saved)
  if not result["stopped"]:
    result["plots"] = {name: str(workdir / f"{name}.png") for name in config.plots}
    variables = run.parallel.host(eval_variables(state)) if config.plots else {}
    if jax.process_index() == 0:
      for name, path in result["plots"].items():
        registry.draw(name, run, variables, workdir, Path(path))
  return result


def open_run(source: str, overrides: Iterable[str] = ()) -> tuple[Run, dict, int]:
  """A run from its work directory, or from a config (with `init.path` for pretrained parameters).

  Where `init.path` is among the overrides, a work directory tells the config alone, and the parameters are those of
  `init`.

  Returns:
    the run, its variables (the average of the parameters where there is one) on the devices, and the step.

  Raises:
    ValueError: no such run or config, or it has no whole checkpoint.
  """
  workdir = Path(source)
  if not (workdir / "config.json").exists():
    if workdir.is_dir():
      raise ValueError(f"{source} holds no run: there is no config.json in it")
    if len(workdir.parts) > 1 and not workdir.suffix:
      raise ValueError(f"there is no run in {source}, and no such directory")
    run = Run(configuration.load(source, overrides))
    if not run.config.init.path:
      print(f"{source} names no weights (init.path): these parameters are random", file=sys.stderr)
    return run, eval_variables(run.start()), 0
  try:
    config = configuration.restore(json.loads((workdir / "config.json").read_text()))
  except (ValueError, KeyError, AttributeError) as error:
    raise ValueError(f"{workdir / 'config.json'} is no config of a run: {error}") from error
  overrides = list(overrides)
  given = any(override.startswith("init.path=") for override in overrides)
  if given:
    config.init = configuration.defaults().init  # what the run itself left out or kept is no matter here
  for override in overrides:
    configuration.apply(config, override)
  run = Run(config)
  if given:
    return run, eval_variables(run.start()), 0
  checkpoints = Checkpoints(workdir, **config.checkpoint, read_only=True)
  found = checkpoints.restore(run.checkpointed())
  if not found:
    raise ValueError(f"the run in {source} has no checkpoint yet")
  state = run.parallel.scatter(found[0])
  return run, eval_variables(state), int(run.parallel.host(state.step))


def _loop(
  run: Run,
  state: State,
  first: int,
  evaluations: dict[str, evaluations.Evaluation],
  checkpoints: Checkpoints,
  log: metrics.Log,
  stop: StopSignal,
  saved: dict,
) -> tuple[State, dict]:
  """From step `first` to the end, or to the signal."""
  config, parallel = run.config, run.parallel
  key = parallel.put(rng.root(config.seed, config.prng_impl))
  source = run.data.train_batches(run.batch_size, config.seed, first, jax.process_index(), jax.process_count())
  count_invalid = jax.jit(lambda valid: (~valid).sum())
  jitted, schedule = run.jitted_step(), jax.jit(run.schedule)
  speed: dict = {}
  # Counted on the devices, so that the loop does not wait for them.
  corrupt = (checkpoints.newest_meta() or {}).get("corrupt", 0) if first else 0
  results: dict = {}
  judge = checkpoints.best_metric.partition("/")[0]

  def finish_step(step: int, values) -> None:
    # The gradient too: a checkpoint of what it makes of the parameters would not be a good one.
    numbers = parallel.host((values["loss"], values["grad_norm"]))
    if not config.skip_nonfinite and not all(map(math.isfinite, numbers)):
      raise NonFinite(_nonfinite_advice(step, checkpoints))

  def save(step: int, state: State) -> None:
    epoch, place = divmod(step * run.batch_size, run.data.num_train)
    position = dict(examples=step * run.batch_size, epoch=epoch, place=place, seed=config.seed)
    flat = {f"{name}/{k}": v for name, values in results.items() for k, v in values.items()}
    meta = dict(step=step, config=saved, data=position, metrics=flat, corrupt=int(corrupt))
    checkpoints.save(parallel.gather(state), meta, flat)

  def run_evaluations(step: int, state: State) -> None:
    for name, (every, function) in evaluations.items():
      if step == run.total_steps or (every and step % every == 0):
        with meter.pause():
          log.status(f"evaluating: {name}")
          results[name] = function(eval_variables(state))
        log.eval(step, name, results[name])
        best, known = checkpoints.best_metric, {f"{name}/{k}" for k in results[name]}
        if name == judge and best not in known:
          raise ValueError(f"config.checkpoint.best_metric: no metric {best!r}{nearest(best, known)}")

  meter = metrics.Meter(run.batch_size, run.data.unit)
  programs = {}  # one for each shape of a batch, and its FLOPs; images have but one
  pending: deque = deque()
  step = first
  with contextlib.closing(sharding.prefetch(source, parallel.put_batch)) as batches:
    while step < run.total_steps and not stop.now(step):
      with meter.waiting():
        batch = next(batches)
      shapes = tuple(array.shape for array in batch.values())
      if shapes not in programs:
        log.status("compiling the step")
        with meter.compiling():
          programs[shapes] = (
            jitted.lower(state, batch, key).compile(),
            2 * compiler.count_macs(jitted, state, batch, key),
          )
      if run.data.skip_corrupt:  # examples left out so far, of all processes
        corrupt += count_invalid(batch["valid"])
      program, flops = programs[shapes]
      state, values = program(state, batch, key)
      step += 1
      meter.step(flops)
      pending.append((step, values))
      if len(pending) > 1:  # the one before is looked at while the device works on this one
        finish_step(*pending.popleft())
      evaluating = step == run.total_steps or any(every and step % every == 0 for every, _ in evaluations.values())
      saving = step == run.total_steps or (checkpoints.every_steps and step % checkpoints.every_steps == 0)
      logging = step % config.log_every_steps == 0 or step == run.total_steps
      if evaluating or saving or logging:
        while pending:
          finish_step(*pending.popleft())
      if logging:
        scalars = {k: float(v) for k, v in parallel.host(values).items()}
        if run.data.skip_corrupt:
          scalars[f"corrupt_{run.data.unit}"] = int(corrupt)
        speed |= (latest := meter.read())
        log.train(step, scalars | {"learning_rate": float(schedule(step - 1))} | latest)
      results.clear()  # a checkpoint is judged by its own step's metrics
      if evaluating:
        try:
          run_evaluations(step, state)
        except Exception:  # what was learned is not lost for that
          save(step, state)
          checkpoints.wait()
          raise
      if saving:
        with meter.pause():
          save(step, state)
  while pending:
    finish_step(*pending.popleft())
  if step < run.total_steps:
    save(step, state)
  elif step == first:  # the run was complete already
    run_evaluations(step, state)
  checkpoints.close()
  return state, {
    "step": step,
    "stopped": stop.name if step < run.total_steps else "",
    "speed": speed,
    **{k: dict(v) for k, v in results.items()},
  }


def _nonfinite_advice(step: int, checkpoints: Checkpoints) -> str:
  checkpoints.wait()
  steps = checkpoints.steps
  return (
    f"the loss or the gradient of step {step} is not finite. "
    + (f"The last good checkpoint is of step {steps[-1]}. " if steps else "There is no checkpoint yet. ")
    + "Try a lower optimizer.learning_rate, a longer optimizer.warmup, optimizer.grad_clip_norm=1.0, "
    "model.dtype='float32', or skip_nonfinite=True to leave such steps out."
  )


def _write_json(path: Path, value: dict) -> None:
  """Whole or not at all."""
  if jax.process_index() == 0:
    part = path.with_suffix(".tmp")
    part.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(part, path)
