"""A Hugging Face `config.json` to a model's name and overrides."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from zoo import registry
from zoo.errors import nearest
from zoo.weights import tables
from zoo.weights.rules import WeightsError
from zoo.weights.sources import Source

# Names of activations in a `config.json`.
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
_ACTIVATIONS |= {"swish": "swish", "silu": "swish"}
# Fields that distinguish variants: where `config.json` and the name differ in one, it is an error.
_SIZES = re.compile(r"patch_size|window_size|relative_position_bias|(decoder_)?(widths?|depths?|mlp_dim|num_heads)")


def describe(path: str | Path, source: Source, name: str | None, overrides: Mapping) -> tuple[str, dict]:
  """The model's name and all its overrides.

  Args:
    path: of the directory, for errors.
    source: its contents.
    name: of the model; None finds the variant with the sizes of `config.json`.
    overrides: take precedence over `config.json`.

  Raises:
    WeightsError: an unknown kind of model, or sizes that no variant, or not this one, has.
  """
  theirs = _family_tables(path, source, name)
  c = source.config
  if unequal := [(a, b) for a, b in theirs.HUGGINGFACE["equal"].items() if c.get(a) != c.get(b)]:
    faults = [f"config.json has {a} {c.get(a)} and {b} {c.get(b)}; ours have one for both" for a, b in unequal]
    raise WeightsError(str(path), faults)
  fields = fields_of(theirs, source) | dict(overrides)
  sizes = {k: v for k, v in fields.items() if _SIZES.fullmatch(k) and k not in overrides}
  if name is None:
    return _variant(path, theirs.__name__.rpartition(".")[2], sizes, overrides), fields
  variant = dataclasses.asdict(registry.create(name).config)
  keys = dict.fromkeys(sizes, "model_type") | theirs.HUGGINGFACE["fields"]  # a kind of model may fix a field
  differ = [
    f"config.json has {keys[k]} {c[keys[k]]}, {name} has {k} {variant[k]}" for k, v in sizes.items() if variant[k] != v
  ]
  if differ:
    raise WeightsError(str(path), differ)
  return name, fields


def _family_tables(path, source: Source, name: str | None) -> ModuleType:
  """The tables of the family of a name, or else of the `model_type`."""
  if name is not None:
    theirs = tables.of(name)
    if not hasattr(theirs, "HUGGINGFACE"):
      raise WeightsError(str(path), [f"{name} has no Hugging Face layout"])
    return theirs
  every = [tables.of(name) for name in dict.fromkeys(name.partition("/")[0] for name in registry.list_models())]
  every = [t for t in every if hasattr(t, "HUGGINGFACE")]
  # Where families share a type, the last one counts: that of the class that wrote the file, if the file has it.
  wrote = {*(source.config.get("architectures") or ())}
  every.sort(key=lambda f: bool(wrote & f.HUGGINGFACE.get("architectures", {}).keys()))
  families = {model_type: f for f in every for model_type in f.HUGGINGFACE["model_types"]}
  if (kind := source.config.get("model_type")) not in families:
    raise WeightsError(str(path), [f"config.json has model_type {kind!r}{nearest(kind, families)}; or pass a name"])
  return families[kind]


def _variant(path, family: str, sizes: Mapping, overrides: Mapping) -> str:
  """The name of the first variant with these sizes."""
  module = registry.family(family)
  given = {f.name: f.default for f in dataclasses.fields(module.Config)}
  same = [v for v, variant in module.VARIANTS.items() if sizes.items() <= (given | variant | overrides).items()]
  if not same:
    raise WeightsError(str(path), [f"no variant of {family} has {sizes}: pass a name, and these as overrides"])
  return f"{family}/{same[0]}"


def fields_of(theirs: ModuleType, source: Source) -> dict:
  """The fields of our config that a Hugging Face directory specifies.

  Args:
    theirs: tables of the family, with `HUGGINGFACE`.
    source: the directory's contents.
  """
  known = theirs.HUGGINGFACE
  fields = dict(known["model_types"].get(source.config.get("model_type"), {}))
  given = {field: source.config[key] for field, key in known["fields"].items() if key in source.config}
  fields |= {field: tuple(value) if isinstance(value, list) else value for field, value in given.items()}
  if "activation" in fields:
    fields["activation"] = _ACTIVATIONS.get(fields["activation"], fields["activation"])
  if isinstance(fields.get("patch_size"), tuple):
    fields["patch_size"] = fields["patch_size"][0]
  # What is on top of the encoder shows in the tensors only; the key's first number is its width.
  for field, key in known["tops"].items():
    fields[field] = len(source.tensors[key]) if key in source.tensors else 0
  # Or in the name of the class that wrote them, where that makes several kinds of heads; one may have as many classes.
  for name in source.config.get("architectures") or () if "architectures" in known else ():
    if name not in known["architectures"]:
      wanted = nearest(name, known["architectures"])
      raise WeightsError("config.json", [f"there is no head for the architecture {name!r}{wanted}"])
    head = dict(known["architectures"][name])
    if key := head.get("num_classes"):
      head["num_classes"] = len(source.tensors[key]) if key in source.tensors else 0
    fields |= head
  return fields
