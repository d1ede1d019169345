"""Parameter path -> logical axes: what each axis of each parameter means; and which activations are cut by batch.

Sharding, and optimisers that treat matrices as matrices, ask here; parameters stay plain arrays in a plain dict.
"""

import contextlib
import contextvars
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax

# The end of a path -> the logical axes. A family with other parameters adds rules here, once for all its sizes.
RULES = (
  (r"q/kernel", ("embed", "heads", "head_dim")),
  (r"q/bias", ("heads", "head_dim")),
  (r"(k|v)/kernel", ("embed", "kv_heads", "head_dim")),
  (r"(k|v)/bias", ("kv_heads", "head_dim")),
  (r"(attn|cross)/out/kernel", ("heads", "head_dim", "embed")),
  (r"(attn|cross)/out/bias", ("embed",)),
  (r"attn/relative", ("offset", "head_dim")),
  (r"mlp/up/kernel", ("embed", "mlp")),
  (r"mlp/up/bias", ("mlp",)),
  (r"mlp/down/kernel", ("mlp", "embed")),
  (r"mlp/down/bias", ("embed",)),
  (r"(norm|norm1|norm2|cross_norm|head_norm|source_norm|target_norm|embed_norm|feature_norm)/(scale|bias)", ("embed",)),
  (r"buckets", ("buckets", "heads")),
  (r"offsets/table", ("offset_rows", "offset_columns", "heads")),
  (r"offsets/up/kernel", ("coordinates", "offset_hidden")),
  (r"offsets/up/bias", ("offset_hidden",)),
  (r"offsets/down/kernel", ("offset_hidden", "heads")),
  (r"attn/log_scale", ("heads",)),
  (r"merge/kernel", ("merged", "embed")),
  (r"merged_norm/(scale|bias)", ("merged",)),
  (r"bilinear", ("query_embed", "key_embed")),
  (r"query", ("query_embed", "attention_hidden")),
  (r"key", ("key_embed", "attention_hidden")),
  (r"score", ("attention_hidden", "one")),
  (r"inverse_width", ()),
  (r"window/kernel", ("window_embed", "window_features")),
  (r"window/bias", ("window_features",)),
  (r"patch/kernel", ("pixels", "embed")),
  (r"patch/bias", ("embed",)),
  (r"encoder/cls|pos/cls|pool/probe|(encoder|decoder|stage_0)/mask", ("embed",)),
  (r"pos/table", ("rows", "columns", "embed")),
  (r"pos/row", ("rows", "half_embed")),
  (r"pos/column", ("columns", "half_embed")),
  (r"representation/kernel", ("embed", "representation")),
  (r"representation/bias", ("representation",)),
  (r"(source_|target_|)embed/embedding", ("vocab", "embed")),
  (r"((source|target)_|)position/embedding", ("length", "embed")),
  (r"type/embedding", ("types", "embed")),
  (r"(pooler|words/transform)/kernel", ("embed", "transformed")),
  (r"(pooler|words/transform)/bias", ("transformed",)),
  (r"head_bias|words/bias", ("vocab",)),
  (r"copies/gate/kernel", ("embed", "gate")),
  (r"copies/gate/bias", ("gate",)),
  (r"mix", ("decoder_layers", "encoder_layers")),
  # Recurrent kernels are not cut along the state ("tensor"): every place of every row would have to wait for the other
  # devices' parts of the state of the place before.
  (r"(forward|backward|cell)_00/i./kernel", ("cell_input", "embed")),
  (r"(forward|backward|cell)_(?!00)\d\d/i./kernel", ("layer_input", "embed")),
  (r"(forward|backward|cell)_\d\d/h./kernel", ("state", "embed")),
  (r"(forward|backward|cell)_\d\d/[ih]./bias", ("embed",)),
  (r"bridge_\d\d/dense/kernel", ("last_states", "embed")),
  (r"bridge_\d\d/dense/bias", ("embed",)),
  (r"keys/kernel", ("key_embed", "attention_hidden")),
  (r"readout/kernel", ("features", "readout")),
  (r"readout/bias", ("readout",)),
  (r"length/kernel", ("embed", "lengths")),
  (r"length/bias", ("lengths",)),
  (r"filter/kernel", ("kernel_rows", "kernel_columns", "filter_input", "embed")),
  (r"filter/bias", ("embed",)),
  (r"grow_\d/kernel", ("embed", "grown")),
  (r"grow_\d/bias", ("grown",)),
  (r"(head|next)/kernel", ("features", "classes")),
  (r"(head|next)/bias", ("classes",)),
  (r"decoder/embed/kernel", ("encoder_embed", "embed")),
  (r"decoder/embed/bias", ("embed",)),
  (r"pixels/kernel", ("embed", "pixels")),
  (r"pixels/bias", ("pixels",)),
  (r"input_norm/(scale|bias)", ("input_embed",)),
  (r"conv/kernel", ("kernel_rows", "kernel_columns", "one", "embed")),
  (r"conv/bias|layer_scale", ("embed",)),
  (r"root/kernel", ("kernel_rows", "kernel_columns", "channels", "root")),
  (r"root_norm/(scale|bias)", ("root",)),
  # The units of a ResNet: wide, narrow, narrow, wide; the first of a stage comes from another width.
  (r"first/conv1/kernel", ("point_rows", "point_columns", "unit_input", "narrow")),
  (r"block(_\d\d|s)/conv1/kernel", ("point_rows", "point_columns", "wide", "narrow")),
  (r"conv2/kernel", ("kernel_rows", "kernel_columns", "narrow_input", "narrow")),
  (r"conv3/kernel", ("point_rows", "point_columns", "narrow", "wide")),
  (r"proj/kernel", ("point_rows", "point_columns", "proj_input", "wide")),
  (r"(conv1|conv2)_norm/(scale|bias)", ("narrow",)),
  (r"(conv3|proj)_norm/(scale|bias)", ("wide",)),
)


# Parameters stacked by a scan over the layers are under this name.
STACKED = "blocks"

# Within which a logical axis has one size: a stage of a hierarchy, or else the encoder, the decoder, the head.
_STAGE = re.compile(r"(.*/)?(stage_\d+|stem)(?=/)|[^/]+")

Tree = TypeVar("Tree")

_cut: contextvars.ContextVar[Callable] = contextvars.ContextVar("cut", default=lambda x: x)
_gather: contextvars.ContextVar[Callable] = contextvars.ContextVar("gather", default=lambda x: x)


def by_batch(x: Tree) -> Tree:
  """Marks activations [B, ...] as cut over the devices along the batch and nothing else.

  The compiler follows the cuts of parameters otherwise, and may move activations where it should gather parameters.
  Does nothing outside `cutting`, so models know of no mesh.
  """
  return _cut.get()(x)


def whole(params: Any) -> Any:
  """Marks parameters as cut no longer: for a loop over places, which would gather them at each place anew.

  And for what XLA would else move activations for, such as depthwise convolutions.
  """
  return _gather.get()(params)


@contextlib.contextmanager
def cutting(cut: Callable[[jax.Array], jax.Array], gather: Callable[[jax.Array], jax.Array]) -> Iterator[None]:
  """While a program is traced here, `by_batch` is `cut` and `whole` is `gather`."""
  tokens = _cut.set(cut), _gather.set(gather)
  try:
    yield
  finally:
    _cut.reset(tokens[0])
    _gather.reset(tokens[1])


def path_name(path: tuple) -> str:
  """A key path of `jax.tree_util` as "encoder/block_00/attn/q/kernel"."""
  return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def map_with_path(function: Callable, tree: Any, *rest: Any) -> Any:
  """`jax.tree.map` whose function gets the path's name first."""
  return jax.tree_util.tree_map_with_path(lambda path, *leaves: function(path_name(path), *leaves), tree, *rest)


def flatten(tree: Any) -> dict:
  """Every leaf by the name of its path."""
  return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def logical_axes(params: Mapping) -> dict:
  """The logical axes of every parameter.

  Args:
    params: nested dict of arrays or `ShapeDtypeStruct`s.

  Returns:
    the same nesting, a tuple of names for each parameter. Parameters stacked by a scan start with "layers".

  Raises:
    ValueError: a parameter that no rule or several rules fit, one of another rank than its rule, or a logical axis
      of two sizes within a stage (encoder, decoder, head; or one of a hierarchy's); all faults at once.
  """
  faults, sizes = [], {}

  def look_up(path, leaf):
    found = [axes for pattern, axes in RULES if re.search(rf"(^|/)({pattern})$", path)]
    if len(found) != 1:
      faults.append(
        f"{path} {leaf.shape} fits {len(found)} rules {found or ''}; wanted exactly one in zoo/partitioning.py"
      )
      return ()
    axes = ("layers", *found[0]) if f"/{STACKED}/" in f"/{path}" else found[0]
    if len(axes) != len(leaf.shape):
      faults.append(f"{path} has shape {leaf.shape}, its rule says {axes}")
      return axes
    (stage, *_) = (match[0] for match in _STAGE.finditer(path))
    for axis, size in zip(axes, leaf.shape, strict=True):
      other_size, other_path = sizes.setdefault((stage, axis), (size, path))
      if other_size != size:
        faults.append(f"{axis} is {size} in {path} but {other_size} in {other_path}")
    return axes

  axes = map_with_path(look_up, params)
  if faults:
    raise ValueError("\n".join(faults))
  return axes
