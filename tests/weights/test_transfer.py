"""Weights of one model in another: an encoder alone, and models with new heads."""

import pytest
from support import assert_bit_identical, raises, random_variables

import zoo
from zoo.layers.stack import stack_params
from zoo.weights import WeightsError, load_into


def test_a_dropped_classifier_must_be_named(tmp_path):
  _, variables = random_variables("vit/test")
  zoo.save(tmp_path / "w.safetensors", "vit/test", {}, variables, layout="timm")
  with raises(WeightsError, "head.bias", "head/bias"):
    zoo.load(tmp_path / "w.safetensors", "vit/test", layout="timm", num_classes=0)
  _, encoder = zoo.load(tmp_path / "w.safetensors", "vit/test", layout="timm", num_classes=0, ignore=["head.*"])
  assert_bit_identical(encoder["params"]["encoder"], variables["params"]["encoder"])


def test_an_encoder_out_of_an_mae(tmp_path):
  _, variables = random_variables("mae/test")
  kwargs = dict(num_classes=0, position_embedding="sincos_2d")
  for layout, decoder in (("zoo", "params/decoder/.*"), ("timm", "decoder.*|mask_token")):
    zoo.save(tmp_path / "w.safetensors", "mae/test", {}, variables, layout=layout)
    _, vit = zoo.load(tmp_path / "w.safetensors", "vit/test", layout=layout, ignore=[decoder], **kwargs)
    assert_bit_identical(vit["params"]["encoder"], variables["params"]["encoder"])


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
    assert_bit_identical(loaded["params"][new], variables["params"][new])
  encoder = {k: v for k, v in mae["params"]["encoder"].items() if k != "norm"}
  assert_bit_identical(loaded["params"]["encoder"], stack_params(encoder) if scan else encoder)


def test_what_fine_tuning_must_name(tmp_path):
  path = tmp_path / "mae.safetensors"
  _, mae = random_variables("mae/test")
  zoo.save(path, "mae/test", {}, mae)
  model, variables = fine_tuned()
  with raises(WeightsError, "params/decoder/mask", "params/encoder/norm/scale", "params/head/kernel [24, 7]"):
    load_into(model, variables, path)
  with raises(WeightsError, "zoo.weights.load_into"):
    zoo.load(path, "vit/test")
  with raises(WeightsError, "norm_eps", 1e-06, 0.01):
    load_into(fine_tuned(norm_eps=0.01)[0], variables, path, ignore=".*decoder.*", reinit="head.*")


def test_linear_probing_keeps_its_running_statistics(tmp_path):
  path = tmp_path / "vit.safetensors"
  _, pretrained = random_variables("vit/test", num_classes=0)
  zoo.save(path, "vit/test", dict(num_classes=0), pretrained, layout="huggingface")
  model, variables = random_variables("vit/test", seed=1, head_norm="batch")
  loaded = load_into(model, variables, path, layout="huggingface", reinit=["head/.*", "head_norm/.*"])
  assert_bit_identical(loaded["batch_stats"], variables["batch_stats"])
  assert_bit_identical(loaded["params"]["encoder"], pretrained["params"]["encoder"])
