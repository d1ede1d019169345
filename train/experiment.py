"""What a config describes, without data or devices: model, objective, optimiser, and the step made of them."""

import importlib
import pkgutil
from functools import partial

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

import zoo
from train import config as configuration
from train import data, objectives, optim, rng
from train.step import State, init_state, make_step
from zoo.errors import check_call, nearest


class Program:
  """A training program, not yet compiled.

  Attributes:
    config: the config. batch_size: of all devices together. total_steps: of the whole training.
    model: from `zoo.create`. objective: the loss. optimizer, schedule: from `train.optim.make`.
    step: `train.step.make_step` for all of them; `step(axis=...)` for pmap.

  Raises:
    ValueError: anything wrong with these components.
  """

  def __init__(self, config: ConfigDict, total_steps: int):
    self.config, self.total_steps, self.batch_size = config, total_steps, config.batch_size
    if not 0 <= config.ema_decay < 1:
      raise ValueError(f"config.ema_decay is {config.ema_decay}; wanted 0 <= ema_decay < 1")
    self.model = zoo.create(config.model.name, **configuration.kwargs(config.model))
    self.objective = make_objective(config.objective)
    options = configuration.kwargs(config.optimizer)
    check_call(optim.make, options, "config.optimizer", given=("params", "total_steps", "model", "name"))
    self._variables = jax.eval_shape(self.make_variables)  # shapes
    params = self._variables["params"]
    self.optimizer, self.schedule = optim.make(
      params, total_steps, model=self.model, name=config.optimizer.name, **options
    )
    freeze = options.get("freeze", ())
    self.step = partial(
      make_step,
      self.objective,
      self.model,
      self.optimizer,
      grad_accum_steps=config.grad_accum_steps,
      ema_decay=config.ema_decay,
      skip_nonfinite=config.skip_nonfinite,
      freeze=lambda params: optim.stop_frozen(params, freeze),
    )

  def make_variables(self) -> dict:
    """The model's variables as the seed makes them."""
    key = rng.root(self.config.seed, self.config.prng_impl)
    shapes = zoo.family(self.config.model.name).inputs(self.model.config, 1)
    zeros = [jnp.zeros(s.shape, s.dtype) for s in shapes]
    # Linen leaves out what is empty; without parameters there is still a tree of them.
    return {"params": {}} | self.model.init(rng.streams(key, "params", "mask"), *zeros)

  def make_state(self, variables: dict) -> State:
    """The state of step 0 with these variables."""
    return init_state(variables, self.optimizer, ema=bool(self.config.ema_decay))

  def abstract_state(self) -> State:
    """Shapes of the state."""
    return jax.eval_shape(self.make_state, self._variables)

  def abstract_key(self) -> jax.ShapeDtypeStruct:
    """Shape of the root key."""
    return jax.eval_shape(lambda: rng.root(self.config.seed, self.config.prng_impl))

  def abstract_batch(self) -> dict:
    """Shapes of the global batch."""
    kind = data.kind(self.config.data.name)
    return kind.shapes(self.config.data, self.model.config, self.batch_size)


def make_objective(component: ConfigDict):
  """`train.objectives.NAME.Objective(**rest)`; every file there is an objective."""
  known = [module.name for module in pkgutil.iter_modules(objectives.__path__)]
  if component.name not in known:
    raise ValueError(f"unknown objective {component.name!r}{nearest(component.name, known)}")
  make = importlib.import_module(f"train.objectives.{component.name}").Objective
  options = configuration.kwargs(component)
  check_call(make, options, f"config.objective ({component.name})")
  return make(**options)
