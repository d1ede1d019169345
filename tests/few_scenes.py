"""Few scenes to segment, and a run on them."""

import pytest

from train import config as configuration
from train.data import prepare
from train.datasets import fashion_scenes


def prepare_scenes(folder):
  """The data set fashion_scenes with few scenes."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(fashion_scenes, "COUNTS", dict(train=24, test=19))
    prepare.prepare("fashion_scenes", folder)
  return folder


def scenes_config(folder, **model):
  """A run of four steps on them."""
  made = configuration.load("segmenter_fashion_scenes", [f"data.data_dir={folder}"])
  made.model = dict(name="segmenter/test", num_channels=1, num_classes=11, image_size=(64, 64)) | model
  made.batch_size, made.epochs, made.steps, made.log_every_steps, made.plots = 8, 0.0, 4, 1, ()
  made.checkpoint.every_steps = 4
  made.evals = dict(test=dict(name="semantic_segmentation"), loss=dict(name="loss"))
  return made
