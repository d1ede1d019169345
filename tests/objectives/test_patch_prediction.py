"""Masked patch prediction: shares, what replaces a patch, targets and loss by hand."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import raises

import zoo
from train import plots, rng
from train.objectives import patch_prediction as objective
from zoo.models.patch_prediction import corrupt

P = 20


@pytest.fixture(scope="module")
def many():
  """The corruption of 20 patches of each of 6,000 images."""
  noise = np.random.default_rng(0).uniform(size=(6000, P)).astype(np.float32)
  return jax.device_get(jax.jit(corrupt)(noise))


def roles(found):
  """[B, P]: 0 for patches not chosen, 1 masked, 2 swapped, 3 chosen and unchanged."""
  chosen = np.zeros(found.masked_BP.shape, bool)
  np.put_along_axis(chosen, found.chosen_BT, True, 1)
  swapped = found.source_BP != np.arange(found.masked_BP.shape[1])
  assert not (found.masked_BP & swapped).any() and (chosen | ~(found.masked_BP | swapped)).all()
  return np.select([found.masked_BP, swapped, chosen], [1, 2, 3], 0)


def test_half_of_the_patches_are_corrupted_80_10_10(many):
  counts = np.stack([(roles(many) == role).sum(1) for role in range(4)], 1)
  np.testing.assert_array_equal(counts, np.tile([10, 8, 1, 1], (6000, 1)))
  assert many.chosen_BT.shape == (6000, 10)


def test_roles_are_equally_frequent_for_all_patches(many):
  """Binomial, five deviations."""
  for role, share in {0: 0.5, 1: 0.4, 2: 0.05, 3: 0.05}.items():
    found = (roles(many) == role).mean(0)
    assert np.abs(found - share).max() < 5 * np.sqrt(share * (1 - share) / 6000), role


def test_a_swapped_patch_is_any_other(many):
  rows, patches = np.nonzero(roles(many) == 2)
  offsets = (many.source_BP[rows, patches] - patches) % P
  counts = np.bincount(offsets, minlength=P)
  assert counts[0] == 0
  assert np.abs(counts[1:] / 6000 - 1 / 19).max() < 5 * np.sqrt(1 / 19 / 6000)


@pytest.mark.parametrize(
  ("shares", "counts"),
  [((0.15, 0.8, 0.1), (17, 2, 1, 0)), ((1.0, 0.5, 0.5), (0, 10, 10, 0)), ((0.5, 0.0, 0.0), (10, 0, 0, 10))],
)
def test_other_shares(shares, counts):
  noise = np.random.default_rng(1).uniform(size=(3, P))
  found = roles(jax.device_get(corrupt(noise, *shares)))
  np.testing.assert_array_equal([[(row == role).sum() for role in range(4)] for row in found], [counts] * 3)


@pytest.mark.parametrize(
  ("shares", "named"),
  [
    (dict(share=-0.1), ("share", -0.1, "0 <= share <= 1")),
    (dict(share=1.2), ("share", 1.2, "0 <= share <= 1")),
    (dict(masked=0.8, swapped=0.3), ("masked", 0.8, "swapped", 0.3)),
  ],
)
def test_invalid_shares_are_errors(shares, named):
  with raises(ValueError, *named):
    corrupt(np.zeros((1, P)), **shares)


# ---- The model ----

SMALL = dict(depth=1, width=8, mlp_dim=12)


def draw(**overrides):
  model = zoo.create("patch_prediction/test", **SMALL | overrides)
  (inputs,) = zoo.family("patch_prediction").inputs(model.config, 2)
  shapes = jax.eval_shape(model.init, {"params": jax.random.key(0), "mask": jax.random.key(0)}, inputs)
  generator = np.random.default_rng(0)
  variables = jax.tree.map(lambda s: generator.normal(0.1, 0.3, s.shape).astype(np.float32), shapes)
  patches = model.config.grid[0] * model.config.grid[1]
  image, noise = generator.normal(size=inputs.shape), generator.uniform(size=(2, patches))
  return model, variables, image.astype(np.float32), noise.astype(np.float32)


def test_embeddings_of_corrupted_patches():
  """A learned vector or the embedding of another patch; its position embedding is unchanged."""
  model, variables, image, noise = draw()
  _, aux = model.apply(variables, image, noise)
  encoder = variables["params"]["encoder"]
  plain = zoo.create("vit/test", **SMALL)
  head = {"kernel": np.zeros((8, 7), "f"), "bias": np.zeros(7, "f")}
  rest = {"encoder": {k: v for k, v in encoder.items() if k != "mask"}, "head": head}
  _, wanted = plain.apply({"params": rest}, image)
  position = encoder["pos"]["table"].reshape(1, 15, 8)
  embedded = np.asarray(wanted["embedded"][:, 1:]) - position
  embedded = np.take_along_axis(embedded, np.asarray(aux["source"])[..., None], 1)
  embedded = np.where(aux["masked"][..., None], encoder["mask"], embedded) + position
  np.testing.assert_allclose(aux["embedded"][:, 1:], embedded, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(aux["embedded"][:, 0], wanted["embedded"][:, 0], rtol=1e-5)
  assert (np.asarray(aux["source"]) != np.arange(15)).any() and aux["masked"].any()


def test_only_corrupted_patches_are_predicted():
  model, variables, image, noise = draw()
  logits, aux = model.apply(variables, image, noise)
  assert logits.shape == (2, 8, 512) and aux["chosen"].shape == (2, 8)
  head = variables["params"]["head"]
  tokens = np.take_along_axis(np.asarray(aux["tokens"])[:, 1:], np.asarray(aux["chosen"])[..., None], 1)
  np.testing.assert_allclose(logits, tokens @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-4)


def test_the_number_of_colours_depends_on_channels_and_bits():
  assert zoo.create("patch_prediction/nano4").config.colours == 8
  assert zoo.create("patch_prediction/b16").config.colours == 512
  model, variables, image, noise = draw(num_channels=1, bits=2)
  assert model.apply(variables, image, noise)[0].shape == (2, 8, 4)
  with raises(ValueError, "bits", 9, 8):
    zoo.create("patch_prediction/test", bits=9)


def test_an_rng_is_needed_where_no_noise_is_given():
  model, variables, image, _ = draw()
  with raises(ValueError, "`mask`"):
    model.apply(variables, image)
  chosen = [model.apply(variables, image, rngs={"mask": jax.random.key(k)})[1]["chosen"] for k in (0, 0, 1)]
  np.testing.assert_array_equal(chosen[0], chosen[1])
  assert (chosen[0] != chosen[2]).any() and (chosen[0][0] != chosen[0][1]).any()


def test_attention_plots_use_uncorrupted_patches():
  model, variables, image, _ = draw()
  image = (image * 30 + 100).astype(np.uint8)
  found = plots.attention_weights(model, variables, image)
  params = variables["params"]["encoder"]
  head = {"kernel": np.zeros((8, 7), "f"), "bias": np.zeros(7, "f")}
  rest = {"encoder": {k: v for k, v in params.items() if k != "mask"}, "head": head}
  wanted = plots.attention_weights(zoo.create("vit/test", **SMALL), {"params": rest}, image)
  np.testing.assert_allclose(found, wanted, rtol=1e-5)


# ---- The objective ----


def test_mean_colours_by_hand():
  image = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3), np.uint8)
  image[0, :2, :2] = 255
  image[0, :2, 2:4] = [[31, 32, 64]]
  image[0, :2, 4:] = 0
  found = objective.mean_colours(image, 2, 3)
  assert found[0, :3].tolist() == [511, 0 * 64 + 1 * 8 + 2, 0]
  for b in range(3):
    for p in range(6):
      y, x = divmod(p, 3)
      mean = image[b, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].reshape(4, 3).mean(0)
      assert found[b, p] == sum(int(m / 32) * 8 ** (2 - c) for c, m in enumerate(mean))
  grey = objective.mean_colours(image[..., :1], 2, 1)
  np.testing.assert_array_equal(grey, image[..., 0].reshape(3, 2, 2, 3, 2).mean((2, 4)).reshape(3, 6) >= 128)


BATCH = dict(
  image=np.random.default_rng(2).integers(0, 256, (5, 4, 6, 3), np.uint8),
  valid=np.array([True, True, False, True, True]),
  id=np.arange(5, dtype=np.int32),
)
LOGITS = np.random.default_rng(3).normal(size=(5, 6, 512)).astype(np.float32)


class KnownLogits:
  """A model with known logits for every patch, which records its arguments."""

  config = SimpleNamespace(patch_size=2, bits=3)

  def apply(self, variables, image_BYXC, noise_BP, *, rngs, **shares):
    del variables
    self.image, self.noise, self.rngs, self.shares = image_BYXC, np.asarray(noise_BP), rngs, shares
    chosen = jnp.argsort(noise_BP, 1)[:, :3]
    self.chosen = np.asarray(chosen)
    return jnp.take_along_axis(LOGITS[: len(noise_BP)], chosen[..., None], 1), {"chosen": chosen}


def test_loss_by_hand():
  model = KnownLogits()
  loss = objective.Objective(mask_prob=0.4, mask_token_prob=0.7, random_patch_prob=0.2, mean=(0.2,), std=(0.3,))(
    model, {}, BATCH
  )
  assert model.shares == dict(share=0.4, masked=0.7, swapped=0.2) and model.rngs == {}
  np.testing.assert_allclose(model.image, (BATCH["image"] / 255 - 0.2) / 0.3, atol=1e-5)
  colours, total, right = np.asarray(objective.mean_colours(BATCH["image"], 2, 3)), 0.0, 0.0
  for b in np.flatnonzero(BATCH["valid"]):
    for p in model.chosen[b]:
      total += (np.log(np.exp(LOGITS[b, p]).sum()) - LOGITS[b, p, colours[b, p]]) / 3
      right += (LOGITS[b, p].argmax() == colours[b, p]) / 3
  np.testing.assert_allclose(loss.total, total, rtol=1e-5)
  np.testing.assert_allclose(loss.metrics["accuracy"], right, atol=1e-6)
  assert loss.weight == 4 and loss.variables == {}


def test_corruption_depends_on_the_example_and_not_on_its_position():
  model = KnownLogits()

  def noise(key, choice):
    objective.Objective()(model, {}, {k: v[choice] for k, v in BATCH.items()}, key)
    return model.noise

  whole = noise(rng.root(0), np.arange(5))
  assert whole.shape == (5, 6) and len(np.unique(whole)) == whole.size and set(model.rngs) == {"dropout"}
  np.testing.assert_array_equal(noise(rng.root(0), np.array([4, 1])), whole[[4, 1]])
  assert (noise(rng.root(1), np.arange(5)) != whole).all()
  np.testing.assert_array_equal(noise(None, np.array([2])), noise(None, np.arange(5))[[2]])


def test_a_negative_share_is_an_error():
  with raises(ValueError, "config.objective", "mask_token_prob", -0.1):
    objective.Objective(mask_token_prob=-0.1)


def test_a_share_that_corrupts_no_patch_is_an_error():
  model, variables, _, _ = draw()
  batch = dict(image=np.zeros((2, 20, 12, 3), np.uint8), valid=np.ones(2, bool), id=np.arange(2))
  with raises(ValueError, "mask_prob", 0.02, 15):
    objective.Objective(mask_prob=0.02)(model, variables, batch)
