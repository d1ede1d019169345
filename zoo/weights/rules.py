"""The engine: foreign tensors to our parameters by a table of rules, all or nothing, and back by the same table."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

_SHOWN = 60  # lines of an error; `WeightsError.faults` has them all
_EXPLAINED = 10  # unknown keys for which the nearest name is looked up, which takes time


class WeightsError(ValueError):
  """Weights that cannot be read, or do not fit the model; `faults` is everything that is wrong, one line each."""

  def __init__(self, about: str, faults: Sequence[str]):
    self.faults = tuple(faults)
    rest = [f"... and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
    super().__init__(
      "\n  ".join([f"{about}:", *faults[:_SHOWN], *rest]) if len(faults) > 1 else f"{about}: {faults[0]}"
    )


class Transform(NamedTuple):
  """How a foreign tensor becomes our parameters, and back.

  Attributes:
    forward: (tensor, *shapes of the parameters) -> one array, or a tuple where one tensor fills several. It may
      raise ValueError, whose text becomes a line of the error.
    inverse: (*parameters) -> the tensor, or None where nothing is written.
    refit: (tensor, *shapes, method) -> a tensor of the right shape, interpolated from one of another image size or
      window; None for what cannot be resampled.
  """

  forward: Callable
  inverse: Callable
  refit: Callable | None = None


class Rule(NamedTuple):
  r"""A line of a table.

  Attributes:
    pattern: matches the full foreign key. So that it can be inverted it is limited to escaped dots, `(\d+)`
      for numbers, and `(?:new|old)` for names that differ between versions: all are read, the first is written.
    paths: where in our parameters the tensor goes, as "encoder/block_{:02d}/attn/q/kernel" with the numbers of the
      pattern filled in; several for a fused tensor, () for one that is only checked or ignored.
    transform: changes the layout.
  """

  pattern: str
  paths: str | tuple[str, ...]
  transform: Transform

  def targets(self, numbers: Iterable[int] = ()) -> tuple[str, ...]:
    """The paths, with the numbers filled in."""
    paths = (self.paths,) if isinstance(self.paths, str) else self.paths
    return tuple(p.format(*numbers) for p in paths)

  def key(self, numbers: Iterable[int] = ()) -> str:
    """The foreign key, with the numbers filled in."""
    numbers = iter(numbers)
    key = re.sub(r"\(\\d\+\)", lambda _: str(next(numbers)), self.pattern)
    return re.sub(r"\(\?:([^|()]*)\|[^()]*\)", r"\1", key).replace("\\", "")

  def numbers_of(self, paths: Iterable[str]) -> list[tuple[int, ...]]:
    """The numbers with which this rule's first path is one of `paths`."""
    template = self.paths if isinstance(self.paths, str) else self.paths[0]
    pattern = re.compile(re.escape(template).replace(re.escape("{:02d}"), r"(\d+)"))
    return [tuple(map(int, m.groups())) for m in map(pattern.fullmatch, paths) if m]


def matcher(table: Sequence[Rule]) -> Callable[[str], list[tuple[Rule, tuple[int, ...]]]]:
  """A function from a key to the rules that match it and their numbers; large models have too many for re's cache."""
  compiled = [(re.compile(rule.pattern).fullmatch, rule) for rule in table]
  return lambda key: [(rule, tuple(map(int, m.groups()))) for match, rule in compiled if (m := match(key))]


def convert(
  tensors: Mapping[str, np.ndarray],
  table: Sequence[Rule],
  template: Mapping,
  *,
  ignore: Sequence[str] = (),
  resample: str = "",
  about: str = "these weights do not fit the model",
) -> dict:
  """Foreign tensors as our parameters: every tensor used once and every parameter filled, or an error.

  Args:
    tensors: by their foreign keys; of any floating-point type.
    table: the rules.
    template: our parameters, nested, as arrays or `jax.ShapeDtypeStruct`s.
    ignore: patterns of foreign keys to leave out.
    resample: the method with which position tables of another grid are interpolated; "" makes them an error.
    about: begins the error.

  Returns:
    the parameters, nested as `template`, as numpy arrays in its types.

  Raises:
    WeightsError: keys without a rule or with several, wrong shapes, parameters filled twice or not at all: a line
      each, all in one error.
  """
  wanted: dict[str, Any] = dict(flatten_dict(template, sep="/"))
  filled, source, faults, unknown = {}, {}, [], []
  rules_of = matcher(table)
  for key, tensor in tensors.items():
    if any(re.fullmatch(pattern, key) for pattern in ignore):
      continue
    matches = rules_of(key)
    if not matches:
      unknown.append(key)
      continue
    targets = [path for rule, numbers in matches for path in rule.targets(numbers)]
    if fault := _target_fault(key, matches, targets, wanted, source):
      faults.append(fault)
      source |= dict.fromkeys(targets, key) if len(matches) > 1 else {}
      continue
    source |= dict.fromkeys(targets, key)
    try:
      arrays = _forward(np.asarray(tensor), matches[0][0].transform, [wanted[p] for p in targets], resample)
    except ValueError as error:
      faults.append(f"{key} {error}")
    else:
      filled |= dict(zip(targets, arrays, strict=True))
  faults += _missing_faults(unknown, [path for path in wanted if path not in source], wanted, table)
  if faults:
    raise WeightsError(about, faults)
  return unflatten_dict({path: filled[path] for path in wanted}, sep="/")


def _target_fault(key: str, matches: Sequence, targets: Sequence[str], wanted: Mapping, source: Mapping) -> str:
  """A line of an error if a key cannot fill its targets; "" otherwise. `source` has the paths that are filled."""
  if len(matches) > 1:
    return f"{key} has {len(matches)} rules: {', '.join(rule.pattern for rule, _ in matches)}"
  if missing := [p for p in targets if p not in wanted]:
    return f"{key} is for {', '.join(missing)}, which the model does not have; use `ignore` to leave it out"
  if twice := [p for p in targets if p in source]:
    return f"{key} and {source[twice[0]]} are both for {', '.join(twice)}"
  return ""


def _missing_faults(unknown: Sequence[str], unfilled: Sequence[str], wanted: Mapping, table: Sequence[Rule]) -> list:
  """Lines of an error for keys without a rule, and parameters without a tensor."""
  missing = _keys(unfilled, table)
  faults = [f"{key} has no rule{_near(key, missing.values()) if len(unknown) <= _EXPLAINED else ''}" for key in unknown]
  return faults + [
    f"{path} {list(wanted[path].shape)} is not filled: "
    + (f"there is no {missing[path]}" if path in missing else "no rule is for it")
    for path in unfilled
  ]


def write_back(params: Mapping, table: Sequence[Rule]) -> dict[str, np.ndarray]:
  """Our parameters as foreign tensors, by their foreign keys: the inverse of `convert`, to the bit.

  Raises:
    WeightsError: parameters without a rule, or with several.
  """
  ours = {path: np.asarray(p) for path, p in flatten_dict(params, sep="/").items()}
  tensors, used = {}, []
  for rule in table:
    for numbers in rule.numbers_of(ours) if rule.paths else [()]:
      targets = rule.targets(numbers)
      if (tensor := rule.transform.inverse(*(ours[p] for p in targets))) is not None:
        tensors[rule.key(numbers)] = np.ascontiguousarray(tensor)
      used += targets
  faults = [f"{path} has {n or 'no'} rule{'s' if n else ''}" for path in ours if (n := used.count(path)) != 1]
  if faults:
    raise WeightsError("these parameters have no place in the layout", faults)
  return tensors


def _forward(tensor: np.ndarray, transform: Transform, wanted: list, resample: str) -> list[np.ndarray]:
  """One tensor as arrays of the wanted shapes and types; a ValueError otherwise, whose text follows the key."""
  shapes = [tuple(w.shape) for w in wanted]
  # The inverse of arrays that take no memory has the shape that the tensor must have.
  example = transform.inverse(*(np.broadcast_to(np.int8(0), s) for s in shapes))
  if example is None:
    return []
  # bfloat16 is of kind V to numpy; what cannot be a number at all fails in astype.
  if tensor.dtype.kind in "iubcOSU":
    raise ValueError(f"holds {tensor.dtype}, not floating-point numbers")
  if tensor.shape != example.shape:
    if transform.refit is None or tensor.ndim != example.ndim or tensor.shape[-1] != example.shape[-1]:
      raise ValueError(f"has shape {list(tensor.shape)}, the model wants {list(example.shape)}")
    if not resample:
      raise ValueError(
        f"holds positions of another image size or window: {list(tensor.shape)}, the model wants "
        f"{list(example.shape)}; make the model for that size or window, or load with resample=True"
      )
    tensor = transform.refit(tensor, *shapes, resample)
  arrays = transform.forward(tensor, *shapes)
  arrays = arrays if isinstance(arrays, tuple) else (arrays,)
  return [np.array(a, w.dtype, order="C") for a, w in zip(arrays, wanted, strict=True)]


def _keys(paths: Sequence[str], table: Sequence[Rule]) -> dict[str, str]:
  """The foreign keys that fill our paths."""
  keys = {}
  for rule in table if paths else ():
    for path in (rule.paths,) if isinstance(rule.paths, str) else rule.paths:
      one = rule._replace(paths=path)
      keys |= {one.targets(numbers)[0]: rule.key(numbers) for numbers in one.numbers_of(paths)}
  return keys


def _near(key: str, known: Iterable[str]) -> str:
  close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.6)
  return f"; did you mean {close[0]}?" if close else ""
