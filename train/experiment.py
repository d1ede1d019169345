"""What a config describes: model, objective, optimiser, data and devices; opened from a config or a work directory."""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

import zoo
from train import config as configuration
from train import data, objectives, optim, rng, sharding
from train.checkpoint import Checkpoints
from train.plan.macs import count_parameters
from train.step import State, init_state, make_step
from zoo.errors import check_call
from zoo.weights import load_into

# The length of a schedule where nothing is trained and the data, which know the length of an epoch, are not loaded.
ANY_STEPS = 1_000_000


class Experiment:
  """The components that a config names, made and checked against each other.

  Attributes:
    config: from `train.config`.
    model: from `zoo.create`.
    objective: the loss, from `train.objectives`.
    optimizer, schedule: from `train.optim.make`.
    data: the data set, from `train.data`; None if it is not loaded.
    parallel: `train.sharding.Jit` or `Pmap`.
    batch_size: examples in a step, on all devices together.
    total_steps: of the whole training.
  """

  def __init__(self, config: ConfigDict, *, parallel: sharding.Jit | None = None, load_data: bool = True) -> None:
    """Makes the components; nothing is allocated on the devices.

    Args:
      config: from `train.config`.
      parallel: in place of `config.parallel`, such as a mesh of devices to compile for.
      load_data: False where only the shapes of batches are needed.

    Raises:
      ValueError: a component that is unknown, misconfigured, or does not fit another.
    """
    self.config = c = cast(Any, config)  # the attributes of a ConfigDict have no types
    check_call(sharding.parallel, c.parallel, "config.parallel", given=("axes",))
    if not 0 <= c.ema_decay < 1:
      raise ValueError(f"config.ema_decay is {c.ema_decay}; wanted 0 <= ema_decay < 1")
    self.batch_size: int = c.batch_size
    self.parallel = parallel or sharding.parallel(**c.parallel, axes=zoo.family(c.model.name).LOGICAL_AXES)
    sharding.check_batch(
      c.batch_size, self.parallel.data_devices, c.grad_accum_steps, 1 if parallel else jax.process_count()
    )
    self.data: Any = data.make(c.data.name, **configuration.kwargs(c.data)) if load_data else None
    self.total_steps: int = self._count_steps() if load_data else c.steps or ANY_STEPS
    self.model = zoo.create(c.model.name, **configuration.kwargs(c.model))
    self.objective: Any = objectives.make(c.objective.name, **configuration.kwargs(c.objective))
    options = configuration.kwargs(c.optimizer)
    check_call(optim.make, options, "config.optimizer", given=("params", "total_steps", "model", "name"))
    self._variables = jax.eval_shape(self.init_variables)  # shapes
    self.optimizer, self.schedule = optim.make(
      self._variables["params"], self.total_steps, model=self.model, name=c.optimizer.name, **options
    )
    self._freeze = options.get("freeze", ())
    if load_data:
      self.data.check_fit(self.model.config, self.objective)

  def _count_steps(self) -> int:
    epochs, steps = self.config.epochs, self.config.steps
    if epochs < 0 or steps < 0 or bool(epochs) == bool(steps):
      raise ValueError(
        f"config.epochs is {epochs} and config.steps is {steps}; set one of them, and the other to 0, such as "
        "epochs=0 steps=1000"
      )
    return steps or max(round(epochs * self.data.num_train / self.batch_size), 1)

  # ---- the state

  def init_variables(self) -> dict:
    """The model's variables, initialised from the seed."""
    key = rng.root(self.config.seed, self.config.prng_impl)
    shapes = zoo.family(self.config.model.name).inputs(self.model.config, 1)
    zeros = [jnp.zeros(s.shape, s.dtype) for s in shapes]
    # Linen omits empty collections; a model without parameters has an empty "params".
    return {"params": {}, **self.model.init(rng.streams(key, "params", "mask"), *zeros)}

  def init_state(self, variables: dict) -> State:
    """The state of step 0 with these variables."""
    return init_state(variables, self.optimizer, ema=bool(self.config.ema_decay))

  def start(self) -> State:
    """The state of step 0 on the devices: initialised from the seed, then loaded from `config.init`."""
    options = configuration.kwargs(self.config.init)
    check_call(load_into, options, "config.init", given=("model", "variables"))
    if not options["path"]:
      return self.parallel.init(lambda: self.init_state(self.init_variables()))
    variables = load_into(self.model, jax.device_get(jax.jit(self.init_variables)()), **options)
    return self.parallel.init(self.init_state, jax.device_get(variables))

  def restore(self, checkpoints: Checkpoints) -> State | None:
    """The state of the newest intact checkpoint on the devices; None if there is none."""
    found = checkpoints.restore(self.parallel.abstract(self.abstract_state()))
    return self.parallel.scatter(found[0]) if found else None

  # ---- the step

  def make_step(
    self, parallel: sharding.Jit | sharding.Pmap | None = None
  ) -> Callable[[State, dict, jax.Array], tuple[State, dict]]:
    """The training step (`train.step.make_step`), not compiled, for several devices where `parallel` is given."""
    return make_step(
      self.objective,
      self.model,
      self.optimizer,
      grad_accum_steps=self.config.grad_accum_steps,
      ema_decay=self.config.ema_decay,
      skip_nonfinite=self.config.skip_nonfinite,
      freeze=lambda params: optim.stop_frozen(params, self._freeze),
      axis=parallel and parallel.axis,
      sum_once=parallel and parallel.sum_once,
    )

  def parallel_step(self) -> Callable:
    """The jitted step over all devices. To lower it and to count its operations traces it but once."""
    return self.parallel.compile(self.make_step(self.parallel))

  # ---- shapes

  def abstract_state(self) -> State:
    """Shapes of the state."""
    return jax.eval_shape(self.init_state, self._variables)

  def abstract_batch(self) -> dict:
    """Shapes of the global batch."""
    kind = data.kind(self.config.data.name)
    return kind.shapes(self.config.data, self.model.config, self.batch_size)

  def abstract_key(self) -> jax.ShapeDtypeStruct:
    """Shape of the root key."""
    return jax.eval_shape(lambda: rng.root(self.config.seed, self.config.prng_impl))

  def describe(self) -> str:
    """A line for the log: model, devices, number of steps, data."""
    devices = jax.devices()
    parts = [
      f"{self.config.model.name}, {count_parameters(self._variables['params']):,} parameters",
      f"on {len(devices)} x {devices[0].device_kind}",
      f"{self.total_steps:,} steps of {self.batch_size:,} {self.data.unit}",
    ]
    return "; ".join(filter(None, [*parts, self.data.about(self.batch_size, self.config.seed)]))


def open_run(source: str | Path, overrides: Iterable[str] = ()) -> tuple[Experiment, dict, int]:
  """Opens a run by its work directory, or a config (with `init.path` for pretrained parameters).

  If `init.path` is among the overrides, a work directory gives only the config, and the parameters are loaded from
  `init.path`.

  Returns:
    the experiment; the model's variables on the devices, with the averaged parameters if the run keeps an average; and
    the step they are of.

  Raises:
    ValueError: no such run or config, or the run has no intact checkpoint.
  """
  workdir, overrides = Path(source), list(overrides)
  loads_weights = any(override.startswith("init.path=") for override in overrides)
  if not (workdir / "config.json").exists():
    if workdir.is_dir():
      raise ValueError(f"{source} holds no run: there is no config.json in it")
    if len(workdir.parts) > 1 and not workdir.suffix:
      raise ValueError(f"there is no run in {source}, and no such directory")
    experiment = Experiment(configuration.load(str(source), overrides))
    if not experiment.config.init.path:
      print(f"{source} names no weights (init.path): these parameters are random", file=sys.stderr)
    return experiment, experiment.start().eval_variables(), 0
  try:
    config = configuration.restore(json.loads((workdir / "config.json").read_text()))
  except (ValueError, KeyError, AttributeError) as error:
    raise ValueError(f"{workdir / 'config.json'} is not the config of a run: {error}") from error
  if loads_weights:
    config.init = configuration.defaults().init  # without the ignore and reinit of the run itself
  for override in overrides:
    configuration.apply(config, override)
  experiment = Experiment(config)
  if loads_weights:
    return experiment, experiment.start().eval_variables(), 0
  state = experiment.restore(Checkpoints(workdir, **config.checkpoint, read_only=True))
  if state is None:
    raise ValueError(f"the run in {source} has no checkpoint yet")
  return experiment, state.eval_variables(), int(experiment.parallel.host(state.step))
