"""Tables of positions of another image size or window."""

import functools

import jax
import ml_dtypes
import numpy as np
import pytest
from support import assert_bit_identical, raises, random_variables
from test_weight_tables import faults

import zoo
from zoo.layers.position_embeddings import resample, sincos_2d
from zoo.weights import WeightsError, convert, tables, write_back


def test_resampling_must_be_requested(tmp_path):
  path = tmp_path / "w.safetensors"
  _, variables = random_variables("vit/test", image_size=(16, 16))
  table = variables["params"]["encoder"]["pos"]["table"]
  for layout in ("zoo", "timm", "huggingface"):
    zoo.save(path, "vit/test", dict(image_size=(16, 16)), variables, layout=layout)
    load = dict(name="vit/test", layout=layout, image_size=(20, 12))
    with raises(WeightsError, "resample=True"):
      zoo.load(path, **load)
    for method, kwargs in {"bicubic": True, "bicubic_antialias": "bicubic_antialias"}.items():
      _, again = zoo.load(path, resample=kwargs, **load)
      pos = again["params"]["encoder"]["pos"]
      np.testing.assert_allclose(pos["table"], resample(table, (5, 3), method), rtol=1e-6)
      np.testing.assert_array_equal(pos["cls"], variables["params"]["encoder"]["pos"]["cls"])


def test_resampling_of_a_model_without_positions(tmp_path):
  _, variables = random_variables("convnext/test")
  zoo.save(tmp_path / "w.safetensors", "convnext/test", {}, variables)
  assert_bit_identical(zoo.load(tmp_path / "w.safetensors", image_size=(64, 64))[1], variables)
  with raises(WeightsError, "convnext", "resample"):
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
  with raises(WeightsError, 15, "square"):
    zoo.load(tmp_path / "w.safetensors", "vit/test", layout="timm", image_size=(16, 16), resample=True)


def test_a_fixed_table_is_compared_with_ours():
  table = tables.of("mae").tables(zoo.create("mae/test").config)["timm"]
  _, variables = random_variables("mae/test")
  good = write_back(variables["params"], table)
  np.testing.assert_array_equal(good["pos_embed"][0, 1:], sincos_2d((5, 3), 24).reshape(15, 24))
  np.testing.assert_array_equal(good["pos_embed"][0, 0], 0)
  half = good | {"pos_embed": good["pos_embed"].astype(ml_dtypes.bfloat16)}
  assert_bit_identical(convert(half, table, variables["params"]), variables["params"])
  moved = good | {"pos_embed": good["pos_embed"][:, ::-1]}
  assert "pos_embed" in faults(moved, table, variables["params"])[0]


def test_a_fixed_table_of_another_image_size(tmp_path):
  _, variables = random_variables("mae/test", image_size=(16, 16))
  zoo.save(tmp_path / "w.safetensors", "mae/test", dict(image_size=(16, 16)), variables, layout="timm")
  load = dict(name="mae/test", layout="timm")
  with raises(WeightsError, "pos_embed", "resample=True"):
    zoo.load(tmp_path / "w.safetensors", **load)
  assert_bit_identical(zoo.load(tmp_path / "w.safetensors", resample=True, **load)[1], variables)


LAYOUTS = ("zoo", "huggingface", "timm", "microsoft")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tables_of_another_window_are_resampled_on_request(layout, tmp_path):
  _, variables = random_variables("swin/test")
  zoo.save(tmp_path / "w.safetensors", "swin/test", {}, variables, layout=layout)
  load = functools.partial(zoo.load, tmp_path / "w.safetensors", "swin/test", layout=layout, window_size=5)
  with raises(WeightsError, "resample=True"):
    load()
  _, again = load(resample=True)
  resampled = 0

  def check(path, old, new):
    nonlocal resampled
    if path[-1].key == "table":
      resampled += 1
      np.testing.assert_allclose(new, resample(old, (9, 9), "bicubic"), rtol=1e-5, atol=1e-6)
    else:
      np.testing.assert_array_equal(new, old)

  jax.tree_util.tree_map_with_path(check, variables, again)
  assert resampled == 6
