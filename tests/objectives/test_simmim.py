"""SimMIM: which patches are masked, what the encoder gets, what each position predicts, and the loss by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import raises, random_model

import zoo
from train import rng
from train.objectives import simmim as objective
from zoo.models.simmim import mask_grid

TINY = dict(width=8, depths=(2, 2), num_heads=(1, 2))  # 4 x 5 squares of 8 pixels, each 2 x 2 patches


def squares(masked_BYX, each):
  """[B, rows, columns]: whether each square is masked; either all of its patches are, or none."""
  B, Y, X = masked_BYX.shape
  parts = np.asarray(masked_BYX).reshape(B, Y // each, each, X // each, each)
  assert (parts == parts[:, :, :1, :, :1]).all()
  return parts[:, :, 0, :, 0]


def pixels_of(masked_BYX):
  return np.asarray(masked_BYX).repeat(4, 1).repeat(4, 2)[..., None]


@pytest.mark.parametrize(("unit", "each"), [(None, 2), (4, 1), (8, 2)])
def test_whole_units_with_the_most_noise_are_masked(unit, each):
  model, variables, (image, _) = random_model("simmim/test", **TINY)
  rows, columns = 8 // each, 10 // each
  noise = np.random.default_rng(1).uniform(size=(2, rows * columns)).astype(np.float32)
  pixels, aux = model.apply(variables, image, noise, mask_patch_size=unit)
  assert pixels.shape == image.shape and aux["masked"].shape == (2, 8, 10)
  masked = squares(aux["masked"], each).reshape(2, -1)
  count = int(np.ceil(rows * columns * 0.6))  # as released: of 36, 22
  np.testing.assert_array_equal(masked, noise >= np.sort(noise, 1)[:, -count, None])


def test_masked_patches_are_replaced_by_the_mask_token():
  """After the norm of the embedding, as released; otherwise the encoder is a Swin's."""
  model, variables, (image, noise) = random_model("simmim/test", **TINY)
  _, aux = jax.jit(model.apply)(variables, image, noise)
  plain = zoo.create("swin/test", head="none", **TINY)
  encoder = variables["params"]["encoder"]
  first = {k: v for k, v in encoder["stage_0"].items() if k != "mask"}
  _, wanted = jax.jit(plain.apply)({"params": {"encoder": encoder | {"stage_0": first}}}, image)
  embedded = np.where(aux["masked"][..., None], encoder["stage_0"]["mask"], wanted["embedded"])
  np.testing.assert_allclose(aux["embedded"], embedded, rtol=1e-5, atol=1e-6)
  _, whole = jax.jit(lambda *inputs: model.apply(*inputs, mask_ratio=0.0))(variables, image, noise)
  assert not whole["masked"].any()
  np.testing.assert_allclose(whole["tokens"], wanted["tokens"], rtol=1e-5, atol=1e-5)


def test_masked_pixels_do_not_reach_the_encoder():
  model, variables, (image, noise) = random_model("simmim/test", **TINY)
  apply = jax.jit(model.apply)
  pixels, aux = apply(variables, image, noise)
  masked = pixels_of(aux["masked"])
  np.testing.assert_array_equal(apply(variables, np.where(masked, -3.0, image).astype(np.float32), noise)[0], pixels)
  changed, _ = apply(variables, np.where(masked, image, image + 1).astype(np.float32), noise)
  assert (np.abs(changed - pixels).max((1, 2, 3)) > 1e-3).all()


def test_each_position_predicts_its_own_square():
  model, variables, (image, noise) = random_model("simmim/test", **TINY)
  pixels, aux = model.apply(variables, image, noise)
  layer = variables["params"]["pixels"]
  for y, x in ((0, 0), (1, 3), (3, 4)):
    predicted = np.asarray(aux["tokens"])[:, y, x] @ layer["kernel"] + layer["bias"]
    square = pixels[:, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
    np.testing.assert_allclose(square, predicted.reshape(2, 8, 8, 3), rtol=1e-4, atol=1e-4)


def test_an_rng_is_needed_where_no_noise_is_given():
  model, variables, (image, _) = random_model("simmim/test", **TINY)
  with raises(ValueError, "`mask`"):
    model.apply(variables, image)
  masks = [model.apply(variables, image, rngs={"mask": jax.random.key(k)})[1]["masked"] for k in (0, 0, 1)]
  np.testing.assert_array_equal(masks[0], masks[1])
  assert (masks[0] != masks[2]).any() and (masks[0][0] != masks[0][1]).any()


def test_invalid_mask_sizes_and_fields_are_errors():
  config = zoo.create("simmim/b").config
  assert mask_grid(config, (192, 256), 32) == (6, 8) and config.stride == 32 and config.grid == (6, 6)
  with raises(ValueError, "mask_patch_size", 6, 4):
    mask_grid(config, (192, 192), 6)
  with raises(ValueError, "mask_patch_size", 0):
    mask_grid(config, (192, 192), 0)
  with raises(ValueError, "192 x 200", "mask_patch_size", 64, 32):
    mask_grid(config, (192, 200), 64)
  for fields in (dict(num_classes=3), dict(head="features")):
    with raises(ValueError, *fields, *fields.values()):
      zoo.create("simmim/test", **fields)
  model, variables, (image, noise) = random_model("simmim/test", **TINY)
  with raises(ValueError, "mask_ratio", 0.99, 20):
    model.apply(variables, image, noise, mask_ratio=0.99)


# ---- The objective ----


BATCH = dict(
  image=np.random.default_rng(2).integers(0, 256, (5, 16, 24, 3), np.uint8),
  valid=np.array([True, True, False, True, True]),
  id=np.arange(5, dtype=np.int32),
)


class KnownPixels:
  """A model that predicts the same pixels for any image, and records its arguments."""

  config = zoo.create("simmim/test").config
  pixels = np.random.default_rng(3).normal(size=(5, 16, 24, 3)).astype(np.float32)

  def apply(self, variables, image_BYXC, noise_BP, *, rngs, **options):
    del variables
    self.image, self.noise, self.rngs, self.options = image_BYXC, np.asarray(noise_BP), rngs, options
    masked = (noise_BP >= jnp.sort(noise_BP, 1)[:, 2:3]).reshape(-1, 2, 3)
    self.masked = np.asarray(masked.repeat(2, 1).repeat(2, 2))
    return self.pixels[: len(noise_BP)], {"masked": self.masked}


def test_loss_by_hand():
  model = KnownPixels()
  loss = objective.Objective(mask_patch_size=8, mask_ratio=0.7, mean=(0.2,), std=(0.3,))(model, {}, BATCH)
  assert model.options == dict(mask_patch_size=8, mask_ratio=0.7) and model.rngs == {}
  image = (BATCH["image"] / 255 - 0.2) / 0.3
  np.testing.assert_allclose(model.image, image, atol=1e-5)
  errors = np.abs(model.pixels - image)
  total = sum(errors[b][pixels_of(model.masked)[b, ..., 0]].mean() for b in np.flatnonzero(BATCH["valid"]))
  np.testing.assert_allclose(loss.total, total, rtol=1e-5)
  assert loss.weight == 4 and loss.variables == {}


def test_only_masked_pixels_have_a_gradient():
  masked = np.random.default_rng(0).uniform(size=(2, 4, 6)) < 0.5
  image, pixels = np.zeros((2, 16, 24, 3), np.float32), np.ones((2, 16, 24, 3), np.float32)
  gradient = jax.grad(lambda p: objective.absolute_error(p, image, masked).sum())(pixels)
  np.testing.assert_array_equal(gradient > 0, np.broadcast_to(pixels_of(masked), gradient.shape))


def test_masks_depend_on_the_example_and_not_on_its_position():
  model = KnownPixels()

  def noise(key, choice):
    objective.Objective(mask_patch_size=8)(model, {}, {k: v[choice] for k, v in BATCH.items()}, key)
    return model.noise

  whole = noise(rng.root(0), np.arange(5))
  assert whole.shape == (5, 6) and len(np.unique(whole)) == whole.size and set(model.rngs) == {"dropout"}
  np.testing.assert_array_equal(noise(rng.root(0), np.array([4, 1])), whole[[4, 1]])
  assert (noise(rng.root(1), np.arange(5)) != whole).all()
  np.testing.assert_array_equal(noise(None, np.array([2])), noise(None, np.arange(5))[[2]])


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1])
def test_mask_ratios_of_none_or_all_are_errors(ratio):
  with raises(ValueError, "config.objective", "mask_ratio", ratio, "0 < mask_ratio < 1"):
    objective.Objective(mask_ratio=ratio)


def test_a_mask_patch_size_that_does_not_divide_the_image_is_an_error():
  with raises(ValueError, "16 x 24", "mask_patch_size", 32):
    objective.Objective()(KnownPixels(), {}, BATCH)
