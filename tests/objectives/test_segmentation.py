"""The loss of semantic segmentation, and runs with it."""

import json

import jax
import numpy as np
import pytest
from few_scenes import prepare_scenes, scenes_config
from matplotlib.image import imread
from support import raises

from train import config as configuration
from train import experiment, loop, plots
from train.data.semantic_segmentation import IGNORE_INDEX
from train.objectives import semantic_segmentation
from train.plots import registry


def test_the_loss_is_over_labelled_pixels():
  rng = np.random.default_rng(0)
  logits, mask = rng.normal(size=(3, 4, 5, 6)), rng.integers(0, 6, (3, 4, 5)).astype(np.uint8)
  mask[0, :2] = IGNORE_INDEX
  image = rng.integers(0, 256, (3, 4, 5, 1), np.uint8)
  batch = dict(image=image, mask=mask, valid=np.array([True, False, True]), id=np.arange(3))

  class Model:
    def apply(self, variables, image_BYXC, rngs=None, mutable=None):
      self.seen, self.rngs = image_BYXC, rngs
      return ((logits, {}), {}) if mutable is not None else (logits, {})

  model, objective = Model(), semantic_segmentation.Objective(mean=(0.2,), std=(0.3,))
  loss = objective(model, {"params": {}}, batch)
  positions = [(i, y, x) for i in (0, 2) for y in range(4) for x in range(5) if mask[i, y, x] != IGNORE_INDEX]
  chosen = np.array([logits[position] for position in positions])
  wanted = np.array([mask[position] for position in positions])
  log = np.log(np.exp(chosen).sum(1)) - chosen[np.arange(len(positions)), wanted]
  np.testing.assert_allclose(loss.total, log.sum(), rtol=1e-5)
  assert loss.weight == len(positions) == 30 and loss.metrics["accuracy"] == (chosen.argmax(1) == wanted).sum()
  np.testing.assert_allclose(model.seen, (image / 255 - 0.2) / 0.3, atol=1e-6)
  assert model.rngs is None
  objective(model, {"params": {}}, batch, jax.random.key(0))
  assert set(model.rngs) == {"dropout"}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
  """The folder of few scenes."""
  return prepare_scenes(str(tmp_path_factory.mktemp("scenes")))


def test_training_end_to_end(scenes, tmp_path):
  made = scenes_config(scenes, head="linear", backbone_kwargs=dict(patch_size=8, depth=1))
  made.plots = ("segmentations",)
  loop.train(made, tmp_path / "run")
  lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  losses = [line["train/loss"] for line in lines if "train/loss" in line]
  assert len(losses) == 4 and losses[0] == pytest.approx(np.log(11), rel=1e-3) and np.isfinite(losses).all()
  assert imread(tmp_path / "run" / "segmentations.png").std() > 0.05
  assert 0 <= next(line["test/miou"] for line in lines if "test/miou" in line) <= 1


@pytest.mark.parametrize(
  ("change", "named"),
  [
    (dict(model=dict(num_classes=10)), ("classes", 10)),
    (dict(model=dict(num_channels=3)), ("channels", 3, 1)),
    (dict(image_size=60), ("60 x 60", "8 x 8")),
  ],
  ids=str,
)
def test_incompatible_models_are_errors(scenes, change, named):
  made = scenes_config(scenes, **change.get("model", {}))
  made.data.image_size = change.get("image_size", 64)
  with raises(ValueError, *named):
    experiment.Experiment(made)


def test_plots_of_masks(scenes, tmp_path):
  names, mask = [f"class {n}" for n in range(9)], np.random.default_rng(0).integers(0, 9, (3, 20, 30))
  mask[:, 0] = IGNORE_INDEX
  colours = plots.mask_colors(mask, names)
  assert (colours[:, 0] == plots.MASKED).all() and len(np.unique(colours.reshape(-1, 3), axis=0)) == 10
  image = np.zeros((3, 20, 30, 1), np.uint8)
  figure = plots.segmentations(image, mask, mask * 0, names, 0.25, path=tmp_path / "a.png")
  assert len(figure.axes) == 9 and "25.0 %" in figure.texts[-1].get_text()
  assert [text.get_text() for text in figure.legends[0].get_texts()] == names
  made = scenes_config(scenes, head="linear")
  for name in ("attention_maps", "attention_heads"):
    with raises(ValueError, name, "'semantic_segmentation'"):
      registry.check(name, experiment.Experiment(made))
  with raises(ValueError, "segmentations", "'image_classification'"):
    registry.check("segmentations", experiment.Experiment(configuration.load("vit_fashion_mnist")))
