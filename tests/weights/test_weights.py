"""Weights: layouts and formats there and back to the bit; files whole or not at all; mismatches are errors."""

import json
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors
from support import random_variables
from test_weight_tables import assert_same, faults

import zoo
from train.checkpoint import Checkpoints
from train.step import State
from zoo.layers.position_embeddings import resample, sincos_2d
from zoo.layers.stack import stack_params
from zoo.models.swin import V2
from zoo.weights import WeightsError, convert, load_into, tables, write_back
from zoo.weights.sources import read

# The tables of the models.

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
  assert_same(again, variables)


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


def test_what_stands_where_in_a_torch_tensor():
  """Element by element, so that an inverse cannot hide a mistake that it makes too."""
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


def test_positions_without_a_place_in_a_layout(tmp_path):
  overrides = dict(position_embedding="learned_2d")
  _, variables = random_variables("vit/test", **overrides)
  with pytest.raises(WeightsError, match="encoder/pos/row has no rule"):
    zoo.save(tmp_path / "w.safetensors", "vit/test", overrides, variables, layout="timm")
  assert not (tmp_path / "w.safetensors").exists()


def test_running_statistics_have_no_place_in_a_layout(tmp_path):
  overrides = dict(head_norm="batch")
  _, variables = random_variables("vit/test", **overrides)
  zoo.save(tmp_path / "w.safetensors", "vit/test", overrides, variables)
  assert_same(zoo.load(tmp_path / "w.safetensors")[1], variables)
  with pytest.raises(WeightsError, match="batch_stats"):
    zoo.save(tmp_path / "hf.safetensors", "vit/test", overrides, variables, layout="huggingface")


def test_a_classifier_without_classes_must_be_asked_for(tmp_path):
  _, variables = random_variables("vit/test")
  zoo.save(tmp_path / "w.safetensors", "vit/test", {}, variables, layout="timm")
  with pytest.raises(WeightsError, match=r"head.bias is for head/bias"):
    zoo.load(tmp_path / "w.safetensors", "vit/test", layout="timm", num_classes=0)
  _, encoder = zoo.load(tmp_path / "w.safetensors", "vit/test", layout="timm", num_classes=0, ignore=["head.*"])
  assert_same(encoder["params"]["encoder"], variables["params"]["encoder"])


def test_an_encoder_out_of_an_mae(tmp_path):
  _, variables = random_variables("mae/test")
  kwargs = dict(num_classes=0, position_embedding="sincos_2d")
  for layout, decoder in (("zoo", "params/decoder/.*"), ("timm", "decoder.*|mask_token")):
    zoo.save(tmp_path / "w.safetensors", "mae/test", {}, variables, layout=layout)
    _, vit = zoo.load(tmp_path / "w.safetensors", "vit/test", layout=layout, ignore=[decoder], **kwargs)
    assert_same(vit["params"]["encoder"], variables["params"]["encoder"])


# Positions of another image size.


def test_resampling_must_be_asked_for(tmp_path):
  path = tmp_path / "w.safetensors"
  _, variables = random_variables("vit/test", image_size=(16, 16))
  table = variables["params"]["encoder"]["pos"]["table"]
  for layout in ("zoo", "timm", "huggingface"):
    zoo.save(path, "vit/test", dict(image_size=(16, 16)), variables, layout=layout)
    load = dict(name="vit/test", layout=layout, image_size=(20, 12))
    with pytest.raises(WeightsError, match=r"positions of another image size.*resample=True"):
      zoo.load(path, **load)
    for method, kwargs in {"bicubic": True, "bicubic_antialias": "bicubic_antialias"}.items():
      _, again = zoo.load(path, resample=kwargs, **load)
      pos = again["params"]["encoder"]["pos"]
      np.testing.assert_allclose(pos["table"], resample(table, (5, 3), method), rtol=1e-6)
      np.testing.assert_array_equal(pos["cls"], variables["params"]["encoder"]["pos"]["cls"])


def test_what_has_no_positions_cannot_resample_them(tmp_path):
  _, variables = random_variables("convnext/test")
  zoo.save(tmp_path / "w.safetensors", "convnext/test", {}, variables)
  assert_same(zoo.load(tmp_path / "w.safetensors", image_size=(64, 64))[1], variables)
  with pytest.raises(WeightsError, match="convnext has no table of positions to resample; leave resample out"):
    zoo.load(tmp_path / "w.safetensors", resample=True)


def test_rows_and_columns_are_resampled(tmp_path):
  path = tmp_path / "w.safetensors"
  _, variables = random_variables("vit/test", position_embedding="learned_2d")
  zoo.save(path, "vit/test", dict(position_embedding="learned_2d"), variables)
  _, again = zoo.load(path, image_size=(32, 12), resample=True)
  row = variables["params"]["encoder"]["pos"]["row"]
  np.testing.assert_allclose(again["params"]["encoder"]["pos"]["row"], resample(row[:, None], (8, 1))[:, 0], rtol=1e-6)
  np.testing.assert_array_equal(
    again["params"]["encoder"]["pos"]["column"], variables["params"]["encoder"]["pos"]["column"]
  )


def test_a_foreign_table_that_is_no_square(tmp_path):
  _, variables = random_variables("vit/test")
  zoo.save(tmp_path / "w.safetensors", "vit/test", {}, variables, layout="timm")
  with pytest.raises(WeightsError, match="has 15 positions, which are no square"):
    zoo.load(tmp_path / "w.safetensors", "vit/test", layout="timm", image_size=(16, 16), resample=True)


def test_a_fixed_table_is_compared_with_ours():
  table = tables.of("mae").tables(zoo.create("mae/test").config)["timm"]
  _, variables = random_variables("mae/test")
  good = write_back(variables["params"], table)
  np.testing.assert_array_equal(good["pos_embed"][0, 1:], sincos_2d((5, 3), 24).reshape(15, 24))
  np.testing.assert_array_equal(good["pos_embed"][0, 0], 0)
  half = good | {"pos_embed": good["pos_embed"].astype(ml_dtypes.bfloat16)}
  assert_same(convert(half, table, variables["params"]), variables["params"])
  moved = good | {"pos_embed": good["pos_embed"][:, ::-1]}
  assert "pos_embed is not the fixed sin-cos table" in faults(moved, table, variables["params"])[0]


def test_a_fixed_table_of_another_image_size(tmp_path):
  _, variables = random_variables("mae/test", image_size=(16, 16))
  zoo.save(tmp_path / "w.safetensors", "mae/test", dict(image_size=(16, 16)), variables, layout="timm")
  load = dict(name="mae/test", layout="timm")
  with pytest.raises(WeightsError, match="pos_embed holds positions of another image size"):
    zoo.load(tmp_path / "w.safetensors", **load)
  assert_same(zoo.load(tmp_path / "w.safetensors", resample=True, **load)[1], variables)


# Our own file.


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("name", ["vit/test", "mae/test", "segmenter/test"])
def test_save_and_load(tmp_path, name, scan):
  overrides = dict(depth=2, image_size=(12, 8), scan=scan)
  if name == "segmenter/test":  # whose backbone is scanned
    overrides = dict(backbone="swin/test", backbone_kwargs=dict(scan=scan))
  model, variables = random_variables(name, **overrides)
  zoo.save(tmp_path / "new" / "w.safetensors", name, overrides, variables)
  again, loaded = zoo.load(tmp_path / "new" / "w.safetensors")
  assert again == model
  assert_same(loaded, variables)


def test_a_scanned_model_is_saved_unrolled(tmp_path):
  _, variables = random_variables("vit/test")
  stacked = {"params": stack_params(variables["params"])}
  zoo.save(tmp_path / "w.safetensors", "vit/test", dict(scan=True), stacked)
  assert_same(zoo.load(tmp_path / "w.safetensors", scan=False)[1], variables)
  assert_same(zoo.load(tmp_path / "w.safetensors")[1], stacked)


def test_what_the_file_says(tmp_path):
  _, variables = random_variables("vit/test", depth=1)
  zoo.save(tmp_path / "w.safetensors", "vit/test", dict(depth=1), variables)
  assert "params/encoder/block_00/attn/q/kernel" in safetensors.load_file(tmp_path / "w.safetensors")
  source = read(tmp_path / "w.safetensors")
  assert (source.layout, source.model, source.overrides) == ("zoo", "vit/test", {"depth": 1})


def test_variables_of_another_model_are_not_saved(tmp_path):
  _, variables = random_variables("vit/test", depth=2)
  with pytest.raises(WeightsError, match=r"not those of vit/test:\n.*block_02.*is not filled"):
    zoo.save(tmp_path / "w.safetensors", "vit/test", {}, variables)
  assert not list(tmp_path.iterdir())


def test_saving_is_whole_or_not_at_all(tmp_path, monkeypatch):
  path = tmp_path / "w.safetensors"
  _, variables = random_variables("vit/test")
  zoo.save(path, "vit/test", {}, variables)
  before = path.read_bytes()

  def full(_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr("os.fsync", full)
  with pytest.raises(OSError, match="No space"):
    zoo.save(path, "vit/test", {}, jax.tree.map(lambda p: p + 1, variables))
  assert path.read_bytes() == before
  assert list(tmp_path.iterdir()) == [path]


def test_the_suffix_tells_the_format(tmp_path):
  with pytest.raises(ValueError, match=r"written as .safetensors"):
    zoo.save(tmp_path / "w.npz", "vit/test", {}, {})
  with pytest.raises(ValueError, match="unknown layout 'tim'; did you mean 'timm'"):
    zoo.save(tmp_path / "w.safetensors", "vit/test", {}, {}, layout="tim")


def test_weights_of_another_family_are_told_as_such(tmp_path):
  zoo.save(tmp_path / "v.safetensors", "vit/test", {}, random_variables("vit/test")[1])
  with pytest.raises(WeightsError, match=r"v.safetensors of vit/test \(layout zoo\) does not fit convnext"):
    zoo.load(tmp_path / "v.safetensors", "convnext/test")


# Into a model that has something new.


def fine_tuned(**overrides):
  overrides = dict(final_norm=False, head_norm="layer", pool="gap", position_embedding="sincos_2d") | overrides
  return random_variables("vit/test", seed=1, **overrides)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("layout", ["zoo", "timm"])
def test_fine_tuning_starts_from_an_mae(tmp_path, layout, scan):
  path = tmp_path / "mae.safetensors"
  _, mae = random_variables("mae/test")
  zoo.save(path, "mae/test", {}, mae, layout=layout)
  model, variables = fine_tuned(scan=scan)
  ignore = dict(zoo=r"params/(decoder|encoder/norm)/.*", timm=r"norm\..*|decoder.*|mask_token")[layout]
  loaded = load_into(model, variables, path, layout=layout, ignore=ignore, reinit="head.*")
  for new in ("head", "head_norm"):
    assert_same(loaded["params"][new], variables["params"][new])
  encoder = {k: v for k, v in mae["params"]["encoder"].items() if k != "norm"}
  assert_same(loaded["params"]["encoder"], stack_params(encoder) if scan else encoder)


def test_what_fine_tuning_must_name(tmp_path):
  path = tmp_path / "mae.safetensors"
  _, mae = random_variables("mae/test")
  zoo.save(path, "mae/test", {}, mae)
  model, variables = fine_tuned()
  with pytest.raises(WeightsError) as error:
    load_into(model, variables, path)
  lines = "\n".join(error.value.faults)
  assert "params/decoder/mask has no rule" in lines
  assert "params/encoder/norm/scale has no rule" in lines
  assert "params/head/kernel [24, 7] is not filled" in lines
  with pytest.raises(WeightsError, match=r"zoo\.weights\.load_into"):
    zoo.load(path, "vit/test")
  with pytest.raises(WeightsError, match=r"trained with norm_eps 1e-06, the model has 0.01"):
    load_into(fine_tuned(norm_eps=0.01)[0], variables, path, ignore=".*decoder.*", reinit="head.*")


def test_linear_probing_keeps_its_running_statistics(tmp_path):
  path = tmp_path / "vit.safetensors"
  _, pretrained = random_variables("vit/test", num_classes=0)
  zoo.save(path, "vit/test", dict(num_classes=0), pretrained, layout="huggingface")
  model, variables = random_variables("vit/test", seed=1, head_norm="batch")
  loaded = load_into(model, variables, path, layout="huggingface", reinit=["head/.*", "head_norm/.*"])
  assert_same(loaded["batch_stats"], variables["batch_stats"])
  assert_same(loaded["params"]["encoder"], pretrained["params"]["encoder"])


# Formats.


def test_npz(tmp_path):
  model, variables = random_variables("vit/test")
  table = tables.of("vit").tables(model.config)["timm"]
  np.savez(tmp_path / "w.npz", **write_back(variables["params"], table))
  assert_same(zoo.load(tmp_path / "w.npz", "vit/test", layout="timm")[1], variables)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_a_truncated_file_is_named(tmp_path, suffix, part):
  path = tmp_path / f"weights{suffix}"
  content = dict(weight=np.random.default_rng(0).normal(size=(50, 50)))
  np.savez(path, **content) if suffix == ".npz" else safetensors.save_file(content, path)
  path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
  with pytest.raises(WeightsError, match=f"weights{suffix}: cannot be read, it is truncated"):
    zoo.load(path, "vit/test", layout="timm")


def test_pytorch_files_without_pytorch(tmp_path, monkeypatch):
  (tmp_path / "w.pth").write_bytes(b"")
  monkeypatch.setitem(sys.modules, "torch", None)
  with pytest.raises(WeightsError, match=r"w\.pth: a PyTorch file needs PyTorch: pip install torch"):
    zoo.load(tmp_path / "w.pth", "vit/test", layout="timm")


def test_no_such_file(tmp_path):
  (tmp_path / "weights.safetensors").touch()
  with pytest.raises(WeightsError, match=r"no such file.*did you mean 'weights.safetensors'"):
    zoo.load(tmp_path / "wieghts.safetensors")
  with pytest.raises(WeightsError, match=r"unknown format '.h5'; there are .safetensors"):
    (tmp_path / "w.h5").touch()
    zoo.load(tmp_path / "w.h5")


def test_what_a_foreign_file_does_not_tell(tmp_path):
  _, variables = random_variables("vit/test")
  path = tmp_path / "w.safetensors"
  zoo.save(path, "vit/test", {}, variables, layout="timm")
  with pytest.raises(WeightsError, match="does not specify its model"):
    zoo.load(path)
  with pytest.raises(WeightsError, match="its keys look like 'timm'"):
    zoo.load(path, "vit/test")
  with pytest.raises(WeightsError, match="there is no layout 'flax'"):
    zoo.load(path, "vit/test", layout="flax")
  with pytest.raises(WeightsError, match=r"layout huggingface; its keys look like 'timm'"):
    zoo.load(path, "vit/test", layout="huggingface")


# A Hugging Face directory.


def huggingface(directory, name, overrides, **changes):
  """Writes one: two files and an index, as large models have."""
  model, variables = random_variables(name, **overrides)
  family = tables.of(name)
  written = write_back(variables["params"], family.tables(model.config)["huggingface"])
  directory.mkdir()
  parts = dict(list(written.items())[::2]), dict(list(written.items())[1::2])
  for i, part in enumerate(parts):
    safetensors.save_file(part, directory / f"part{i}.safetensors")
  index = {key: f"part{i}.safetensors" for i, part in enumerate(parts) for key in part}
  (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
  names = family.HUGGINGFACE["fields"]
  config = {names[k]: getattr(model.config, k) for k in names}
  config["model_type"] = next(iter(family.HUGGINGFACE["model_types"]))
  config |= {b: config[a] for a, b in family.HUGGINGFACE["equal"].items()}
  (directory / "config.json").write_text(json.dumps(config | changes))
  return model, variables


IMAGES = dict(norm_eps=1e-12, num_channels=2, image_size=(8, 12))
MARIAN = dict(
  head_bias=True,
  vocab_size=23,
  max_length=14,
  pad_token_id=5,
  bos_token_id=5,
  eos_token_id=0,
  activation="swish",
  scale_embedding=False,
)


@pytest.mark.parametrize("name, overrides", [("vit/test", IMAGES), ("mae/test", IMAGES), ("transformer/test", MARIAN)])
def test_a_huggingface_directory_tells_its_model(tmp_path, name, overrides):
  model, variables = huggingface(tmp_path / "hf", name, overrides)
  again, loaded = zoo.load(tmp_path / "hf")
  assert again == model
  assert_same(loaded, variables)


def test_a_huggingface_directory_that_is_another_model(tmp_path):
  huggingface(tmp_path / "hf", "vit/test", {})
  with pytest.raises(WeightsError, match=r"hidden_size 24, vit/ti16 has width 192\n"):
    zoo.load(tmp_path / "hf", "vit/ti16")
  huggingface(tmp_path / "other", "vit/test", {}, model_type="clip")
  with pytest.raises(WeightsError, match=r"model_type 'clip'.*There are: bert, .*vit_mae, .*swinv2, .*, vit; or"):
    zoo.load(tmp_path / "other")
  huggingface(tmp_path / "odd", "vit/test", {"width": 28})
  with pytest.raises(WeightsError, match=r"no variant of vit has .*'width': 28.*pass a name"):
    zoo.load(tmp_path / "odd")
  huggingface(tmp_path / "uneven", "transformer/test", {"head_bias": True}, decoder_attention_heads=2)
  with pytest.raises(WeightsError, match="encoder_attention_heads 4 and decoder_attention_heads 2; ours have one"):
    zoo.load(tmp_path / "uneven")
  (tmp_path / "odd" / "model.safetensors.index.json").unlink()
  with pytest.raises(WeightsError, match=r"none of model.safetensors, "):
    zoo.load(tmp_path / "odd")


# A training run.


def run_directory(workdir, variables, ema=None, model=None):
  """As `train.loop` writes it."""
  config = {"model": model or {"name": "vit/test", "head_norm": "batch"}}
  workdir.mkdir()
  (workdir / "config.json").write_text(json.dumps(config))
  checkpoints = Checkpoints(workdir)
  rest = {k: v for k, v in variables.items() if k != "params"}
  for step in (2, 10):
    params = jax.tree.map(lambda p, step=step: p * step, variables["params"])
    state = State(jnp.int32(step), params, rest, (jnp.zeros(3),), ema, jnp.int32(0))
    checkpoints.save(state, dict(step=step, config=config))
  checkpoints.close()


def test_a_run_of_ours(tmp_path):
  model, variables = random_variables("vit/test", head_norm="batch")
  run_directory(tmp_path / "run", variables, ema=variables["params"])
  newest = variables | {"params": jax.tree.map(lambda p: p * 10, variables["params"])}
  for path in ("run", "run/checkpoints", "run/checkpoints/10"):
    again, loaded = zoo.load(tmp_path / path)
    assert again == model
    assert_same(loaded, newest)
  assert_same(zoo.load(tmp_path / "run", average=True)[1], variables)


def test_a_scanned_run_of_ours(tmp_path):
  model = {"name": "mae/test", "scan": True}
  _, variables = random_variables("mae/test", scan=True)
  run_directory(tmp_path / "run", variables, model=model)
  assert_same(
    zoo.load(tmp_path / "run" / "checkpoints" / "2")[1]["params"], jax.tree.map(lambda p: p * 2, variables["params"])
  )
  with pytest.raises(WeightsError, match="kept no moving average"):
    zoo.load(tmp_path / "run", average=True)
  with pytest.raises(WeightsError, match="neither a Hugging Face directory"):
    zoo.load(tmp_path)
  for file in (tmp_path / "run" / "checkpoints" / "10" / "state").rglob("*"):
    if file.is_file():
      file.write_bytes(b"")
  with pytest.raises(WeightsError, match="checkpoints/10: the checkpoint is truncated or corrupt"):
    zoo.load(tmp_path / "run")
