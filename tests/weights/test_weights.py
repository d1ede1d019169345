"""Files of the zoo: saved and loaded bit-identically, whole or not at all."""

import jax
import pytest
from safetensors import numpy as safetensors
from support import assert_bit_identical, raises, random_variables

import zoo
from zoo.layers.stack import stack_params
from zoo.weights import WeightsError
from zoo.weights.sources import read


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
  assert_bit_identical(loaded, variables)


def test_a_scanned_model_is_saved_unrolled(tmp_path):
  _, variables = random_variables("vit/test")
  stacked = {"params": stack_params(variables["params"])}
  zoo.save(tmp_path / "w.safetensors", "vit/test", dict(scan=True), stacked)
  assert_bit_identical(zoo.load(tmp_path / "w.safetensors", scan=False)[1], variables)
  assert_bit_identical(zoo.load(tmp_path / "w.safetensors")[1], stacked)


def test_metadata_of_the_file(tmp_path):
  _, variables = random_variables("vit/test", depth=1)
  zoo.save(tmp_path / "w.safetensors", "vit/test", dict(depth=1), variables)
  assert "params/encoder/block_00/attn/q/kernel" in safetensors.load_file(tmp_path / "w.safetensors")
  source = read(tmp_path / "w.safetensors")
  assert (source.layout, source.model, source.overrides) == ("zoo", "vit/test", {"depth": 1})


def test_variables_of_another_model_are_not_saved(tmp_path):
  _, variables = random_variables("vit/test", depth=2)
  with raises(WeightsError, "vit/test", "block_02"):
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


def test_the_suffix_determines_the_format(tmp_path):
  with raises(ValueError, ".safetensors"):
    zoo.save(tmp_path / "w.npz", "vit/test", {}, {})
  with raises(ValueError, "layout", "'tim'", "'timm'"):
    zoo.save(tmp_path / "w.safetensors", "vit/test", {}, {}, layout="tim")


def test_weights_of_another_family_are_reported_as_such(tmp_path):
  zoo.save(tmp_path / "v.safetensors", "vit/test", {}, random_variables("vit/test")[1])
  with raises(WeightsError, "v.safetensors", "vit/test", "zoo", "convnext"):
    zoo.load(tmp_path / "v.safetensors", "convnext/test")
