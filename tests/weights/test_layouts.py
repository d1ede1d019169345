"""Published layouts: written and read again, bit-identical; their names and axes."""

import jax
import pytest
from support import assert_bit_identical, raises, random_variables

import zoo
from zoo.models.swin import V2
from zoo.weights import WeightsError, tables, write_back
from zoo.weights.sources import read

CASES = [
  ("vit/test", "huggingface", {}),
  ("vit/test", "huggingface", dict(num_classes=0, representation_size=11)),
  ("vit/test", "huggingface", dict(position_embedding="sincos_2d", scan=True)),
  ("vit/test", "timm", {}),
  ("vit/test", "timm", dict(pool="gap", class_token=False, final_norm=False, head_norm="layer")),
  ("vit/test", "timm", dict(pool="map", class_token=False, representation_size=13)),
  ("vit/test", "google", dict(representation_size=11, scan=True)),
  ("vit/test", "google", dict(pool="map", class_token=False)),
  ("mae/test", "huggingface", {}),
  ("mae/test", "timm", dict(scan=True)),
  *(("convnext/test", layout, {}) for layout in ("huggingface", "meta", "timm")),
  ("convnext/test", "huggingface", dict(num_classes=0, scan=True)),
  *(("convnext/test", layout, dict(head="features", num_classes=0)) for layout in ("huggingface", "meta")),
  ("convnext/test", "timm", dict(layer_scale_init_value=0.0)),
  ("hybrid/test", "timm", dict(scan=True)),
  ("hybrid/test", "timm", dict(stem_depths=())),
  ("hybrid/test", "google", {}),
  *(("swin/test", layout, {}) for layout in ("huggingface", "timm", "microsoft")),
  *(("swin/test", layout, dict(V2, scan=True)) for layout in ("huggingface", "timm", "microsoft")),
  *(("swin/test", layout, dict(head="features")) for layout in ("huggingface", "microsoft")),
  ("swin/test", "huggingface", dict(head="none", norm_position="res_post")),
  ("transformer/test", "huggingface", dict(head_bias=True)),
  (
    "transformer/test",
    "huggingface",
    dict(head_bias=True, tie_embeddings="target", position_embedding="learned", embed_norm=True),
  ),
  (
    "transformer/test",
    "huggingface",
    dict(head_bias=True, tie_embeddings="none", norm_position="pre", final_norm=True, scan=True),
  ),
  ("transformer/test", "torch", dict(final_norm=True)),
  ("transformer/test", "torch", dict(final_norm=True, tie_embeddings="none", head_bias=True, norm_position="pre")),
]


@pytest.mark.parametrize(("name", "layout", "overrides"), CASES)
def test_write_a_layout_and_read_it(tmp_path, name, layout, overrides):
  _, variables = random_variables(name, **overrides)
  zoo.save(tmp_path / "w.safetensors", name, overrides, variables, layout=layout)
  _, again = zoo.load(tmp_path / "w.safetensors", name, layout=layout, **overrides)
  assert_bit_identical(again, variables)


def test_layouts_write_the_published_names(tmp_path):
  def written(name, layout, **overrides):
    _, variables = random_variables(name, **overrides)
    zoo.save(tmp_path / "w.safetensors", name, overrides, variables, layout=layout)
    return {key: t.shape for key, t in read(tmp_path / "w.safetensors").tensors.items()}

  keys = written("vit/test", "timm", depth=1)
  assert keys == {
    "cls_token": (1, 1, 24),
    "pos_embed": (1, 16, 24),
    "patch_embed.proj.weight": (24, 3, 4, 4),
    "patch_embed.proj.bias": (24,),
    "blocks.0.norm1.weight": (24,),
    "blocks.0.norm1.bias": (24,),
    "blocks.0.attn.qkv.weight": (72, 24),
    "blocks.0.attn.qkv.bias": (72,),
    "blocks.0.attn.proj.weight": (24, 24),
    "blocks.0.attn.proj.bias": (24,),
    "blocks.0.norm2.weight": (24,),
    "blocks.0.norm2.bias": (24,),
    "blocks.0.mlp.fc1.weight": (40, 24),
    "blocks.0.mlp.fc1.bias": (40,),
    "blocks.0.mlp.fc2.weight": (24, 40),
    "blocks.0.mlp.fc2.bias": (24,),
    "norm.weight": (24,),
    "norm.bias": (24,),
    "head.weight": (7, 24),
    "head.bias": (7,),
  }
  keys = written("mae/test", "timm", decoder_depth=1)
  assert keys["decoder_pos_embed"] == (1, 16, 16)
  assert keys["decoder_blocks.0.attn.qkv.weight"] == (48, 16)
  assert keys["decoder_pred.weight"] == (48, 16)
  assert keys["mask_token"] == (1, 1, 16)
  keys = written("mae/test", "huggingface")
  assert "vit.encoder.layer.2.attention.attention.query.weight" in keys
  assert "decoder.decoder_layers.1.attention.output.dense.weight" in keys
  # ViTForImageClassification has a prefix, ViTModel has none.
  assert "vit.layernorm.weight" in written("vit/test", "huggingface")
  assert "layernorm.weight" in written("vit/test", "huggingface", num_classes=0)


def test_axes_of_torch_tensors():
  """Element by element, since an inverse may make the same mistake."""
  model, variables = random_variables("vit/test", image_size=(12, 20))
  params = jax.device_get(variables["params"])
  t = write_back(params, tables.of("vit").tables(model.config)["timm"])
  encoder, attn = params["encoder"], params["encoder"]["block_01"]["attn"]
  head, h, d = 1, 5, 17  # of 2 heads, 12 wide, in a width of 24
  for i, name in enumerate("qkv"):
    row = 24 * i + 12 * head + h
    assert t["blocks.1.attn.qkv.weight"][row, d] == attn[name]["kernel"][d, head, h]
    assert t["blocks.1.attn.qkv.bias"][row] == attn[name]["bias"][head, h]
  assert t["blocks.1.attn.proj.weight"][d, 12 * head + h] == attn["out"]["kernel"][head, h, d]
  y, x, c = 1, 3, 2  # of a patch of 4 x 4 pixels and 3 channels
  assert t["patch_embed.proj.weight"][d, c, y, x] == encoder["patch"]["kernel"][(y * 4 + x) * 3 + c, d]
  assert t["pos_embed"][0, 0, d] == encoder["pos"]["cls"][d]
  assert t["pos_embed"][0, 1 + 2 * 5 + 4, d] == encoder["pos"]["table"][2, 4, d]
  assert t["blocks.1.mlp.fc1.weight"][33, d] == encoder["block_01"]["mlp"]["up"]["kernel"][d, 33]


def test_positions_that_a_layout_does_not_have(tmp_path):
  overrides = dict(position_embedding="learned_2d")
  _, variables = random_variables("vit/test", **overrides)
  with raises(WeightsError, "encoder/pos/row"):
    zoo.save(tmp_path / "w.safetensors", "vit/test", overrides, variables, layout="timm")
  assert not (tmp_path / "w.safetensors").exists()


def test_running_statistics_that_a_layout_does_not_have(tmp_path):
  overrides = dict(head_norm="batch")
  _, variables = random_variables("vit/test", **overrides)
  zoo.save(tmp_path / "w.safetensors", "vit/test", overrides, variables)
  assert_bit_identical(zoo.load(tmp_path / "w.safetensors")[1], variables)
  with raises(WeightsError, "batch_stats"):
    zoo.save(tmp_path / "hf.safetensors", "vit/test", overrides, variables, layout="huggingface")
