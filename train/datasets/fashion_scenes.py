"""Scenes composed of real images: clothes of Fashion-MNIST pasted on grey photographs, with masks of their classes.

No photograph shows these scenes: an honest exercise in segmentation that needs no download, not a benchmark. A scene
is a random part of a photograph with one to four images of `fashion_mnist_small` on it, scaled and placed at random;
what is pasted later covers what was there. Objects and photographs to test on are others than those to train on. An
object's outline is where its own image is not black (`outline`), and its borders are as soft as they are there.

`zoo prepare fashion_scenes --data-dir DIR`: everything it needs travels with the code.
"""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import tensorflow_datasets as tfds

from train.data.image_classification import make_source
from train.data.transforms import decode
from train.datasets import fashion_mnist

SIZE = 64
COUNTS = {"train": 8000, "test": 1000}
# In `photographs/`, whose ORIGIN.md names their sources.
PHOTOGRAPHS = {
  "train": ("astronaut", "brick", "camera", "coffee", "grass", "hubble_deep_field", "rocket"),
  "test": ("chelsea", "clock_motion", "gravel"),
}
CLASSES = ("background", *fashion_mnist.CLASSES)
OBJECTS = (1, 4)  # in a scene: the fewest and the most
SIDES = (20, 44)  # rows and columns of an object's image, which are 28 in Fashion-MNIST
PART = (64, 192)  # rows and columns of the part of a photograph

# Of an object's image, in pixels: darker is nothing, smaller pieces are noise, smaller holes are dark cloth.
LEAST_LIGHT, LEAST_PIECE, LEAST_HOLE = 16, 12, 20


def outline(image: np.ndarray) -> np.ndarray:
  """Where an image of clothes shows them, bool [Y, X]: where it is not black, without specks and small holes.

  Large holes, as below the handle of a bag, are background.
  """
  shown = cv2.morphologyEx((image >= LEAST_LIGHT).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
  for value, least, connectivity in ((1, LEAST_PIECE, 8), (0, LEAST_HOLE, 4)):
    _, pieces, stats, _ = cv2.connectedComponentsWithStats((shown == value).astype(np.uint8), connectivity)
    for piece in np.flatnonzero(stats[:, cv2.CC_STAT_AREA] < least):
      if piece:  # 0 is all the rest
        shown[pieces == piece] = 1 - value
  return shown.astype(bool)


def compose(
  rng: np.random.Generator, photographs: list[np.ndarray], images: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """A scene and its mask, both uint8 [SIZE, SIZE]: classes 1, 2, ... of objects, 0 where there is none."""
  photograph = photographs[rng.integers(len(photographs))]
  side = int(rng.integers(*PART, endpoint=True))
  top, left = (int(rng.integers(whole - side, endpoint=True)) for whole in photograph.shape)
  part = photograph[top : top + side, left : left + side]
  part = part[:, ::-1] if rng.random() < 0.5 else part
  scene = cv2.resize(np.ascontiguousarray(part), (SIZE, SIZE), interpolation=cv2.INTER_AREA).astype(np.float32)
  mask = np.zeros((SIZE, SIZE), np.uint8)
  for index in rng.integers(len(images), size=rng.integers(*OBJECTS, endpoint=True)):
    image = images[index]
    alpha = outline(image).astype(np.float32)
    side = int(rng.integers(*SIDES, endpoint=True))
    how = cv2.INTER_AREA if side < len(image) else cv2.INTER_LINEAR
    # What is outside of the outline is black already, so that the light of a border is that of its share.
    light, alpha = (cv2.resize(a, (side, side), interpolation=how) for a in (image * alpha, alpha))
    # At least three quarters of each side are within the scene.
    top, left = rng.integers(-(side // 4), SIZE - side + side // 4, size=2, endpoint=True).tolist()
    rows, columns = (slice(max(0, first), min(SIZE, first + side)) for first in (top, left))
    own = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
    scene[rows, columns] = light[own] + (1 - alpha[own]) * scene[rows, columns]
    mask[rows, columns][alpha[own] >= 0.5] = labels[index] + 1
  return np.clip(scene + 0.5, 0, 255).astype(np.uint8), mask


def read_objects(split: str) -> tuple[np.ndarray, np.ndarray]:
  """The images [B, 28, 28] and labels [B] of the bundled set."""
  encoded, labels = zip(*make_source("fashion_mnist_small", split), strict=True)
  return np.stack([decode(image, 1)[..., 0] for image in encoded]), np.array(labels)


def read_photographs(split: str) -> list[np.ndarray]:
  """The photographs of a split, uint8 [Y, X] each."""
  folder = Path(__file__).with_name("photographs")
  return [decode((folder / f"{name}.webp").read_bytes(), 1)[..., 0] for name in PHOTOGRAPHS[split]]


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """8,000 scenes to train on and 1,000 to test on; the same ones each time."""

  name = "fashion_scenes"
  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description="Clothes of Fashion-MNIST pasted on grey photographs, composed by a program; masks of their classes.",
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(SIZE, SIZE, 1)),
          "mask": tfds.features.LabeledImage(labels=list(CLASSES), shape=(SIZE, SIZE, 1)),
        }
      ),
      supervised_keys=("image", "mask"),
      homepage="https://github.com/zalandoresearch/fashion-mnist",
      license="MIT; the photographs CC0 and public domain",
    )

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split) for split in COUNTS}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
    photographs, objects = read_photographs(split), read_objects(split)
    for i in range(COUNTS[split]):
      scene, mask = compose(np.random.default_rng((i, len(split))), photographs, *objects)
      yield i, {"image": fashion_mnist.encode(scene), "mask": fashion_mnist.encode(mask)}
