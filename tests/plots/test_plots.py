"""Plots of models and of their positions."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from support import assert_plotted, initialized, raises, random_images

from train import plots

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.mark.parametrize("positions", ["learned_1d", "learned_2d", "sincos_2d"])
def test_position_table_is_what_the_encoder_adds(positions):
  model, variables = initialized("vit/test", position_embedding=positions, depth=1)
  blank = jnp.zeros((1, *model.config.image_size, 3))
  embedded = model.apply(variables, blank)[1]["embedded"][0, 1:]
  bias = variables["params"]["encoder"]["patch"]["bias"]
  table = plots.position_table(model, variables)
  np.testing.assert_allclose(table.reshape(-1, model.config.width), embedded - bias, atol=1e-6)


def test_no_positions_is_an_error():
  with raises(ValueError, "position_embedding='none'"):
    plots.position_table(*initialized("vit/test", position_embedding="none"))


def test_similarity_by_hand():
  table = np.array([[[1.0, 0.0], [0.0, 2.0]], [[-3.0, 0.0], [4.0, 4.0]]])
  half = math.sqrt(0.5)
  np.testing.assert_allclose(plots.similarity(table)[0, 0], [[1, 0], [-1, half]], atol=1e-12)
  np.testing.assert_allclose(plots.similarity(table)[1, 1], [[half, half], [-half, 1]], atol=1e-12)


def test_plots_of_models(tmp_path):
  small = dict(num_channels=3, depth=2)
  mae = initialized("mae/test", decoder_depth=1, **small)
  vit = initialized("vit/test", class_token=False, pool="gap", **small)
  image = random_images(mae[0], 3)
  plots.reconstructions(*mae, image, path=tmp_path / "a.png")
  plots.attention_maps(*mae, image, path=tmp_path / "b.png", max_heads=1)
  plots.attention_rollout(*vit, image, path=tmp_path / "c.png")
  for path in tmp_path.glob("*.png"):
    assert_plotted(path)


def test_position_similarity_thins_out_large_grids(tmp_path):
  model = initialized("mae/test")
  figure = plots.position_similarity(plots.position_table(*model), path=tmp_path / "d.png")
  assert_plotted(tmp_path / "d.png")
  assert len(figure.axes) == 5 * 3 + 1  # a map a patch, and the scale
  assert len(plots.position_similarity(np.ones((30, 10, 4))).axes) == 10 * 4 + 1


def test_without_a_path_nothing_is_written(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  model, variables = initialized("vit/test")
  assert isinstance(plots.attention_rollout(model, variables, random_images(model)), Figure)
  assert not list(tmp_path.iterdir())
