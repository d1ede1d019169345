"""Every parameter has one rule, and all faults are reported in one error."""

import ast
import functools
import re

import jax
import numpy as np
import pytest
from support import assert_names, raises

import zoo
from zoo import partitioning
from zoo.layers.block import BLOCK_AXES
from zoo.layers.pointer import COPY_AXES
from zoo.layers.pooling import ATTENTION_POOL_AXES, POOLING_AXES, WINDOW_DENSE_AXES, Pooling, WindowDense
from zoo.layers.pooling import KINDS as POOLINGS
from zoo.layers.position_embeddings import (
  BUCKET_BIAS_AXES,
  POSITION_AXES,
  WINDOW_BIAS_AXES,
  BucketedRelativePositionBias,
)

VIT, SWIN = (zoo.family(name).LOGICAL_AXES for name in ("vit", "swin"))

# Each brings parameters that the plain variant does not have, or takes some away.
IMAGES = [
  dict(pool="map"),
  dict(pool="gap", class_token=False, head_norm="layer", final_norm=False),
  dict(head_norm="batch", num_classes=0),
  dict(representation_size=5),
  *(dict(position_embedding=kind) for kind in ("none", "learned_2d", "sincos_2d")),
]
COMBINATIONS = {
  "nat": [
    dict(length_prediction="none"),
    dict(tie_embeddings="none", cross_attention="mix", head="copy", position_embedding="t5"),
  ],
  "mae": IMAGES,
  "swin": [
    dict(norm_position="res_post", attention_score="cosine", relative_position_bias="continuous"),
    dict(head="features"),
    dict(head="none"),
  ],
  "vit": [
    *IMAGES,
    dict(position_embedding="relative"),
  ],  # an MAE sees a random choice of patches, which have no relative positions
  "hybrid": [dict(stem_depths=(2,)), dict(stem_depths=(), pool="map")],
  "patch_prediction": [dict(position_embedding="relative")],
  "simmim": [dict(norm_position="res_post", attention_score="cosine", relative_position_bias="continuous")],
  "convnext": [dict(head="features"), dict(layer_scale_init_value=0.0, num_classes=0)],
  "transformer": [
    dict(tie_embeddings="none", head_bias=True, position_embedding="learned"),
    dict(head_bias=True, norm_position="pre", final_norm=True, embed_norm=True),
    dict(cross_attention="mix", head="copy", num_kv_heads=1, position_embedding="t5"),
  ],
  "bert": [
    dict(head="sequence_classification", num_classes=3),
    dict(head="token_classification", num_classes=3, norm_position="pre"),
    dict(head="question_answering", position_embedding="rotary"),
    dict(head="none"),
  ],
  "kernel_regression": [],
  "segmenter": [
    dict(head="linear", backbone="vit/nano4"),
    dict(
      head="fpn",
      norm="layer",
      image_size=(64, 96),
      backbone_kwargs=dict(patch_size=32, scan=True, position_embedding="none"),
    ),
  ],
  "seq2seq": [
    dict(cell="lstm", attention="none", head_bias=True),
    dict(attention="general", head="copy", bidirectional=False, input_feeding=True),
    dict(attention_query="current_state", head="pointer"),
  ],
}


def shape(*sizes):
  return jax.ShapeDtypeStruct(sizes, np.float32)


def shapes(name, **overrides):
  """The parameters' shapes, in dicts of the caller's own."""
  return jax.tree.map(lambda leaf: leaf, _shapes(name, repr(overrides)))


@functools.cache
def _shapes(name, overrides):
  model = zoo.create(name, **ast.literal_eval(overrides))
  inputs = zoo.family(name).inputs(model.config, 1)
  rngs = {"params": jax.random.key(0), "mask": jax.random.key(1)}
  return jax.eval_shape(functools.partial(model.init, rngs), *inputs)["params"]


CASES = [
  (name, overrides)
  for name in zoo.list_models("*/test")
  for overrides in ({}, dict(scan=True), *COMBINATIONS[name.partition("/")[0]])
  if "scan" not in overrides or hasattr(zoo.create(name).config, "scan")
]


@pytest.mark.parametrize("name, overrides", CASES, ids=str)
def test_every_parameter_has_exactly_one_rule(name, overrides):
  params = shapes(name, **overrides)
  named = partitioning.logical_axes(
    params, zoo.family(name).LOGICAL_AXES
  )  # raises where a rule is missing or two match
  for path, leaf in partitioning.flatten(params).items():
    node = functools.reduce(lambda tree, key: tree[key], path.split("/"), named)
    assert len(node) == len(leaf.shape) and len(set(node)) == len(node), path
    assert (node[:1] == ("layers",)) == ("/blocks/" in path)


# Layers with parameters that no family has in its `test` variant, their rules, and what to call them with.
LAYERS = {
  **{
    kind: (Pooling(kind, hidden=5), POOLING_AXES, [shape(2, 3, 4), shape(2, 6, 4), shape(2, 6, 7)]) for kind in POOLINGS
  },
  "relative_bias": (BucketedRelativePositionBias(3), BUCKET_BIAS_AXES, [jax.ShapeDtypeStruct((1, 4), np.int32)] * 2),
  "window": (WindowDense(5, window=2), WINDOW_DENSE_AXES, [shape(2, 3, 4)]),
}


def layer_shapes(name):
  layer, _, inputs = LAYERS[name]
  return jax.eval_shape(layer.init, jax.random.key(0), *inputs).get("params", {})


@pytest.mark.parametrize("name", LAYERS)
def test_every_parameter_of_a_layer_has_exactly_one_rule(name):
  partitioning.logical_axes(layer_shapes(name), LAYERS[name][1])


def test_every_rule_matches_a_parameter():
  """Each matches a parameter of a family, or a layer, that declares it; rules of blocks one of any family."""
  matched, every = {}, set()
  for name, overrides in CASES:
    paths = partitioning.flatten(shapes(name, **overrides))
    every |= {*paths}
    for pattern in zoo.family(name).LOGICAL_AXES:
      matched[pattern] = matched.get(pattern, False) or any(re.fullmatch(pattern, path) for path in paths)
  every |= {path for name in LAYERS for path in partitioning.flatten(layer_shapes(name))}
  shared = (BLOCK_AXES, POSITION_AXES, WINDOW_BIAS_AXES, BUCKET_BIAS_AXES, POOLING_AXES, ATTENTION_POOL_AXES)
  shared = {pattern for axes in (*shared, COPY_AXES, WINDOW_DENSE_AXES) for pattern in axes}
  for pattern in shared:
    assert any(re.search(rf"(^|/)({pattern})$", path) for path in every), pattern
  idle = [pattern for pattern, used in matched.items() if not used]
  assert not [pattern for pattern in idle if not any(f"/{pattern}".endswith(f"/{tail}") for tail in shared)]


def test_all_faults_in_one_error():
  params = shapes("vit/test")
  params["encoder"]["extra"] = {"kernel": shape(2, 3)}
  params["encoder"]["block_01"]["attn"]["q"]["bias"] = shape(24)
  params["encoder"]["block_02"]["mlp"]["up"]["kernel"] = shape(24, 41)
  with pytest.raises(ValueError) as error:
    partitioning.logical_axes(params, VIT)
  lines = str(error.value).splitlines()
  assert any("encoder/extra/kernel" in line and "0 rules" in line for line in lines)
  assert any("encoder/block_01/attn/q/bias" in line and "('heads', 'head_dim')" in line for line in lines)
  (line,) = [line for line in lines if "encoder/block_02/mlp/up/kernel" in line]
  assert_names(line, "mlp", 41, 40, "encoder/block_00/mlp")
  assert len(lines) == 3, lines


def test_a_parameter_with_two_rules():
  with raises(ValueError, "encoder/patch/kernel", 2):
    partitioning.logical_axes(shapes("vit/test"), VIT | {"encoder/(patch)/kernel": ("pixels", "embed")})


def test_a_logical_axis_may_differ_between_stages():
  named = partitioning.logical_axes(shapes("swin/test"), SWIN)["encoder"]
  for stage in range(2):  # of 24 and of 48
    assert named[f"stage_{stage}"]["block_00"]["regular"]["norm1"]["scale"] == ("embed",)
  params = shapes("swin/test")
  params["encoder"]["stage_1"]["block_01"]["shifted"]["norm1"]["scale"] = shape(24)
  with raises(ValueError, "embed", 24, "encoder/stage_1/block_01/shifted"):
    partitioning.logical_axes(params, SWIN)
  named = partitioning.logical_axes(shapes("mae/test"), zoo.family("mae").LOGICAL_AXES)
  assert named["encoder"]["norm"]["scale"] == named["decoder"]["norm"]["scale"] == ("embed",)  # of 24 and of 16


def test_paths():
  tree = {"a": {"b": [np.zeros(1), np.zeros(2)]}}
  assert list(partitioning.flatten(tree)) == ["a/b/0", "a/b/1"]
  assert partitioning.map_with_path(lambda path, leaf, other: (path, other), tree, {"a": {"b": [1, 2]}}) == {
    "a": {"b": [("a/b/0", 1), ("a/b/1", 2)]}
  }
