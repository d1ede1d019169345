"""`load` and `save`: models with their weights, from and to files."""

import dataclasses
import importlib.metadata
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import numpy as safetensors

from zoo import registry
from zoo.errors import nearest
from zoo.layers.position_embeddings import resample as resample_table
from zoo.layers.stack import STACKED, stack_params, unstack_params
from zoo.weights import tables as published
from zoo.weights.formats import Source, checkpoints_of, read
from zoo.weights.rules import Rule, Transform, WeightsError, convert, matcher, write_back


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
  """Makes the model that a file is for, with the file's weights.

  A file of ours (from `zoo.save`, or a training run's directory) says itself which model it is for, and so does a
  Hugging Face directory in its `config.json`. For any other, say the name and whose layout it is in. Every parameter
  is the file's: for a model that has something new, such as a head of other classes, see `zoo.weights.load_into`.

  Args:
    path: .safetensors, .npz, .pt, .pth, .bin; a Hugging Face directory; the directory of a training run.
    name: the model; needed where the file does not tell it. Another name than a file of ours tells makes another
      model of its weights, and then the file's overrides do not count.
    layout: whose keys the file has: "zoo", or one of the model's `tables`, such as "huggingface" and "timm".
    ignore: regular expressions of keys to leave out; nothing else is left out silently.
    resample: True interpolates a position table made for another image size or window as the model does (its
      `resampling`); a string names one of `zoo.layers.position_embeddings.RESAMPLINGS`.
    average: of a training run, the moving average of the parameters.
    **overrides: fields of the model's config, stronger than what the file says.

  Returns:
    the model and its variables, `{"params": ...}`

  Raises:
    WeightsError: the file cannot be read, or does not fit: all faults in one error. A ValueError.
    ValueError: unknown model or field.
  """
  source = read(path, average)
  name, fields = _described(path, source, name, overrides)
  model = registry.create(name, **fields)
  hint = " (`ignore` leaves out parts of the file; to keep parts of the model as they are: zoo.weights.load_into)"
  shapes = _shapes(model)
  variables = _converted(path, source, model, _unrolled(shapes), layout, ignore, resample, hint)
  return model, jax.tree.map(jnp.asarray, _stacked_as(shapes, variables))


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

  Nothing is left out or left as it is that was not named. An MAE of ours, fine-tuned with its features averaged:
  `ignore=r"params/(decoder|encoder/norm)/.*", reinit=r"head.*"`.

  Args:
    model: of any family whose parameters have the paths that the file fills.
    variables: the model's, as initialised.
    path, layout, resample, average: as for `load`.
    ignore: regular expressions of keys in the file to leave out.
    reinit: regular expressions of the model's own paths, as "head/kernel", that stay as initialised.

  Returns:
    the new variables; `variables` is not changed.

  Raises:
    WeightsError: as for `load`; and where the file tells of another activation or epsilon than the model has.
  """
  source = read(path, average)
  _check_numerics(path, source, model)
  reinit = [reinit] if isinstance(reinit, str) else reinit
  ours: dict[str, Any] = dict(flatten_dict({k: unstack_params(v) for k, v in variables.items() if v}, sep="/"))
  kept = {p: v for p, v in ours.items() if any(re.fullmatch(k, p.partition("/")[2]) for k in reinit)}
  template = unflatten_dict({p: v for p, v in ours.items() if p not in kept}, sep="/")
  hint = " (`ignore` leaves out parts of the file, `reinit` parts of the model)"
  filled = _converted(path, source, model, template, layout, ignore, resample, hint)
  every = kept | flatten_dict(filled, sep="/")
  return jax.tree.map(jnp.asarray, _stacked_as(variables, unflatten_dict({p: every[p] for p in ours}, sep="/")))


def save(path: str | Path, model_name: str, overrides: Mapping, variables: Mapping, *, layout: str = "zoo") -> None:
  """Writes a model's weights as one portable .safetensors file that `load` needs only the path of.

  The keys are our paths, as "params/encoder/block_00/attn/q/kernel", also for a scanned model. The file appears
  whole or not at all.

  Args:
    path: of the file; its directory is made where it is missing.
    model_name: as for `zoo.create`.
    overrides: as for `zoo.create`; kept in the file with the name.
    variables: `{"params": ...}` and the model's other collections.
    layout: write the keys and shapes of "huggingface" or "timm" for their libraries to read. Such a file
      tells no model name.

  Raises:
    WeightsError: the variables are not those of this model: all faults in one error.
    ValueError: unknown model, field or layout, or the path does not end in .safetensors.
  """
  path = Path(path)
  if path.suffix != ".safetensors":
    raise ValueError(f"{path} ends in {path.suffix!r}; weights are written as .safetensors")
  model = registry.create(model_name, **overrides)
  template = _unrolled(_shapes(model))
  tables = _tables(model, template)
  if layout not in tables:
    raise ValueError(f"unknown layout {layout!r}{nearest(layout, tables)}")
  ours: dict[str, Any] = dict(flatten_dict({k: unstack_params(v) for k, v in variables.items() if v}, sep="/"))
  variables = convert(ours, tables["zoo"], template, about=f"these variables are not those of {model_name}")
  metadata = {"format": "pt"}
  if layout == "zoo":
    tensors = write_back(variables, tables["zoo"])
    metadata = {
      "zoo_model": model_name,
      "zoo_overrides": json.dumps(dict(overrides)),
      "zoo_version": _version(),
    }
  else:
    tensors = write_back(_placed(layout, tables[layout], variables), tables[layout])
  _write(path, safetensors.save(tensors, metadata))


def average(run: str | Path, path: str | Path, *, last: int) -> list[int]:
  """Writes the mean of a training run's last checkpoints as a file of weights (Vaswani et al. 2017, 6.1).

  Of a run that keeps a moving average of its parameters, it is the parameters themselves that are averaged.

  Args:
    run: its work directory.
    path: of the file, as for `save`.
    last: how many checkpoints, at least 1. Only one at a time is in memory, and the sum.

  Returns:
    the steps that the mean is of.

  Raises:
    WeightsError: there are fewer checkpoints, or one cannot be read. A ValueError.
  """
  steps = checkpoints_of(run)
  if not 1 <= last <= len(steps):
    there = f"{len(steps)} checkpoint{'s' * (len(steps) > 1)}, of steps {', '.join(d.name for d in steps)}"
    fault = f"there are {there}; wanted 1 <= last <= {len(steps)}, and last is {last}; see checkpoint.max_to_keep"
    raise WeightsError(str(run), [fault])
  sums: dict[str, np.ndarray] = {}
  source = read(steps[-1])
  for step in steps[-last:]:
    source = read(step)
    # In float64 the sum is exact, so that the mean of equal numbers is the number.
    sums = {key: sums.get(key, 0) + np.asarray(tensor, np.float64) for key, tensor in source.tensors.items()}
  variables = unflatten_dict({key: value / last for key, value in sums.items()}, sep="/")
  save(path, str(source.model), source.overrides, variables)
  return [int(step.name) for step in steps[-last:]]


def _write(path: Path, content: bytes) -> None:
  """Whole or not at all: written beside the file, then renamed over it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  try:
    with os.fdopen(handle, "wb") as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes a file that only its owner may read
    os.replace(temporary, path)
  except BaseException:
    os.unlink(temporary)
    raise


def _placed(layout: str, table: Sequence[Rule], variables: Mapping) -> dict:
  """A model's variables as a layout of others has places for them: parameters, and other collections by their names.

  Raises:
    WeightsError: a collection is nowhere in the table.
  """
  others = {name: tree for name, tree in variables.items() if name != "params"}
  paths = [path for rule in table for path in ([rule.paths] if isinstance(rule.paths, str) else rule.paths)]
  if homeless := [name for name in sorted(others) if not any(path.startswith(f"{name}/") for path in paths)]:
    raise WeightsError(f"layout {layout}", [f"has no place for the model's {', '.join(homeless)}"])
  return dict(variables.get("params", {})) | others


def _version() -> str:
  try:
    return importlib.metadata.version("transformer-zoo")
  except importlib.metadata.PackageNotFoundError:
    return "unknown"


def _shapes(model) -> dict:
  """Of the model's variables."""
  module = registry.family(_family(model))
  rngs = {stream: jax.random.key(0) for stream in ("params", "mask")}
  return jax.eval_shape(model.init, rngs, *module.inputs(model.config, 1))


def _refit(table: np.ndarray, shape: tuple, method: str) -> np.ndarray:
  """A table [Y, X, D], or one of rows or columns, [Y, D]."""
  if table.ndim == 3:
    return np.asarray(resample_table(table, shape[:2], method))
  return np.asarray(resample_table(table[:, None], (shape[0], 1), method))[:, 0]


_RESAMPLED = re.compile(r"/(pos/(table|row|column)|offsets/table)$")
_OURS = Transform(lambda t, shape: t, lambda a: a)
_OUR_POSITIONS = Transform(lambda t, shape: t, lambda a: a, _refit)


def _converted(path, source: Source, model, template: Mapping, layout, ignore, resample, hint: str) -> dict:
  """The file's tensors as variables of the model, with its blocks unrolled."""
  layout = layout or source.layout
  tables = _tables(model, template)
  if layout not in tables:
    given = f"there is no layout {layout!r}" if layout else "the file does not tell its layout: pass layout=..."
    raise WeightsError(str(path), [f"{given}; there are {', '.join(tables)}{_likely(source.tensors, tables)}"])
  if resample is True and not hasattr(model.config, "resampling"):
    raise WeightsError(str(path), [f"{_family(model)} has no table of positions to resample; leave resample out"])
  resampling = model.config.resampling if resample is True else resample
  variables = convert(
    source.tensors,
    tables[layout],
    template if layout == "zoo" else _placed(layout, tables[layout], template),
    ignore=[ignore] if isinstance(ignore, str) else ignore,
    resample=resampling or "",
    about=f"{_whose(path, source)} (layout {layout}{_likely(source.tensors, tables, layout)}) does not fit "
    f"{_family(model)}{hint}",
  )
  if layout == "zoo":
    return variables
  others = {name: variables.pop(name) for name in template if name in variables}
  return {"params": variables} | others


def _unrolled(shapes: Mapping) -> dict:
  """Those of the same variables, with scanned blocks each by itself."""
  return jax.eval_shape(lambda tree: {collection: unstack_params(v) for collection, v in tree.items()}, shapes)


def _stacked_as(like: Mapping, variables: Mapping) -> Mapping:
  """With blocks stacked if they are so in `like`: in a segmenter it is its backbone that is scanned."""
  if not any(STACKED in path for path in flatten_dict(like)):
    return variables
  return {collection: stack_params(v) for collection, v in variables.items()}


def _family(model) -> str:
  return type(model).__module__.rpartition(".")[2]


def _tables(model, template: Mapping) -> dict[str, tuple[Rule, ...]]:
  """The tables of the model's family, and "zoo": our own paths, which go where they say."""
  ours = tuple(
    Rule(re.escape(path), path, _OUR_POSITIONS if _RESAMPLED.search(path) else _OURS)
    for path in flatten_dict(template, sep="/")
  )
  theirs = published.of(_family(model))
  return {"zoo": ours} | (theirs.tables(model.config) if theirs else {})


def _likely(tensors: Mapping, tables: Mapping, layout: str | None = None) -> str:
  """Which layout the keys look like, if that is another than the one given."""
  fits = {name: sum(map(bool, map(matcher(table), tensors))) for name, table in tables.items()}
  best = max(fits, key=lambda name: fits[name])
  return f"; its keys look like {best!r}" if best != layout and fits[best] > fits.get(layout, 0) else ""


# Names of activations in a `config.json`.
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
_ACTIVATIONS |= {"swish": "swish", "silu": "swish"}
# What makes a variant: where `config.json` says otherwise than the name, one of them is wrong.
_SIZES = re.compile(r"patch_size|window_size|relative_position_bias|(decoder_)?(widths?|depths?|mlp_dim|num_heads)")


def _described(path, source: Source, name: str | None, overrides: Mapping) -> tuple[str, dict]:
  """The model's name and all its overrides, from what the file tells and the caller wants."""
  if source.config is not None:
    return _described_by_huggingface(path, source, name, overrides)
  if name is None and source.model is None:
    raise WeightsError(str(path), ["the file does not tell its model: pass its name, and layout=..."])
  if source.model is not None and name in (None, source.model):
    return source.model, dict(source.overrides) | dict(overrides)
  return str(name), dict(overrides)


def _described_by_huggingface(path, source: Source, name: str | None, overrides: Mapping) -> tuple[str, dict]:
  kind = source.config.get("model_type")
  every = [published.of(name) for name in dict.fromkeys(name.partition("/")[0] for name in registry.list_models())]
  every = [t for t in every if hasattr(t, "HUGGINGFACE")]
  # Where families share a type, the last one is it: that which has the class that wrote the file, if the file tells.
  wrote = {*(source.config.get("architectures") or ())}
  every.sort(key=lambda f: bool(wrote & f.HUGGINGFACE.get("architectures", {}).keys()))
  families = {model_type: f for f in every for model_type in f.HUGGINGFACE["model_types"]}
  if name is None and kind not in families:
    raise WeightsError(str(path), [f"config.json has model_type {kind!r}{nearest(kind, families)}; or pass a name"])
  theirs = families[kind] if name is None else published.of(name)
  if not hasattr(theirs, "HUGGINGFACE"):
    raise WeightsError(str(path), [f"{name} has no Hugging Face layout"])
  c = source.config
  if unequal := [(a, b) for a, b in theirs.HUGGINGFACE["equal"].items() if c.get(a) != c.get(b)]:
    faults = [f"config.json has {a} {c.get(a)} and {b} {c.get(b)}; ours have one for both" for a, b in unequal]
    raise WeightsError(str(path), faults)
  fields = _huggingface_fields(theirs, source) | dict(overrides)
  sizes = {k: v for k, v in fields.items() if _SIZES.fullmatch(k) and k not in overrides}
  if name is None:
    family = theirs.__name__.rpartition(".")[2]
    module = registry.family(family)
    given = {f.name: f.default for f in dataclasses.fields(module.Config)}
    same = [v for v, variant in module.VARIANTS.items() if sizes.items() <= (given | variant | overrides).items()]
    if not same:
      raise WeightsError(str(path), [f"no variant of {family} has {sizes}: pass a name, and these as overrides"])
    return f"{family}/{same[0]}", fields
  variant = dataclasses.asdict(registry.create(name).config)
  keys = dict.fromkeys(sizes, "model_type") | theirs.HUGGINGFACE["fields"]  # a kind of model may fix a field
  differ = [
    f"config.json says {keys[k]} {c[keys[k]]}, {name} has {k} {variant[k]}" for k, v in sizes.items() if variant[k] != v
  ]
  if differ:
    raise WeightsError(_whose(path, source), differ)
  return name, fields


def _huggingface_fields(theirs, source: Source) -> dict:
  """What a Hugging Face directory tells of the fields of our config."""
  told = theirs.HUGGINGFACE
  fields = dict(told["model_types"].get(source.config.get("model_type"), {}))
  given = {field: source.config[key] for field, key in told["fields"].items() if key in source.config}
  fields |= {field: tuple(value) if isinstance(value, list) else value for field, value in given.items()}
  if "activation" in fields:
    fields["activation"] = _ACTIVATIONS.get(fields["activation"], fields["activation"])
  if isinstance(fields.get("patch_size"), tuple):
    fields["patch_size"] = fields["patch_size"][0]
  # What is on top of the encoder shows in the tensors only; the key's first number is its width.
  for field, key in told["tops"].items():
    fields[field] = len(source.tensors[key]) if key in source.tensors else 0
  # Or in the name of the class that wrote them, where that makes several kinds of heads; one may have as many classes.
  for name in source.config.get("architectures") or () if "architectures" in told else ():
    if name not in told["architectures"]:
      wanted = nearest(name, told["architectures"])
      raise WeightsError("config.json", [f"there is no head for the architecture {name!r}{wanted}"])
    head = dict(told["architectures"][name])
    if key := head.get("num_classes"):
      head["num_classes"] = len(source.tensors[key]) if key in source.tensors else 0
    fields |= head
  return fields


def _whose(path, source: Source) -> str:
  """The file, and the model whose weights it holds, where it tells that."""
  return f"{path} of {source.model}" if source.model else str(path)


def _check_numerics(path, source: Source, model) -> None:
  """Sizes show in the shapes; these do not, where the file tells them at all."""
  fields, theirs, config = {}, published.of(_family(model)), getattr(model.config, "encoder", model.config)
  if source.config is not None and hasattr(theirs, "HUGGINGFACE"):
    fields = _huggingface_fields(theirs, source)
  elif source.model is not None:
    fields = dataclasses.asdict(registry.create(source.model, **source.overrides).config)
  differ = [
    f"was trained with {field} {fields[field]!r}, the model has {getattr(config, field)!r}"
    for field in ("activation", "norm_eps", "num_heads")
    if field in fields and fields[field] != getattr(config, field)
  ]
  if differ:
    raise WeightsError(_whose(path, source), differ)
