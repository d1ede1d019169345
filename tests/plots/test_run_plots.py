"""Every plot of a run, by its name."""

import numpy as np
import pytest
from PIL import Image
from support import TINY_CONFIG, raises

from train import config as configuration
from train import experiment, metrics
from train.plots import registry


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """An untrained model, its variables, and the folder of a short log."""
  workdir = tmp_path_factory.mktemp("run")
  with metrics.Log(workdir, 40, every_seconds=1e9) as log:
    for step in range(1, 41):
      log.train(step, {"loss": 2 / step, "learning_rate": 1e-3 * step})
    log.eval(40, "test", {"loss": 0.1})
  opened = experiment.Experiment(load())
  return opened, opened.start().eval_variables(), workdir


def load(*overrides):
  return configuration.load(TINY_CONFIG, overrides)


@pytest.mark.parametrize("name", ["loss_curve", "position_similarity", *registry.OF_IMAGES])
def test_every_plot_of_a_run(run, tmp_path, name):
  opened, variables, workdir = run
  registry.draw(name, opened, variables, workdir, tmp_path / "plot.png")
  with Image.open(tmp_path / "plot.png") as plot:
    assert plot.format == "PNG" and min(plot.size) > 300
    assert len(plot.convert("L").getcolors()) > 20  # not blank


def test_plots_that_do_not_fit_the_run(run, tmp_path):
  opened, variables, workdir = run
  with raises(ValueError, "'loss_curves'", "'loss_curve'"):
    registry.draw("loss_curves", opened, variables, workdir, tmp_path / "x.png")
  for name in ("segmentations", "kernel_widths", "alignment", "attention_heads"):
    with raises(ValueError, name, "'image_classification'"):
      registry.draw(name, opened, variables, workdir, tmp_path / "x.png")
  vit = experiment.Experiment(
    load("model={'name': 'vit/nano4', 'depth': 1}", "objective={'name': 'image_classification'}", "evals={}")
  )
  with raises(ValueError, "vit/nano4"):
    registry.draw("reconstructions", vit, {}, workdir, tmp_path / "x.png")


def test_an_image_of_the_user_is_cropped_to_the_size_of_the_data(run, tmp_path):
  Image.fromarray(np.arange(40 * 90, dtype=np.uint8).reshape(40, 90)).save(tmp_path / "wide.png")
  assert registry.read_image(tmp_path / "wide.png", run[0].data).shape == (1, 28, 28, 1)
  (tmp_path / "text.png").write_text("words")
  for name in ("none.png", "text.png"):
    with raises(ValueError, name):
      registry.read_image(tmp_path / name, run[0].data)
