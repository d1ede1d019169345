"""`load` and `load_into`: models with the weights of files."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from zoo import registry
from zoo.layers.stack import unstack_params
from zoo.weights import huggingface, tables
from zoo.weights.layouts import family_name, for_layout, layouts_of, likely_layout, shapes_of, stacked_as, unrolled
from zoo.weights.rules import WeightsError, convert
from zoo.weights.sources import Source, read


def load(
  path: str | Path,
  name: str | None = None,
  *,
  layout: str | None = None,
  ignore: str | Sequence[str] = (),
  resample: bool | str = False,
  average: bool = False,
  **overrides,
) -> tuple:
  """Makes a model with the weights of a file.

  A file of `zoo.save`, a training run's directory and a Hugging Face directory (`config.json`) specify their model. For
  any other file, give the model's name and the layout. Every parameter is read from the file; for a model with new
  parameters, such as a head of other classes, see `zoo.weights.load_into`.

  Args:
    path: .safetensors, .npz, .pt, .pth, .bin; a Hugging Face directory; the directory of a training run.
    name: the model; needed where the file does not specify it. With another name than that of a file of `zoo.save`, the
      file's overrides are not used.
    layout: layout of the file's keys: "zoo", or one of the family's `tables`, such as "huggingface" and "timm".
    ignore: regular expressions of keys to leave out; nothing else is left out silently.
    resample: True interpolates a position table made for another image size or window as the model does (its
      `resampling`); a string names one of `zoo.layers.position_embeddings.RESAMPLINGS`.
    average: of a training run, the moving average of the parameters.
    **overrides: fields of the model's config; they take precedence over the file's.

  Returns:
    the model and its variables, `{"params": ...}`

  Raises:
    WeightsError: the file cannot be read, or does not fit: all faults in one error. A ValueError.
    ValueError: unknown model or field.
  """
  source = read(path, average)
  name, fields = _described(path, source, name, overrides)
  model = registry.create(name, **fields)
  hint = " (`ignore` leaves out parts of the file; to keep initial values of the model: zoo.weights.load_into)"
  shapes = shapes_of(model)
  variables = _converted(path, source, model, unrolled(shapes), layout, ignore, resample, hint)
  return model, jax.tree.map(jnp.asarray, stacked_as(shapes, variables))


def load_into(
  model: nn.Module,
  variables: Mapping,
  path: str | Path,
  *,
  layout: str | None = None,
  ignore: str | Sequence[str] = (),
  reinit: str | Sequence[str] = (),
  resample: bool | str = False,
  average: bool = False,
) -> dict:
  r"""Pretrained weights for a model that has something new, such as another head: what fine-tuning starts from.

  Only what is named is ignored or keeps its initial value. For example, an MAE fine-tuned with averaged features:
  `ignore=r"params/(decoder|encoder/norm)/.*", reinit=r"head.*"`.

  Args:
    model: of any family whose parameters have the paths that the file fills.
    variables: the model's, as initialised.
    path, layout, resample, average: as for `load`.
    ignore: regular expressions of keys in the file to leave out.
    reinit: regular expressions of the model's paths, as "head/kernel", that keep their initial values.

  Returns:
    the new variables; `variables` is not changed.

  Raises:
    WeightsError: as for `load`; and where the activation, the epsilon or the number of heads differ.
  """
  source = read(path, average)
  _check_numerics(path, source, model)
  reinit = [reinit] if isinstance(reinit, str) else reinit
  ours = flatten_dict({k: unstack_params(v) for k, v in variables.items() if v}, sep="/")
  kept = {p: v for p, v in ours.items() if any(re.fullmatch(pattern, p.partition("/")[2]) for pattern in reinit)}
  template = unflatten_dict({p: v for p, v in ours.items() if p not in kept}, sep="/")
  hint = " (`ignore` leaves out parts of the file, `reinit` parts of the model)"
  filled = _converted(path, source, model, template, layout, ignore, resample, hint)
  every = kept | flatten_dict(filled, sep="/")
  return jax.tree.map(jnp.asarray, stacked_as(variables, unflatten_dict({p: every[p] for p in ours}, sep="/")))


def _converted(path, source: Source, model, template: Mapping, layout, ignore, resample, hint: str) -> dict:
  """The file's tensors as variables of the model, with its blocks unrolled."""
  layout = layout or source.layout
  layouts = layouts_of(model, template)
  if layout not in layouts:
    given = f"there is no layout {layout!r}" if layout else "the file does not specify its layout: pass layout=..."
    raise WeightsError(str(path), [f"{given}; there are {', '.join(layouts)}{likely_layout(source.tensors, layouts)}"])
  if resample is True and not hasattr(model.config, "resampling"):
    raise WeightsError(str(path), [f"{family_name(model)} has no table of positions to resample; leave resample out"])
  resampling = model.config.resampling if resample is True else resample
  variables = convert(
    source.tensors,
    layouts[layout],
    template if layout == "zoo" else for_layout(layout, layouts[layout], template),
    ignore=[ignore] if isinstance(ignore, str) else ignore,
    resample=resampling or "",
    about=f"{_whose(path, source)} (layout {layout}{likely_layout(source.tensors, layouts, layout)}) does not fit "
    f"{family_name(model)}{hint}",
  )
  if layout == "zoo":
    return variables
  others = {name: variables.pop(name) for name in template if name in variables}
  return {"params": variables} | others


def _described(path, source: Source, name: str | None, overrides: Mapping) -> tuple[str, dict]:
  """The model's name and all its overrides, from the file and the arguments."""
  if source.config is not None:
    return huggingface.describe(path, source, name, overrides)
  if name is None and source.model is None:
    raise WeightsError(str(path), ["the file does not specify its model: pass its name, and layout=..."])
  if source.model is not None and name in (None, source.model):
    return source.model, dict(source.overrides) | dict(overrides)
  return str(name), dict(overrides)


def _whose(path, source: Source) -> str:
  """The file, and its model, where it is specified."""
  return f"{path} of {source.model}" if source.model else str(path)


def _check_numerics(path, source: Source, model) -> None:
  """Checks the fields that shapes do not show, where the file specifies them."""
  fields, theirs, config = {}, tables.of(family_name(model)), getattr(model.config, "encoder", model.config)
  if source.config is not None and hasattr(theirs, "HUGGINGFACE"):
    fields = huggingface.fields_of(theirs, source)
  elif source.model is not None:
    fields = dataclasses.asdict(registry.create(source.model, **source.overrides).config)
  differ = [
    f"was trained with {field} {fields[field]!r}, the model has {getattr(config, field)!r}"
    for field in ("activation", "norm_eps", "num_heads")
    if field in fields and fields[field] != getattr(config, field)
  ]
  if differ:
    raise WeightsError(_whose(path, source), differ)
