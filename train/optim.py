"""Optimisers by name, most of optax; schedules; weight decay, layer-wise rates and freezing by parameter path."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from zoo import partitioning, registry
from zoo.errors import check_call, nearest
from zoo.layers.stack import STACKED


def _scale_by_trust_ratio(
  adapted: Callable, coefficient: float = 1.0, eps: float = 0.0
) -> optax.GradientTransformation:
  """Updates times the norm of the parameter over their own, layer by layer, also where these share a stacked array.

  Args:
    adapted: from a tree to booleans: which parameters; the others' updates stay as they are.
    coefficient: times the ratio. eps: added to the norm of the update.
  """

  def scale(path: str, update: jax.Array, param: jax.Array, wanted: bool) -> jax.Array:
    if not wanted:
      return update
    own = range(1 if f"/{STACKED}/" in f"/{path}" else 0, param.ndim)
    size, change = (jnp.sqrt(jnp.square(a).sum(tuple(own), keepdims=True)) for a in (param, update))
    moves = (size > 0) & (change > 0)
    return update * jnp.where(moves, coefficient * size / jnp.where(moves, change + eps, 1.0), 1.0)

  return optax.stateless(lambda updates, params: partitioning.map_with_path(scale, updates, params, adapted(params)))


def lamb(
  learning_rate: optax.Schedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-6,
  *,
  weight_decay: float = 0.0,
  decays: Callable,
) -> optax.GradientTransformation:
  """LAMB (You et al. 2020, algorithm 2).

  As in the authors' code, what does not decay, such as norms and biases, is trained by Adam: its rate is not adapted.
  (That of `optax.lamb` is, so a bias of 0 hardly leaves it.)
  """
  return optax.chain(
    optax.scale_by_adam(b1, b2, eps),
    optax.add_decayed_weights(weight_decay, decays),
    _scale_by_trust_ratio(decays),
    optax.scale_by_learning_rate(learning_rate),
  )


def lars(
  learning_rate: optax.Schedule,
  trust_coefficient: float = 0.001,
  eps: float = 0.0,
  momentum: float = 0.9,
  nesterov: bool = False,
  *,
  weight_decay: float = 0.0,
  decays: Callable,
) -> optax.GradientTransformation:
  """LARS (You et al. 2017), as released: the rate of what decays is adapted, and of nothing else."""
  return optax.chain(
    optax.add_decayed_weights(weight_decay, decays),
    _scale_by_trust_ratio(decays, trust_coefficient, eps),
    optax.scale_by_learning_rate(learning_rate),
    optax.trace(momentum, nesterov),
  )


# name -> (the function, its argument for the decay rate, its argument for the mask of what decays).
OPTIMIZERS = {
  "adamw": (optax.adamw, "weight_decay", "mask"),
  "lamb": (lamb, "weight_decay", "decays"),
  "lars": (lars, "weight_decay", "decays"),
  "lion": (optax.lion, "weight_decay", "mask"),
  "adafactor": (optax.adafactor, "weight_decay_rate", "weight_decay_mask"),
  "muon": (optax.contrib.muon, None, None),
  "sgd": (optax.sgd, None, None),
}
SCHEDULES = ("constant", "cosine", "linear", "rsqrt", "step")


def make_schedule(
  name: str,
  peak: float,
  warmup: int,
  total: int,
  *,
  final: float = 0.0,
  timescale: int = 10_000,
  boundaries: tuple[float, ...] = (),
) -> optax.Schedule:
  """Learning rate by step: linear warmup from 0 to `peak`, then the named decay.

  Args:
    name: "constant"; "cosine" and "linear" fall to `final` at `total`; "rsqrt" falls as
      1 / sqrt(1 + (step - warmup) / timescale) (Zhai et al. 2022, 3.5); "step" falls to a tenth at each of
      `boundaries`.
    peak: the highest rate.
    warmup: steps of warmup.
    total: steps in all.
    final: the last rate.
    timescale: of "rsqrt", in steps.
    boundaries: of "step", as shares of all steps.

  Raises:
    ValueError: unknown name, a warmup that leaves no step to train, or boundaries that are not between its end and the
      last.
  """
  if name not in SCHEDULES:
    raise ValueError(f"unknown schedule {name!r}{nearest(name, SCHEDULES)}")
  if not 0 <= warmup < total:
    raise ValueError(f"warmup takes {warmup} of {total} steps; wanted fewer than all")
  at = [round(share * total) for share in boundaries]
  if (name == "step") != bool(at) or any(not warmup < step < total for step in at):
    raise ValueError(
      f"boundaries is {boundaries} of the schedule {name!r}; wanted shares of all {total} steps, after the {warmup} of "
      "warmup, for 'step', and none for the others"
    )
  decay = {
    "constant": lambda: optax.constant_schedule(peak),
    "cosine": lambda: optax.cosine_decay_schedule(peak, total - warmup, final / peak if peak else 0.0),
    "linear": lambda: optax.linear_schedule(peak, final, total - warmup),
    "rsqrt": lambda: lambda step: peak / jnp.sqrt(1 + step / timescale),
    "step": lambda: optax.piecewise_constant_schedule(peak, {step - warmup: 0.1 for step in at}),
  }[name]()
  if not warmup:
    return decay
  return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup])


def check_patterns(patterns: tuple[str, ...], params: dict, what: str) -> None:
  """Raises ValueError for patterns that no parameter path has: they would silently do nothing."""
  paths = list(partitioning.flatten(params))
  idle = [pattern for pattern in patterns if not any(re.search(pattern, path) for path in paths)]
  if idle:
    raise ValueError(f"{what}: no parameter matches {', '.join(map(repr, idle))}. Paths are such as {paths[:5]}")


def stop_frozen(params: dict, patterns: tuple[str, ...]) -> dict:
  """Parameters whose path matches pass no gradient, so the compiler leaves their backward pass out."""
  return partitioning.map_with_path(
    lambda path, p: jax.lax.stop_gradient(p) if partitioning.matches(patterns, path) else p, params
  )


def layer_scales(params: dict, decay: float, model: nn.Module) -> dict:
  """Layer-wise learning-rate decay: factor decay^(L + 1 - layer) (Clark et al. 2020; Bao et al. 2022).

  Args:
    params: the model's, arrays or shapes.
    decay: factor from each layer to the one below it.
    model: its family's `layer_of` specifies the layer of each parameter, from 0 to L + 1.

  Returns:
    path -> factor; stacked parameters get [L, 1, ...].

  Raises:
    ValueError: the family has no numbered layers.
  """
  family = registry.family_of(model)
  if not hasattr(family, "layer_of"):
    raise ValueError("layer_decay needs a model with blocks in its encoder, as ViT, BERT and Swin have them")

  def scale(path: str, leaf) -> np.ndarray:
    if f"/{STACKED}/" not in f"/{path}":
      layer = np.array(family.layer_of(model.config, path))
    else:
      blocks = [path.replace(f"{STACKED}/", f"block_{i:02d}/") for i in range(leaf.shape[0])]
      layer = np.array([family.layer_of(model.config, block) for block in blocks])
      layer = layer.reshape(-1, *[1] * (len(leaf.shape) - 1))
    return np.float32(decay) ** np.asarray(model.config.depth + 1 - layer, np.float32)

  return {path: scale(path, leaf) for path, leaf in partitioning.flatten(params).items()}


def _muon_dimensions(axes: partitioning.Axes, params: dict) -> dict:
  """The input and output axes of each kernel for Muon; None for what Adam trains.

  Muon is for hidden matrices: embeddings, heads and vectors go to Adam (Jordan et al. 2024), and depthwise
  convolutions, which are a vector for each position.
  """

  def dimensions(path, names):
    path = partitioning.path_name(path)
    if not path.endswith("kernel") or re.match(
      r"head/|encoder/(stage_0/)?patch/|(decoder/)?pixels/|.*/relative_position_bias/", path
    ):
      return None
    first = int(names[0] == "layers")
    split = first + (2 if names[first] == "heads" else 1)  # `attn/out` has two input axes, heads and head_dim
    if names[first].endswith("rows"):  # a convolution: its positions are inputs, too
      if "one" in names:
        return None
      split = len(names) - 1
    return optax.contrib.MuonDimensionNumbers(tuple(range(first, split)), tuple(range(split, len(names))))

  # Exactly tuple: where parameters are frozen optax puts empty named tuples in their place.
  return jax.tree_util.tree_map_with_path(
    dimensions, partitioning.logical_axes(params, axes), is_leaf=lambda node: type(node) is tuple
  )


def make(
  params: dict,
  total_steps: int,
  *,
  model: nn.Module | None = None,
  name: str = "adamw",
  learning_rate: float,
  schedule: str = "cosine",
  warmup: int | float = 0,
  final_learning_rate: float = 0.0,
  timescale: int = 10_000,
  boundaries: tuple[float, ...] = (),
  weight_decay: float = 0.0,
  no_decay: tuple[str, ...] | None = None,
  layer_decay: float = 1.0,
  grad_clip_norm: float = 0.0,
  freeze: tuple[str, ...] = (),
  **kwargs: Any,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """An optimiser for these parameters.

  Args:
    params: nested dict of arrays or shapes.
    total_steps: of the whole training.
    model: its family specifies which parameters do not decay, their layers, and their logical axes; None for
      parameters of no family, without layer-wise rates and Muon.
    name: one of `OPTIMIZERS`.
    learning_rate: the peak.
    schedule: one of `SCHEDULES`.
    warmup: steps, or a share of all steps when below 1.
    final_learning_rate, timescale, boundaries: of the schedule.
    weight_decay: times the learning rate, as in AdamW (Loshchilov & Hutter 2019).
    no_decay: regular expressions of paths that do not decay; None for the family's.
    layer_decay: factor from each layer to the one below it (`layer_scales`).
    grad_clip_norm: largest global gradient norm; 0 for none.
    freeze: regular expressions of paths that do not change; they have no optimiser state.
    **kwargs: of the optimiser's function, such as b1, b2, momentum.

  Returns:
    the transformation, and the schedule of the learning rate.

  Raises:
    ValueError: unknown name or argument (the nearest is named), or a pattern that matches nothing.
  """
  fields = dict(learning_rate=learning_rate, warmup=warmup, weight_decay=weight_decay, grad_clip_norm=grad_clip_norm)
  _check_arguments(name, fields, kwargs)
  if model is None and (name == "muon" or layer_decay != 1):
    raise ValueError("muon and layer_decay need the model whose parameters these are")
  steps = round(warmup * total_steps) if 0 < warmup < 1 else int(warmup)
  more: dict[str, Any] = dict(final=final_learning_rate, timescale=timescale, boundaries=boundaries)
  rate = make_schedule(schedule, learning_rate, steps, total_steps, **more)
  parts = [optax.clip_by_global_norm(grad_clip_norm)] if grad_clip_norm else []
  parts += _decayed_updates(name, rate, weight_decay, no_decay, model, kwargs)
  if model is not None and layer_decay != 1:
    scales = layer_scales(params, layer_decay, model)
    parts += [optax.stateless(lambda updates, _: partitioning.map_with_path(lambda path, u: u * scales[path], updates))]
  return _freeze(optax.chain(*parts), freeze, params), rate


def _freeze(
  optimizer: optax.GradientTransformation, patterns: tuple[str, ...], params: dict
) -> optax.GradientTransformation:
  """The optimiser for the parameters whose path matches no pattern; the others get no update and have no state."""
  if not patterns:
    return optimizer
  check_patterns(patterns, params, "config.optimizer.freeze")
  labels = partitioning.map_with_path(
    lambda path, _: "frozen" if partitioning.matches(patterns, path) else "trained", params
  )
  return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)


def _check_arguments(name: str, fields: Mapping[str, float], kwargs: Mapping) -> None:
  """Raises ValueError for arguments of `make` that are out of range, or that the named optimiser does not take.

  Args:
    name: of the optimiser.
    fields: arguments that may not be negative.
    kwargs: of the optimiser's function.
  """
  if name not in OPTIMIZERS:
    raise ValueError(f"unknown optimizer {name!r}{nearest(name, OPTIMIZERS)}")
  faults = [f"{key} is {value}; wanted 0 or more" for key, value in fields.items() if value < 0]
  if (warmup := fields["warmup"]) > 1 and warmup != int(warmup):
    faults.append(f"warmup is {warmup}; wanted a share of all steps, below 1, or a whole number of steps")
  if faults:
    raise ValueError("\n".join(f"config.optimizer: {fault}" for fault in faults))
  function, decay_argument, mask_argument = OPTIMIZERS[name]
  filled = tuple(a for a in ("learning_rate", decay_argument, mask_argument) if a)
  own = [n for n in inspect.signature(make).parameters if n not in ("params", "total_steps", "model", "kwargs")]
  check_call(function, kwargs, f"config.optimizer ({name})", given=filled, also=own)


def _decayed_updates(
  name: str,
  rate: optax.Schedule,
  weight_decay: float,
  no_decay: Sequence[str] | None,
  model: nn.Module | None,
  kwargs: Mapping[str, Any],
) -> list[optax.GradientTransformation]:
  """The named optimiser with weight decay; see `make` for the arguments."""
  function, decay_argument, mask_argument = OPTIMIZERS[name]
  options = dict(kwargs)
  patterns = cast(Sequence[str], no_decay)
  if no_decay is None:
    patterns = registry.family_of(model).NO_DECAY if model else partitioning.BIASES_AND_SCALES

  # A function of the tree it is given: where parameters are frozen, optax shows only the others.
  def decays(tree):
    return partitioning.map_with_path(lambda path, _: not partitioning.matches(patterns, path), tree)

  if name == "muon":
    axes = registry.family_of(cast(nn.Module, model)).LOGICAL_AXES
    options["muon_weight_dimension_numbers"] = partial(_muon_dimensions, axes)
  if decay_argument:
    options |= {decay_argument: weight_decay, mask_argument: decays}
  if name == "adafactor":  # the only one whose decay is not already times the rate
    options["weight_decay_rate"] = lambda step: weight_decay * rate(step)
  parts = [optax.add_decayed_weights(weight_decay, decays)] if name == "sgd" and weight_decay else []
  parts += [function(rate, **options)]
  if name == "muon" and weight_decay:  # optax would decay only what Muon trains, or also the vectors that Adam does
    parts += [optax.add_decayed_weights(lambda step: -weight_decay * rate(step), decays)]
  return parts
