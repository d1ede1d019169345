"""Every parameter has one rule, and all that is wrong comes in one error."""

import functools

import jax
import numpy as np
import pytest

import zoo
from zoo import partitioning
from zoo.layers.pooling import KINDS as POOLINGS
from zoo.layers.pooling import Pooling, WindowDense
from zoo.layers.position_embeddings import RelativeBias

# Each brings parameters that the plain variant does not have, or takes some away.
IMAGES = [
  dict(pool="map"),
  dict(pool="gap", class_token=False, head_norm="layer", final_norm=False),
  dict(head_norm="batch", num_classes=0),
  dict(representation_size=5),
  *(dict(position_embedding=kind) for kind in ("none", "learned_2d", "sincos_2d")),
]
COMBINATIONS = {
  "nat": [dict(length="cut"), dict(tie_embeddings="none", cross="mix", copy=True, position_embedding="t5")],
  "mae": IMAGES,
  "swin": [
    dict(norm_position="res_post", attention_score="cosine", relative_position_bias="continuous"),
    dict(head="features"),
    dict(head="none"),
  ],
  "vit": [
    *IMAGES,
    dict(position_embedding="relative"),
  ],  # an MAE sees a random choice of patches, which have no offsets
  "hybrid": [dict(stem_depths=(2,)), dict(stem_depths=(), pool="map")],
  "patch_prediction": [dict(position_embedding="relative")],
  "simmim": [dict(norm_position="res_post", attention_score="cosine", relative_position_bias="continuous")],
  "convnext": [dict(head="features"), dict(layer_scale=0.0, num_classes=0)],
  "transformer": [
    dict(tie_embeddings="none", head_bias=True, position_embedding="learned"),
    dict(head_bias=True, norm_position="pre", final_norm=True),
    dict(cross="mix", copy=True, num_kv_heads=1, position_embedding="t5"),
  ],
  "bert": [
    dict(head="classify", num_classes=3),
    dict(head="tag", num_classes=3, norm_position="pre"),
    dict(head="span", position_embedding="rotary"),
    dict(head="none"),
  ],
  "kernel_regression": [],
  "segmenter": [
    dict(head="linear", backbone="vit/nano4"),
    dict(
      head="fpn", norm="layer", image_size=(64, 96), options=dict(patch_size=32, scan=True, position_embedding="none")
    ),
  ],
  "seq2seq": [
    dict(cell="lstm", attention="none", head_bias=True),
    dict(attention="general", head="copy", bidirectional=False, input_feeding=True),
    dict(attend="after", head="pointer"),
  ],
}


def shape(*sizes):
  return jax.ShapeDtypeStruct(sizes, np.float32)


def shapes(name, **overrides):
  model = zoo.create(name, **overrides)
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
  named = partitioning.logical_axes(params)  # raises where a rule is missing or there are two
  for path, leaf in partitioning.flatten(params).items():
    node = functools.reduce(lambda tree, key: tree[key], path.split("/"), named)
    assert len(node) == len(leaf.shape) and len(set(node)) == len(node), path
    assert (node[:1] == ("layers",)) == ("/blocks/" in path)


# Layers with parameters that no family has in its `test` variant, and what to call them with.
LAYERS = {
  **{kind: (Pooling(kind, hidden=5), [shape(2, 3, 4), shape(2, 6, 4), shape(2, 6, 7)]) for kind in POOLINGS},
  "relative_bias": (RelativeBias(3), [jax.ShapeDtypeStruct((1, 4), np.int32)] * 2),
  "window": (WindowDense(5, window=2), [shape(2, 3, 4)]),
}


def layer_shapes(name):
  layer, inputs = LAYERS[name]
  return {name: jax.eval_shape(layer.init, jax.random.key(0), *inputs).get("params", {})}


@pytest.mark.parametrize("name", LAYERS)
def test_every_parameter_of_a_layer_has_exactly_one_rule(name):
  partitioning.logical_axes(layer_shapes(name))


def test_no_rule_is_idle():
  paths = {path for name, overrides in CASES for path in partitioning.flatten(shapes(name, **overrides))}
  paths |= {p for name in LAYERS for p in partitioning.flatten(layer_shapes(name))}
  for pattern, _ in partitioning.RULES:
    for part in pattern.split("|") if "(" not in pattern else [pattern]:
      assert any(partitioning.re.search(rf"(^|/)({part})$", path) for path in paths), part


def test_all_faults_in_one_error():
  params = shapes("vit/test")
  params["encoder"]["extra"] = {"kernel": shape(2, 3)}
  params["encoder"]["block_01"]["attn"]["q"]["bias"] = shape(24)
  params["encoder"]["block_02"]["mlp"]["up"]["kernel"] = shape(24, 41)
  with pytest.raises(ValueError) as error:
    partitioning.logical_axes(params)
  lines = str(error.value).splitlines()
  assert any("encoder/extra/kernel (2, 3) fits 0 rules" in line for line in lines)
  assert any(
    "encoder/block_01/attn/q/bias has shape (24,), its rule says ('heads', 'head_dim')" in line for line in lines
  )
  assert any("mlp is 41 in encoder/block_02/mlp/up/kernel but 40 in encoder/block_00/mlp" in line for line in lines)
  assert len(lines) == 3, lines


def test_two_rules_are_one_too_many(monkeypatch):
  monkeypatch.setattr(partitioning, "RULES", (*partitioning.RULES, (r"patch/kernel", ("pixels", "embed"))))
  with pytest.raises(ValueError, match=r"encoder/patch/kernel.*fits 2 rules.*wanted exactly one"):
    partitioning.logical_axes(shapes("vit/test"))


def test_a_logical_axis_may_differ_between_stages():
  named = partitioning.logical_axes(shapes("swin/test"))["encoder"]
  for stage in range(2):  # of 24 and of 48
    assert named[f"stage_{stage}"]["block_00"]["regular"]["norm1"]["scale"] == ("embed",)
  params = shapes("swin/test")
  params["encoder"]["stage_1"]["block_01"]["shifted"]["norm1"]["scale"] = shape(24)
  with pytest.raises(ValueError, match=r"embed is .* in encoder/stage_1/block_01/shifted"):
    partitioning.logical_axes(params)
  named = partitioning.logical_axes(shapes("mae/test"))
  assert named["encoder"]["norm"]["scale"] == named["decoder"]["norm"]["scale"] == ("embed",)  # of 24 and of 16


def test_paths():
  tree = {"a": {"b": [np.zeros(1), np.zeros(2)]}}
  assert list(partitioning.flatten(tree)) == ["a/b/0", "a/b/1"]
  assert partitioning.map_with_path(lambda path, leaf, other: (path, other), tree, {"a": {"b": [1, 2]}}) == {
    "a": {"b": [("a/b/0", 1), ("a/b/1", 2)]}
  }
