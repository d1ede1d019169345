"""Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747) from its four IDX files, with no download and no TensorFlow.

`zoo prepare fashion_mnist --data-dir DIR --source FOLDER`, where FOLDER holds `train-images-idx3-ubyte.gz` and its
three companions, as https://github.com/zalandoresearch/fashion-mnist and Debian's `dataset-fashion-mnist` have them.
"""

import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

CLASSES = (
  "t-shirt/top",
  "trouser",
  "pullover",
  "dress",
  "coat",
  "sandal",
  "shirt",
  "sneaker",
  "bag",
  "ankle boot",
)
# How the files of a split begin.
FILES = {"train": "train", "test": "t10k"}


def read_idx(folder: str | Path, split: str) -> tuple[np.ndarray, np.ndarray]:
  """The images [B, 28, 28] and labels [B] of a split, both uint8, in the order of the files."""
  images, labels = (
    gzip.decompress((Path(folder) / f"{FILES[split]}-{what}-ubyte.gz").read_bytes())
    for what in ("images-idx3", "labels-idx1")
  )
  # The headers are big-endian: a magic number and then the sizes, 4 bytes each.
  return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8, offset=8)


def encode(image: np.ndarray, format: str = "png", **options: Any) -> io.BytesIO:
  """A grey image as a file; TFDS stores such bytes as they are, where an array would need TensorFlow."""
  file = io.BytesIO()
  Image.fromarray(image).save(file, format, **options)
  file.seek(0)
  return file


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """The full set: 60,000 images to train on and 10,000 to test on."""

  name = "fashion_mnist"
  VERSION = tfds.core.Version("3.0.1")  # the same examples as this version in TFDS
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "Name the folder with the four IDX files (*-ubyte.gz; Debian's dataset-fashion-mnist has them): --source FOLDER."
  )

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description="Zalando's article images: 28x28 grey, ten classes of clothing.",
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(28, 28, 1)),
          "label": tfds.features.ClassLabel(names=CLASSES),
        }
      ),
      supervised_keys=("image", "label"),
      homepage="https://github.com/zalandoresearch/fashion-mnist",
      license="MIT",
    )

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(dl_manager.manual_dir, split) for split in FILES}

  def _generate_examples(self, folder, split: str) -> Iterator[tuple[int, dict]]:
    for i, (image, label) in enumerate(zip(*read_idx(folder, split), strict=True)):
      yield i, {"image": encode(image), "label": int(label)}
