"""Scenes of Fashion-MNIST's objects on photographs: what is in them, and where they are from."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from train import data
from train.data import prepare
from train.datasets import fashion_scenes


def test_an_outline_has_no_specks_and_no_small_holes():
  image = np.zeros((28, 28), np.uint8)
  image[4:24, 4:24] = 200
  wanted = image > 0
  image[12:14, 12:14] = 0  # dark cloth
  image[6:12, 15:22] = 0  # below a handle
  wanted[6:12, 15:22] = False
  image[0, 26] = 200  # noise
  image[4:24, 2] = 9
  np.testing.assert_array_equal(fashion_scenes.outline(image), wanted)


def test_masks_of_scenes_agree_with_their_images(monkeypatch):
  """Objects as bright as their class on a dark photograph: brightness determines the mask except at soft borders."""
  monkeypatch.setattr(fashion_scenes, "OBJECTS", (3, 3))
  light = 60 + 15 * np.arange(10)
  images = np.zeros((10, 28, 28), np.uint8)
  images[:, 5:23, 7:21] = light[:, None, None]
  photograph = np.full((200, 300), 7, np.uint8)
  counts = []
  for seed in range(60):
    scene, mask = fashion_scenes.compose(np.random.default_rng(seed), [photograph], images, np.arange(10))
    table = np.concatenate([[7], light])
    exact = scene == table[mask]
    assert exact.mean() > 0.8 and scene.shape == mask.shape == (64, 64)
    within = cv2.erode(scene, np.ones((3, 3))) == cv2.dilate(scene, np.ones((3, 3)))
    assert exact[within].all()  # also where an object covers another
    assert (table[mask] - scene.astype(int))[mask == 0].max() <= 0  # a border is lighter than the photograph
    counts.append(len(set(np.unique(mask)) - {0}))
  assert set(counts) >= {2, 3} and max(counts) == 3  # each is an object of its own; some are the same, or covered


def test_scenes_are_prepared_without_downloads_and_deterministically(tmp_path, monkeypatch):
  monkeypatch.setattr(fashion_scenes, "COUNTS", dict(train=20, test=10))
  found = []
  for name in "ab":
    prepare.prepare("fashion_scenes", str(tmp_path / name))
    made = data.make("semantic_segmentation", dataset="fashion_scenes", data_dir=str(tmp_path / name), image_size=64)
    found.append([next(made.eval_batches(size, split)) for split, size in (("train", 20), ("test", 10))])
  for key in ("image", "mask"):
    for first, second in zip(*found, strict=True):
      np.testing.assert_array_equal(first[key], second[key])
  assert made.class_names == ["background", *fashion_scenes.fashion_mnist.CLASSES] and made.num_classes == 11
  assert (made.num_train, made.num_eval(), made.image_shape) == (20, 10, (64, 64, 1))
  train, test = found[0]
  assert set(np.unique(train["mask"])) == set(range(11)) and 0.5 < (test["mask"] == 0).mean() < 0.9
  assert len({image.tobytes() for batch in found[0] for image in batch["image"]}) == 30


def test_the_photographs_are_small_and_their_origin_is_documented():
  folder = Path(fashion_scenes.__file__).with_name("photographs")
  names = [name for split in fashion_scenes.PHOTOGRAPHS.values() for name in split]
  assert sorted(names) == sorted(path.stem for path in folder.glob("*.webp")) and len(set(names)) == len(names)
  assert sum(path.stat().st_size for path in folder.iterdir()) < 150_000
  origin = (folder / "ORIGIN.md").read_text()
  assert all(f"| {name} |" in origin for name in names)
  for split in fashion_scenes.PHOTOGRAPHS:  # every part of a scene is within each
    assert all(min(photograph.shape) >= fashion_scenes.PART[1] for photograph in fashion_scenes.read_photographs(split))


def test_the_photographs_are_made_by_their_script(tmp_path):
  from train.datasets import make_photographs as script

  for split in fashion_scenes.PHOTOGRAPHS.values():
    for name in split:
      Image.fromarray(np.full((80, 100, 3), (250, 0, 0), np.uint8)).save(tmp_path / f"{name}.png")
  (tmp_path / "out").mkdir()
  paths = script.make(tmp_path, tmp_path / "out")
  assert sorted(path.stem for path in paths) == sorted(sum(fashion_scenes.PHOTOGRAPHS.values(), ()))
  image = Image.open(paths[0])
  assert image.size == (400, 320) and abs(np.asarray(image.convert("L")).mean() - 0.299 * 250) < 3
