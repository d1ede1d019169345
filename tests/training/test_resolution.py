"""Trained at 28 pixels, fine-tuned at 40: by the shipped configs, from the first command to the last."""

from pathlib import Path

import numpy as np
import pytest

from train import config as configuration
from train import experiment, loop
from train.evaluation import registry as evaluations
from zoo.layers.position_embeddings import resample
from zoo.weights.sources import read

pytestmark = pytest.mark.usefixtures("one_device")

# A ViT that learns in seconds.
SMALL = dict(width=32, depth=1, mlp_dim=64, num_heads=2, scan=False, remat="none", drop_path_rate=0.0)
SHORT = ["epochs=0.0", "batch_size=64", "evals={}", "checkpoint.best_metric=", "checkpoint.every_steps=0", "plots=()"]
SHORT += ["data.eval_split=test[:400]", *(f"model.{k}={v}" for k, v in SMALL.items())]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
  folder = tmp_path_factory.mktemp("run")
  overrides = ["steps=160", "optimizer.learning_rate=1e-2", "objective.label_smoothing=0.0"]
  loop.train(configuration.load("vit_fashion_mnist", [*SHORT, *overrides]), folder)
  return folder


def test_fine_tuning_starts_from_the_resampled_positions(trained):
  evals = "evals={'test': {'name': 'loss'}}"
  overrides = [*SHORT, evals, "steps=1", f"init.path={trained}"]
  run = experiment.Experiment(configuration.load("vit_nano_fashion_mnist_40px", overrides))
  assert run.data.image_shape == (40, 40, 1) and run.model.config.grid == (10, 10)
  variables = run.start().eval_variables()
  old, new = read(trained).tensors, variables["params"]["encoder"]["pos"]
  assert new["table"].shape == (10, 10, 32)
  np.testing.assert_allclose(new["table"], resample(old["params/encoder/pos/table"], (10, 10)), rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(new["cls"], old["params/encoder/pos/cls"])
  np.testing.assert_array_equal(variables["params"]["head"]["kernel"], old["params/head/kernel"])
  # Before the first step it classifies better than chance, 0.1.
  (evaluation,) = evaluations.make(run).values()
  assert evaluation.function(variables)["accuracy"] > 0.35


def test_fine_tuning_runs_to_its_end(trained, tmp_path):
  overrides = [*SHORT, "steps=2", f"init.path={trained}", "data.train_split=train[:128]"]
  result = loop.train(configuration.load("vit_nano_fashion_mnist_40px", overrides), tmp_path)
  assert result["step"] == 2
  table = read(tmp_path).tensors["params/encoder/pos/table"]
  assert table.shape == (10, 10, 32)
