"""Rules on parameter paths (logical axes, weight decay, layers), and sharding of activations along the batch.

Each family declares in its module, beside its parameters:

- `LOGICAL_AXES`, a regular expression of the whole path -> the name of each axis, such as ("embed", "mlp"). Layers
  declare theirs relative to their own path; `under` puts them below a prefix. `train.sharding` maps the names to mesh
  axes.
- `NO_DECAY`, regular expressions, found anywhere in the path, of parameters without weight decay.
- `layer_of(config, path)`, the layer of a parameter for layer-wise learning rates, where the encoder has blocks.

Parameters stay plain arrays in a plain dict.
"""

import contextlib
import contextvars
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax

Axes = Mapping[str, tuple[str, ...]]
Tree = TypeVar("Tree")

# Parameters stacked by a scan over the layers are under this name.
STACKED = "blocks"
# Matches the name of a block, unrolled or stacked.
BLOCK = rf"(block_\d+|{STACKED})"
# No family decays its biases and scales, which are those of norms, of layer scale and of cosine attention.
BIASES_AND_SCALES = (r"bias$", r"(norm\w*|scale)(/|$)")

# A logical axis has one size within a stage of a hierarchy, or else within the encoder, the decoder, the head.
_STAGE = re.compile(r"(.*/)?(stage_\d+|stem)(?=/)|[^/]+")

_shard: contextvars.ContextVar[Callable] = contextvars.ContextVar("shard", default=lambda x: x)
_replicate: contextvars.ContextVar[Callable] = contextvars.ContextVar("replicate", default=lambda x: x)
_split: contextvars.ContextVar[Callable | None] = contextvars.ContextVar("split", default=None)
_platform: contextvars.ContextVar[str] = contextvars.ContextVar("platform", default="")


def shard_batch(x: Tree) -> Tree:
  """Constrains activations [B, ...] to be sharded over the devices along the batch alone.

  Otherwise the compiler propagates the shardings of parameters, and may move activations where it should gather
  parameters. Does nothing outside `sharding_scope`, so models do not depend on a mesh.
  """
  return _shard.get()(x)


def replicate(params: Any) -> Any:
  """Constrains parameters to be replicated.

  For a loop over positions, which would gather them at each position, and where XLA would move activations instead,
  as in depthwise convolutions.
  """
  return _replicate.get()(params)


def split(function: Callable, in_axes: Sequence[Sequence], out_axes: Sequence, *args: Any) -> jax.Array:
  """Calls a function that the compiler cannot partition, such as a Pallas kernel, on each device's part of its arrays.

  Args:
    function: takes the number of the part, then the arrays; it must be independent along "batch" and "heads".
    in_axes: of each array, "batch", "heads" or None for each axis; ("heads", N) for one of N heads of some width, one
      after another. out_axes: of the result.
    *args: the arrays.
  """
  call = _split.get()
  return function(0, *args) if call is None else call(function, in_axes, out_axes, *args)


def platform_of(device: jax.Device) -> str:  # pyright: ignore[reportInvalidTypeForm]
  """A device's platform; "tpu v4" of TPUs with so little VMEM (16 MiB) that the kernels do not fit all sizes."""
  return "tpu v4" if "v4" in device.device_kind else device.platform


def platform() -> str:
  """`platform_of` the devices that are traced for; "" where they are not known: several devices and no scope."""
  return _platform.get() or (platform_of(jax.devices()[0]) if jax.device_count() == 1 else "")


@contextlib.contextmanager
def sharding_scope(
  shard: Callable[[jax.Array], jax.Array] = lambda x: x,
  gather: Callable[[jax.Array], jax.Array] = lambda x: x,
  split: Callable | None = None,
  platform: str = "",
) -> Iterator[None]:
  """While a program is traced in this scope, `shard_batch` is `shard`, `replicate` is `gather`, and so on."""
  tokens = _shard.set(shard), _replicate.set(gather), _split.set(split), _platform.set(platform)
  try:
    yield
  finally:
    _shard.reset(tokens[0])
    _replicate.reset(tokens[1])
    _split.reset(tokens[2])
    _platform.reset(tokens[3])


def path_name(path: tuple) -> str:
  """A key path of `jax.tree_util` as "encoder/block_00/attn/q/kernel"."""
  return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def map_with_path(function: Callable, tree: Any, *rest: Any) -> Any:
  """`jax.tree.map` whose function gets the path's name first."""
  return jax.tree_util.tree_map_with_path(lambda path, *leaves: function(path_name(path), *leaves), tree, *rest)


def flatten(tree: Any) -> dict:
  """Every leaf by the name of its path."""
  return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def under(prefix: str, axes: Axes) -> dict[str, tuple[str, ...]]:
  """Rules of a layer -> rules of the same layer below a prefix, a regular expression of the rest of the path."""
  return {f"{prefix}/{path}": names for path, names in axes.items()}


def matches(patterns: Sequence[str], path: str) -> bool:
  """Whether any of the regular expressions is found in the path."""
  return any(re.search(pattern, path) for pattern in patterns)


def layer_of_encoder(path: str, depth: int, embeddings: Sequence[str]) -> int:
  """The layer of a parameter of an encoder whose blocks are "encoder/block_00", ... (Clark et al. 2020).

  Args:
    path: with unrolled blocks.
    depth: L, the number of blocks.
    embeddings: names in the encoder that belong to layer 0.

  Returns:
    0 for embeddings, i + 1 for block i, L + 1 for all else.
  """
  _, _, rest = path.partition("encoder/") if path.startswith("encoder/") else ("", "", "")
  name = rest.partition("/")[0]
  if block := re.fullmatch(r"block_(\d+)", name):
    return int(block[1]) + 1
  return 0 if name in embeddings else depth + 1


def logical_axes(params: Mapping, axes: Axes) -> dict:
  """The logical axes of every parameter.

  Args:
    params: nested dict of arrays or `ShapeDtypeStruct`s.
    axes: the rules of the family, its `LOGICAL_AXES`.

  Returns:
    the same nesting, a tuple of names for each parameter. Parameters stacked by a scan start with "layers".

  Raises:
    ValueError: a parameter that no rule or several rules match, one of another rank than its rule, or a logical axis
      of two sizes within a stage (encoder, decoder, head; or one of a hierarchy's); all faults at once.
  """
  faults, sizes = [], {}

  def look_up(path, leaf):
    found = {pattern: names for pattern, names in axes.items() if re.fullmatch(pattern, path)}
    if len(found) != 1:
      faults.append(f"{path} {leaf.shape} matches {len(found)} rules {found or ''}; wanted exactly one in LOGICAL_AXES")
      return ()
    (names,) = found.values()
    names = ("layers", *names) if f"/{STACKED}/" in f"/{path}" else names
    if len(names) != len(leaf.shape):
      faults.append(f"{path} has shape {leaf.shape}, its rule has {names}")
      return names
    (stage, *_) = (match[0] for match in _STAGE.finditer(path))
    for axis, size in zip(names, leaf.shape, strict=True):
      other_size, other_path = sizes.setdefault((stage, axis), (size, path))
      if other_size != size:
        faults.append(f"{axis} is {size} in {path} but {other_size} in {other_path}")
    return names

  named = map_with_path(look_up, params)
  if faults:
    raise ValueError("\n".join(faults))
  return named
