"""Reconstructions: what is predicted, and what the model is given."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import assert_plotted, initialized, random_images

import zoo
from train import plots
from train.objectives import simmim
from train.plots import registry
from zoo.layers.patch_embed import patchify

pytestmark = pytest.mark.usefixtures("one_device")


class Oracle:
  """A model that predicts the right patches, standardised or not."""

  def __init__(self, model, standardise):
    self.config, self.standardise = model.config, standardise

  def apply(self, variables, image_BYXC, noise_BP, *, mask_ratio):
    target = patchify(image_BYXC, self.config.patch_size).reshape(*noise_BP.shape, -1)
    if self.standardise:
      mean, var = target.mean(-1, keepdims=True), target.var(-1, keepdims=True, ddof=1)
      target = (target - mean) / jnp.sqrt(var + 1e-6)
    return target, {"masked": noise_BP > 1 - mask_ratio}


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_perfect_prediction_is_the_image(standardise, channels):
  model = zoo.create("mae/test", num_channels=channels)
  image = random_images(model)
  noise = jax.random.uniform(jax.random.key(0), (2, 15))
  kwargs = dict(norm_pix_loss=standardise, mean=(0.3,) * channels, std=(0.2,) * channels)
  result, masked = plots.reconstruct(Oracle(model, standardise), {}, image, noise, mask_ratio=0.5, **kwargs)
  np.testing.assert_array_equal(result, image)
  np.testing.assert_array_equal(masked[:, ::4, ::4, 0].reshape(2, 15), noise > 0.5)
  assert masked.shape == (*image.shape[:3], 1)


@pytest.mark.parametrize(
  ("name", "fields", "count", "options"),
  [
    ("mae/test", dict(depth=1, decoder_depth=1), 15, {}),
    ("simmim/test", dict(depths=(2,), num_heads=(2,)), 20, dict(mask_patch_size=8)),
  ],
)
def test_masked_pixels_do_not_change_the_prediction(name, fields, count, options):
  model, variables = initialized(name, **fields)
  image = random_images(model, 1)
  noise = jax.random.uniform(jax.random.key(1), (1, count))
  predict = functools.partial(plots.reconstruct, model, variables, noise=noise, norm_pix_loss=False, **options)
  result, masked = predict(image)
  np.testing.assert_array_equal(predict(np.where(masked, 0, image).astype(np.uint8))[0], result)
  assert (predict(np.where(masked, image, 0).astype(np.uint8))[0] != result).any()


def test_masked_squares_are_those_of_the_objective(tmp_path):
  model, variables = initialized("simmim/test", depths=(2,), num_heads=(2,))
  run = SimpleNamespace(model=model, objective=simmim.Objective(mask_patch_size=8, mask_ratio=0.7))
  figure = registry.PLOTS["reconstructions"].function(
    run, variables, None, random_images(model), path=tmp_path / "a.png"
  )
  assert_plotted(tmp_path / "a.png")
  assert "Reconstructed from 6 of 20 squares" in [t.get_text() for t in figure.texts]
  shown = figure.axes[2].images[0].get_array().reshape(4, 8, 5, 8, -1)
  assert (shown == plots.MASKED).all((1, 3, 4)).sum() == 14
