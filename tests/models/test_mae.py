"""MAE: masks, the encoder's and the decoder's inputs; invalid arguments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import check_gradients, raises, random_model, shapes
from test_vit import TINY, init

import zoo
from train.objectives import mae as mae_objective
from zoo.models import mae


@pytest.mark.parametrize("variant", ["test", "nano4", "b16", "l16", "h14"])
def test_the_encoder_is_a_vit(variant):
  ours = shapes(f"mae/{variant}")["params"]["encoder"]
  theirs = shapes(f"vit/{variant}", position_embedding="sincos_2d")["params"]["encoder"]
  assert jax.tree.map(lambda a: a.shape, ours) == jax.tree.map(lambda a: a.shape, theirs)


def test_masks_are_uniform_and_of_static_size():
  noise = np.random.default_rng(0).uniform(size=(4000, 10)).astype(np.float32)
  visible, masked, restore = (np.asarray(a) for a in jax.jit(mae.random_mask, static_argnums=1)(noise, 0.75))
  assert visible.shape == (4000, 2) and masked.shape == restore.shape == (4000, 10)
  assert (masked.sum(1) == 8).all()
  np.testing.assert_array_equal(np.take_along_axis(masked, visible, 1), False)
  # By the same noise: the least of it stays.
  np.testing.assert_array_equal(visible, np.argsort(noise, 1)[:, :2])
  np.testing.assert_array_equal(np.take_along_axis(np.argsort(noise, 1), restore, 1), np.tile(np.arange(10), (4000, 1)))
  # Every patch as often (binomial, five deviations), and every pair of patches as often.
  assert np.abs(masked.mean(0) - 0.8).max() < 5 * np.sqrt(0.8 * 0.2 / 4000)
  pairs = (~masked).T.astype(int) @ (~masked)
  off_diagonal = pairs[np.triu_indices(10, 1)] / 4000
  assert np.abs(off_diagonal - 1 / 45).max() < 5 * np.sqrt(1 / 45 / 4000)


@pytest.mark.parametrize(("ratio", "kept"), [(0.0, 16), (0.5, 8), (0.75, 4), (0.9, 1)])
def test_number_of_visible_patches(ratio, kept):
  visible, masked, _ = jax.eval_shape(lambda n: mae.random_mask(n, ratio), jax.ShapeDtypeStruct((3, 16), jnp.float32))
  assert visible.shape == (3, kept) and masked.dtype == bool


@pytest.mark.parametrize("ratio", [1.0, -0.1, 0.99])
def test_invalid_mask_ratios(ratio):
  with raises(ValueError, "mask_ratio", ratio, 16, 0, 1):
    mae.random_mask(np.zeros((1, 16)), ratio)


MAE = dict(decoder_depth=1, decoder_width=8, decoder_mlp_dim=8, decoder_num_heads=2)


@functools.cache
def small_mae(ratio):
  model, variables, inputs = random_model("mae/test", **TINY, **MAE)
  return jax.jit(functools.partial(model.apply, mask_ratio=ratio)), variables, inputs


def test_the_encoder_sees_only_visible_patches():
  apply, variables, (image, noise) = small_mae(0.6)
  pixels, aux = apply(variables, image, noise)
  assert aux["tokens"].shape == (2, int(15 * 0.4) + 1, 8) and pixels.shape == (2, 15, 48)
  masked = np.asarray(aux["masked"]).reshape(2, 5, 3).repeat(4, 1).repeat(4, 2)[..., None]
  other = np.where(masked, -3.0, image).astype(np.float32)
  assert masked.sum() == 2 * 9 * 16
  hidden_pixels, hidden_aux = apply(variables, other, noise)
  np.testing.assert_array_equal(hidden_aux["tokens"], aux["tokens"])
  np.testing.assert_array_equal(hidden_pixels, pixels)
  _, seen_aux = apply(variables, np.where(masked, image, image + 1).astype(np.float32), noise)
  assert (np.abs(seen_aux["tokens"] - aux["tokens"]).max((1, 2)) > 1e-3).all()


def test_no_mask_is_the_vit_of_all_patches():
  apply, variables, (image, noise) = small_mae(0.0)
  _, aux = apply(variables, image, noise)
  assert not aux["masked"].any()
  vit = zoo.create("vit/test", **TINY, position_embedding="sincos_2d", num_classes=0)
  _, wanted = vit.apply({"params": {"encoder": variables["params"]["encoder"]}}, image)
  order = np.argsort(noise, 1)
  wanted = np.concatenate(
    [wanted["tokens"][:, :1], np.take_along_axis(wanted["tokens"][:, 1:], order[..., None], 1)], 1
  )
  np.testing.assert_allclose(aux["tokens"], wanted, rtol=1e-4, atol=1e-5)


def test_the_output_depends_on_the_set_of_visible_patches_and_not_their_order():
  apply, variables, (image, noise) = small_mae(0.6)
  pixels, aux = apply(variables, image, noise)
  # The same patches stay visible, in the opposite order of noise.
  turned, _ = apply(variables, image, np.where(aux["masked"], noise, noise.min() - noise).astype(np.float32))
  np.testing.assert_allclose(turned, pixels, rtol=1e-4, atol=1e-5)


def test_only_masked_patches_have_a_gradient():
  apply, variables, (image, noise) = small_mae(0.6)
  pixels, aux = apply(variables, image, noise)
  gradient = jax.grad(lambda p: mae_objective.reconstruction_loss(p, image, aux["masked"], 4, True).sum())(pixels)
  np.testing.assert_array_equal(np.abs(gradient).max(-1) > 0, aux["masked"])


def test_masks_are_drawn_for_each_image_from_the_rng():
  model, variables, (image, _) = random_model("mae/test", **TINY, **MAE)
  masks = [model.apply(variables, image, rngs={"mask": jax.random.key(k)})[1]["masked"] for k in (0, 0, 1)]
  np.testing.assert_array_equal(masks[0], masks[1])
  assert (masks[0] != masks[2]).any() and (masks[0][0] != masks[0][1]).any()


@pytest.mark.parametrize(
  "overrides",
  [dict(class_token=False, pool="gap"), dict(position_embedding="learned_2d", image_size=(8, 12)), dict(scan=True)],
)
def test_mae_combinations(overrides):
  if "scan" in overrides:
    check = functools.partial(check_gradients, "mae/test", **TINY | dict(depth=2), **MAE | dict(decoder_depth=2))
  else:
    check = functools.partial(check_gradients, "mae/test", **TINY, **MAE)
  pixels, aux = check(**overrides)
  assert {"tokens", "masked", "block_00", "decoder/block_00", "decoder/block_00/weights"} <= set(aux)
  assert pixels.shape[1] == aux["masked"].shape[1]


def test_invalid_maes():
  with raises(ValueError, "relative"):
    zoo.create("mae/test", position_embedding="relative")
  with raises(ValueError, 3, "heads", 16):
    init("mae/test", decoder_num_heads=3)
  with raises(ValueError, "sincos_2d", 4, 18):
    init("mae/test", decoder_width=18, decoder_num_heads=2)
