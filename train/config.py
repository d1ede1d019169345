"""Loads a config file, applies overrides `key.path=value` and checks every key.

A config is a `ConfigDict` that `get_config()` makes from `defaults()`. Each component (model, data, objective, ...) is
a name and the keyword arguments of the function or class it names, whose signature is the schema.
"""

import ast
import contextlib
import importlib
import importlib.util
import json
import pkgutil
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from ml_collections import ConfigDict

import configs
from zoo.errors import nearest, type_fault

COMPONENTS = ("model", "init", "data", "objective", "optimizer", "evals")


def defaults() -> ConfigDict:
  """A config with every key at its default; keys that are empty or have an empty name must be set."""
  config = ConfigDict(
    dict(
      # Seed of initialisation, data order, masks and dropout; and the implementation of keys (`train.rng.root`).
      seed=0,
      prng_impl="threefry2x32",
      # `zoo.create(name, **rest)`.
      model=dict(name=""),
      # Pretrained parameters to start from: `zoo.weights.load_into(**config)`; an empty path for none.
      init=dict(path=""),
      # `train.data.NAME(**rest)`.
      data=dict(name=""),
      # `train.objectives.NAME.Objective(**rest)`.
      objective=dict(name=""),
      # `train.optim.make(**config)`.
      optimizer=dict(name=""),
      # Examples in a step, on all devices together; and the number of parts it is processed in, to need less memory.
      batch_size=0,
      grad_accum_steps=1,
      # Length: passes over the training split, or steps; set one of them.
      epochs=0.0,
      steps=0,
      # Decay of the moving average of the parameters, which evaluations use; 0 for none.
      ema_decay=0.0,
      # Skip steps whose loss or gradient is not finite, instead of stopping.
      skip_nonfinite=False,
      # `train.sharding.parallel(**config)`.
      parallel=dict(name="jit", data=-1, fsdp=1, tensor=1),
      # Name -> an evaluation of `train.evaluation.registry`; each has `every_steps` (0 = only at the end).
      evals=dict(),
      # `train.checkpoint.Checkpoints(**config)`: steps between two, how many of the last to keep, and the
      # evaluation metric, such as "val/accuracy", whose best checkpoint is kept too.
      checkpoint=dict(every_steps=0, max_to_keep=2, best_metric="", best_mode="max"),
      # Steps between two lines of metrics.
      log_every_steps=10,
      # Drawn at the end: names of `train.plots.registry.PLOTS`.
      plots=("loss_curve",),
    )
  )
  config.lock()
  for component in COMPONENTS:  # after the whole, which locks its parts
    cast(ConfigDict, config[component]).unlock()
  return config


def shipped() -> list[str]:
  """Names of the configs that are installed with the project; NAME:ARGUMENT, one for each of a config's `VARIANTS`."""
  names = []
  for module in pkgutil.iter_modules(configs.__path__):
    if not module.name.startswith("_"):
      variants = getattr(importlib.import_module(f"configs.{module.name}"), "VARIANTS", ())
      names += [f"{module.name}:{variant}" for variant in variants] or [module.name]
  return sorted(names)


def run_name(source: str) -> str:
  """The folder in runs/ that a config trains in by default: "glue_mnli" of "glue:mnli", "a" of "configs/a.py"."""
  name, _, argument = source.partition(":")
  return "_".join([Path(name).stem, *([argument] if argument else [])])


def load(source: str, overrides: Iterable[str] = ()) -> ConfigDict:
  """The config of a file, with overrides.

  Args:
    source: path of a Python file with `get_config()`, or the bare name of a shipped config. With ":ARGUMENT" at its end
      the config is that of `get_config("ARGUMENT")`; a file with `VARIANTS`, a collection of arguments, requires one.
    overrides: "key.path=value"; values are Python literals, anything else is a string.

  Raises:
    ValueError: no such config, argument, key or type; the nearest is named.
  """
  name, _, argument = source.partition(":")
  path = Path(name)
  if not path.suffix:
    path = path.with_suffix(".py")
  if not path.exists() and path.parent in (Path("."), Path("configs")) and not path.stem.startswith("_"):
    path = Path(configs.__path__[0]) / path.name
  if not path.exists():
    raise ValueError(f"there is no config {source!r}, neither a file nor shipped{nearest(source, shipped())}")
  spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
  assert spec and spec.loader
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if (variants := getattr(module, "VARIANTS", ())) and argument not in variants:
    fault = (
      f"has no argument {argument!r}" if argument else f"requires an argument, as in {name}:{next(iter(variants))}"
    )
    raise ValueError(f"config {name} {fault}{nearest(argument, variants)}")
  try:
    config = module.get_config(argument) if argument else module.get_config()
  except (KeyError, AttributeError) as error:
    # The library's message contains the whole config besides the unknown key.
    wrong = re.search(r'Key "(\w+)"', str(error))
    what = f"config has no {wrong[1]!r}{nearest(wrong[1], defaults())}" if wrong else error
    raise ValueError(f"{path}: {what}") from error
  except TypeError as error:
    raise ValueError(f"{path}: {error}") from error
  for override in overrides:
    apply(config, override)
  return config


def as_json(config: ConfigDict) -> dict:
  """The config as `config.json` and checkpoints hold it: tuples are lists."""
  return json.loads(json.dumps(config.to_dict()))


def restore(saved: dict) -> ConfigDict:
  """The config of a run, the inverse of `as_json`."""
  config = defaults()
  for key, value in saved.items():
    config[key] = tuple(value) if isinstance(value, list) else value
  return config


def apply(config: ConfigDict, override: str) -> None:
  """Applies "key.path=value" in place."""
  path, equals, text = override.partition("=")
  if not equals:
    raise ValueError(f"{override!r} is not an override; wanted key.path=value, such as optimizer.learning_rate=1e-3")
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError):
    value = text
  node, keys = cast(Any, config), path.split(".")
  for i, key in enumerate(keys[:-1]):
    if not isinstance(node, ConfigDict) or key not in node:
      raise ValueError(f"config has no {'.'.join(keys[: i + 1])!r}{nearest(key, _keys(node))}")
    node = node[key]
  if not isinstance(node, ConfigDict) or (node.is_locked and keys[-1] not in node):
    raise ValueError(f"config has no {path!r}{nearest(keys[-1], _keys(node))}")
  component = node.get(keys[-1])
  if isinstance(component, ConfigDict) and not isinstance(value, dict):
    inside = "name" if "name" in component else next(iter(component), "name")
    raise ValueError(f"config.{path} is {value!r}; set its keys one by one, such as {path}.{inside}={value}")
  try:
    # A component is checked against its signature when it is made; the types of all other keys are checked here.
    with node.ignore_type() if keys[0] in COMPONENTS else contextlib.nullcontext():
      node[keys[-1]] = value
  except TypeError as error:
    fault = type_fault(value, type(node[keys[-1]])) or f"{value!r}: {error}"
    raise ValueError(f"config.{path} is {fault}") from error


def _keys(node) -> list[str]:
  return list(node) if isinstance(node, ConfigDict) else []


def kwargs(component: ConfigDict) -> dict:
  """The keyword arguments of a component, without its name; lists become tuples."""
  result = {k: tuple(v) if isinstance(v, list) else v for k, v in component.to_dict().items()}
  result.pop("name", None)
  return result


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
  """Lines "key: old -> new" for all keys in which two nested dicts differ."""
  lines = []
  for key in sorted({*old, *new}):
    a, b = old.get(key, "(not set)"), new.get(key, "(not set)")
    if isinstance(a, dict) and isinstance(b, dict):
      lines += differences(a, b, f"{prefix}{key}.")
    elif a != b:
      lines.append(f"{prefix}{key}: {a!r} -> {b!r}")
  return lines
