"""Losses by hand: smoothing, mixing, masking, and the random streams they draw from."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import raises

from train import rng
from train.objectives import image_classification, mae

B, V = 6, 7
DRAW = np.random.default_rng(0)
IMAGE = DRAW.integers(0, 256, (B, 4, 6, 3), np.uint8)
BATCH = dict(
  image=IMAGE,
  label=np.array([0, 1, 2, 3, 4, 5], np.int32),
  valid=np.array([True, True, False, True, True, True]),
  id=np.arange(B, dtype=np.int32),
)
KERNEL = DRAW.normal(size=(4 * 6 * 3, V)).astype(np.float32)


class Linear:
  """A model without parameters that records its arguments."""

  config = SimpleNamespace(num_classes=V)

  def apply(self, variables, image_BYXC, rngs=None, mutable=None):
    del variables
    self.rngs, self.image = rngs, image_BYXC
    logits_BV = image_BYXC.reshape(B, -1) @ KERNEL / 10
    return ((logits_BV, {}), {}) if mutable is not None else (logits_BV, {})


def log_softmax(x):
  return x - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True)) - x.max(1, keepdims=True)


def logits():
  return (IMAGE / 255 - 0.5).reshape(B, -1) / 0.5 @ KERNEL / 10


def test_cross_entropy_and_accuracies():
  model = Linear()
  loss = image_classification.Objective()(model, {"params": {}}, BATCH)
  valid = BATCH["valid"]
  np.testing.assert_allclose(loss.total, -log_softmax(logits())[valid, BATCH["label"][valid]].sum(), rtol=1e-5)
  assert loss.weight == 5 and model.rngs is None and loss.variables == {}
  order = np.argsort(-logits(), 1)
  assert loss.metrics["accuracy"] == (order[:, 0] == BATCH["label"])[valid].sum()
  assert loss.metrics["top5"] == (order[:, :5] == BATCH["label"][:, None]).any(1)[valid].sum()


@pytest.mark.parametrize("training", [False, True])
def test_label_smoothing_applies_to_training_only(training):
  model = Linear()
  key = rng.root(0) if training else None
  loss = image_classification.Objective(label_smoothing=0.3)(model, {"params": {}}, BATCH, key)
  share = 0.3 if training else 0.0
  target = (1 - share) * np.eye(V)[BATCH["label"]] + share / V
  np.testing.assert_allclose(loss.total, -(target * log_softmax(logits())).sum(1)[BATCH["valid"]].sum(), rtol=1e-5)
  assert set(model.rngs or ()) == ({"dropout"} if training else set())


def test_mixup_applies_to_training_only_and_mixes_labels_with_images():
  model, objective = Linear(), image_classification.Objective(mixup=1.0)
  plain = image_classification.Objective()(model, {"params": {}}, BATCH)
  assert objective(model, {"params": {}}, BATCH).total == plain.total
  loss = objective(model, {"params": {}}, BATCH, rng.root(0))
  pixels = (IMAGE / 255 - 0.5) / 0.5
  other = np.arange(B) ^ 1  # neighbours
  change, whole = (np.asarray(a, np.float64).ravel() for a in (model.image - pixels, pixels[other] - pixels))
  share = change @ whole / (whole @ whole)
  np.testing.assert_allclose(change, share * whole, atol=1e-5)
  target = (1 - share) * np.eye(V)[BATCH["label"]] + share * np.eye(V)[BATCH["label"][other]]
  valid = BATCH["valid"] & BATCH["valid"][other]  # a pair with a padded example has no weight
  mixed = log_softmax(np.asarray(model.image).reshape(B, -1) @ KERNEL / 10)
  assert 0 < share < 1 and loss.weight == 4
  np.testing.assert_allclose(loss.total, -(target * mixed).sum(1)[valid].sum(), rtol=1e-4)


@pytest.fixture(scope="module")
def mixed():
  """Many draws of the mixing: (images, targets, weights), by (mixup, cutmix); black and white make shares visible."""
  image = jnp.zeros((2, 6, 10, 1)).at[1].set(1.0)
  arguments = image, jnp.eye(2), jnp.ones(2)

  def draw(mixup, cutmix):
    keys = jax.random.split(jax.random.key(0), 500)
    return jax.jit(jax.vmap(lambda key: image_classification.mix(key, *arguments, mixup, cutmix)))(keys)

  return {name: draw(*alphas) for name, alphas in dict(mixup=(0.4, 0), cutmix=(0, 1.0), both=(0.4, 1.0)).items()}


@pytest.mark.parametrize("kind", ["mixup", "cutmix", "both"])
def test_targets_are_mixed_in_proportion_to_pixels(mixed, kind):
  image, target, weight = mixed[kind]
  np.testing.assert_allclose(image.mean((2, 3, 4))[:, 0], target[:, 0, 1], atol=1e-6)  # share of the other image
  np.testing.assert_allclose(image.mean((2, 3, 4))[:, 1], target[:, 1, 1], atol=1e-6)
  np.testing.assert_allclose(target.sum(2), 1, atol=1e-6)
  assert (weight == 1).all()


def test_mixup_blends_all_pixels_by_a_beta_share(mixed):
  image, target, _ = mixed["mixup"]
  assert np.ptp(image, axis=(2, 3, 4)).max() < 1e-6
  share = np.asarray(target[:, 0, 1])
  assert abs(share.mean() - 0.5) < 0.08
  assert abs(share.var() - 1 / (4 * (2 * 0.4 + 1))) < 0.03  # of Beta(a, a)


def test_cutmix_pastes_one_box(mixed):
  image, target, _ = mixed["cutmix"]
  pasted = np.asarray(image[:, 0, :, :, 0])
  assert set(np.unique(pasted)) == {0, 1}
  rows, columns = pasted.max(2), pasted.max(1)
  np.testing.assert_array_equal(pasted, rows[:, :, None] * columns[:, None, :])  # a product of two ranges ...
  for side in (rows, columns):
    assert (np.abs(np.diff(np.pad(side, ((0, 0), (1, 1))), axis=1)).sum(1) <= 2).all()  # ... without holes
  assert 0.2 < np.asarray(target)[:, 0, 1].mean() < 0.5  # 1/2 for boxes that never stick out


def test_mixup_and_cutmix_are_equally_frequent(mixed):
  image, _, _ = mixed["both"]
  blended = ((image > 0) & (image < 1)).any((1, 2, 3, 4)).mean()
  assert 0.4 < blended < 0.6


def test_mixing_an_odd_batch_is_an_error():
  with raises(ValueError, "batch", 3):
    image_classification.mix(rng.root(0), np.zeros((3, 4, 4, 1)), np.eye(3), np.ones(3), 0.2, 0)


# ---- Masked autoencoding ----


@pytest.mark.parametrize("normalise", [False, True])
def test_reconstruction_loss_by_hand(normalise):
  image = DRAW.normal(size=(2, 4, 6, 3)).astype(np.float32)
  pixels = DRAW.normal(size=(2, 6, 12)).astype(np.float32)
  masked = np.array([[1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1]], bool)
  wanted = np.zeros(2)
  for b in range(2):
    errors = []
    for p in np.flatnonzero(masked[b]):
      y, x = divmod(p, 3)
      target = image[b, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].ravel().astype(np.float64)
      if normalise:
        target = (target - target.mean()) / np.sqrt(target.var(ddof=1) + 1e-6)
      errors.append(((pixels[b, p] - target) ** 2).mean())
    wanted[b] = np.mean(errors)
  np.testing.assert_allclose(mae.reconstruction_loss(pixels, image, masked, 2, normalise), wanted, rtol=1e-5)
  gradient = jax.grad(lambda p: mae.reconstruction_loss(p, image, masked, 2, normalise).sum())(pixels)
  np.testing.assert_array_equal(np.abs(gradient).max(-1) > 0, masked)  # only masked patches have a gradient


def test_the_loss_is_zero_where_nothing_is_masked():
  args = np.ones((2, 6, 12), np.float32), np.zeros((2, 4, 6, 3), np.float32), np.zeros((2, 6), bool)
  np.testing.assert_array_equal(mae.reconstruction_loss(*args, 2, False), 0)


class Recorder:
  """An MAE that predicts zeros and records its noise."""

  config = SimpleNamespace(patch_size=2)

  def apply(self, variables, image_BYXC, noise_BP, mask_ratio, rngs):
    del variables
    self.noise, self.rngs, self.ratio = np.asarray(noise_BP), rngs, mask_ratio
    patches = noise_BP.shape[1]
    return jnp.zeros((len(image_BYXC), patches, 12)), {"masked": noise_BP > 0.5}


def test_masks_depend_on_the_example_and_not_on_its_position():
  model, objective = Recorder(), mae.Objective(mask_ratio=0.6)

  def noise(key, choice):
    objective(model, {}, {k: v[choice] for k, v in BATCH.items()}, key)
    return model.noise

  whole = noise(rng.root(0), np.arange(B))
  assert whole.shape == (B, 6) and len(np.unique(whole)) == whole.size and model.ratio == 0.6
  np.testing.assert_array_equal(noise(rng.root(0), np.array([4, 1])), whole[[4, 1]])
  assert set(model.rngs) == {"dropout"}
  assert (noise(rng.root(1), np.arange(B)) != whole).all()
  evaluated = noise(None, np.arange(B))
  np.testing.assert_array_equal(noise(None, np.array([2])), evaluated[[2]])  # the same masks every time
  assert model.rngs == {}


def test_mean_and_deviation_per_channel_or_shared():
  model = Linear()
  objective = image_classification.Objective(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))
  objective(model, {"params": {}}, BATCH)
  np.testing.assert_allclose(model.image, (IMAGE / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.25, 1.0], atol=1e-5)
  with raises(ValueError, "std", 2, 3):
    image_classification.Objective(std=(1.0, 1.0))(model, {"params": {}}, BATCH)


# ---- Random streams ----


def bits(keys):
  return np.asarray(jax.random.key_data(keys))


def test_a_stream_depends_on_its_name_only():
  one, two = rng.streams(rng.root(0), "mask"), rng.streams(rng.root(0), "dropout", "mask")
  np.testing.assert_array_equal(bits(one["mask"]), bits(two["mask"]))
  assert (bits(two["dropout"]) != bits(two["mask"])).any()


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_every_example_has_its_own_key(impl):
  key = rng.root(0, impl)
  keys = bits(rng.per_example(key, jnp.arange(100)))
  assert len(np.unique(keys, axis=0)) == 100
  np.testing.assert_array_equal(bits(rng.per_example(key, jnp.array([70, 3]))), keys[[70, 3]])
  assert (bits(rng.per_batch(key, jnp.array([0, 1]))) != bits(rng.per_batch(key, jnp.array([1, 0])))).any()
  assert jax.random.key_impl(rng.per_batch(key, jnp.array([0]))) == impl


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_steps_give_examples_other_keys(impl):
  steps = [jax.random.fold_in(rng.root(0, impl), i) for i in range(50)]
  keys = np.concatenate([bits(rng.per_example(key, jnp.arange(4))) for key in steps])
  assert len(np.unique(keys, axis=0)) == 200
