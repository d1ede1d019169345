"""Scores of segmentations: by hand, and of every pixel once on any devices."""

import jax
import numpy as np
import pytest
from few_scenes import prepare_scenes, scenes_config
from support import raises

from train import config as configuration
from train import experiment
from train.evaluation import registry as evaluations
from train.evaluation.image_metrics import score_confusion
from train.images import normalise


def test_scores_by_hand():
  confusion = np.array([[4, 1, 0, 0], [2, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
  scores = score_confusion(confusion, ("a", "b", "c", "d"))
  assert scores == {"iou/a": 4 / 7, "iou/b": 1 / 2, "miou": (4 / 7 + 1 / 2) / 2, "accuracy": 0.7}
  taken = score_confusion(np.array([[0, 3], [0, 0]]), ("a", "b"))  # one that is only taken for occurs, too
  assert taken == {"iou/a": 0, "iou/b": 0, "miou": 0, "accuracy": 0}
  nothing = score_confusion(np.zeros((2, 2), int), ("a", "b"))
  assert set(nothing) == {"miou", "accuracy"} and np.isnan(list(nothing.values())).all()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
  """The folder of few scenes."""
  return prepare_scenes(str(tmp_path_factory.mktemp("scenes")))


@pytest.mark.parametrize("way", ["jit", "pmap"])
def test_every_pixel_is_scored_once_on_any_devices(scenes, way):
  made = scenes_config(scenes, head="linear")
  made.parallel = dict(name="jit", data=-1, fsdp=1, tensor=1) if way == "jit" else dict(name="pmap")
  run = experiment.Experiment(made)
  rng = np.random.default_rng(0)
  variables = jax.tree.map(lambda a: rng.normal(0, 0.3, a.shape).astype(np.float32), run.init_variables())
  batch = next(run.data.eval_batches(19))
  image = normalise(batch["image"], run.objective.mean, run.objective.std)
  found = np.asarray(jax.jit(run.model.apply)(variables, image)[0]).argmax(-1)
  confusion = np.zeros((11, 11), int)
  np.add.at(confusion, (batch["mask"], found), 1)
  wanted = score_confusion(confusion, run.data.class_names)
  on_devices = run.parallel.init(lambda: variables)
  scores = evaluations.make(run)["test"].function(on_devices)
  assert scores.keys() == wanted.keys() and len(set(np.unique(found))) > 2
  for name, value in wanted.items():
    assert abs(scores[name] - value) < 1e-3, name  # two programs may round a pixel otherwise
  np.testing.assert_allclose(scores["accuracy"], (found == batch["mask"]).mean(), atol=1e-3)
  mean = evaluations.make(run)["loss"].function(on_devices)
  assert mean["examples"] == 19 * 64 * 64 and abs(mean["accuracy"] - scores["accuracy"]) < 1e-6


def test_the_evaluation_is_for_semantic_segmentation_only():
  made = configuration.load("vit_fashion_mnist")
  made.evals = dict(test=dict(name="semantic_segmentation"))
  with raises(ValueError, "'semantic_segmentation'", "'image_classification'"):
    evaluations.make(experiment.Experiment(made))
