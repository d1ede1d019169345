"""Images with a class for every pixel, to batches of images and masks.

A batch is that of `train.data.image_classification`, with "mask" uint8 [B, Y, X] instead of "label": the class of each
pixel, or `IGNORE_INDEX` where there is none, outside of the image, and in padding.
"""

import dataclasses
import functools
import io
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from train.data import transforms
from train.data.array_record import Records, open_builder
from train.data.image_classification import ImageClassification
from train.data.pipeline import Batch

# The value of pixels without a class: no class is so large.
IGNORE_INDEX = 255
# Operations that move pixels at random, where a mask could not follow.
MOVING = (transforms.rand_augment,)


class Names(NamedTuple):
  """What a set calls its images, their masks and, where masks are panoptic, the list of segments."""

  image: str
  mask: str
  segments: str = ""


class Panoptic(NamedTuple):
  """A mask's file whose colours are ids of segments, R + 256 G + 256^2 B, and the label of each of these."""

  image: bytes
  ids: np.ndarray
  labels: np.ndarray


class Source(Records):
  """A split of a segmentation set: `source[i]` is (encoded image, encoded mask), the second as `decode` takes it.

  Attributes: `num_classes`, 0 where the set does not specify it; `class_names`, `shape` (None where it varies).
  """

  def __init__(
    self, dataset: str, split: str, data_dir: str | None, names: Names, builder: tfds.core.DatasetBuilder
  ) -> None:
    features = dict(builder.info.features)
    self._names = names
    for key, name in (("image", names.image), ("mask", names.mask)):
      if not isinstance(features.get(name), tfds.features.Image):
        raise ValueError(
          f"{dataset!r} has no images called {name!r} (data.{key}): its features are {features}. Sets for segmentation"
          " have an image and another one, its mask"
        )
    self.shape, named = features[names.image].shape, features[names.mask]
    if names.segments:
      listed = features.get(names.segments)
      parts = dict(listed.feature) if isinstance(listed, tfds.features.Sequence) else {}
      named = parts.get("label")
      if "id" not in parts or not isinstance(named, tfds.features.ClassLabel):
        raise ValueError(
          f"{dataset!r} has no segments called {names.segments!r} (data.segments), each with an id and a label: its"
          f" features are {features}"
        )
    labelled = isinstance(named, tfds.features.LabeledImage | tfds.features.ClassLabel)
    self.num_classes = (named.num_classes or 0) if labelled else 0
    self.class_names = named.names if self.num_classes else []
    super().__init__(dataset, split, data_dir, builder)

  def parse(self, values: Mapping) -> tuple[bytes, bytes | Panoptic]:
    """The image file and the mask's."""
    image, mask = (values[name].bytes_list.value[0] for name in (self._names.image, self._names.mask))
    if not self._names.segments:
      return image, mask
    ids, labels = (np.array(values[f"{self._names.segments}/{key}"].int64_list.value, int) for key in ("id", "label"))
    return image, Panoptic(mask, ids, labels)

  def __reduce__(self):
    # A worker process opens its own files.
    return make_source, (self.dataset, self.split, self.data_dir, self._names)


@functools.lru_cache
def make_source(dataset: str, split: str, data_dir: str | None, names: Names) -> Source:
  """Opens a split of images with masks, whose features have these names; see `train.data.array_record.make_source`."""
  return Source(dataset, split, data_dir, names, open_builder(dataset, data_dir))


def decode(encoded: bytes | Panoptic) -> np.ndarray:
  """The numbers in a mask's file [Y, X]: of a grey image its values, of one with a palette the indices into that.

  Of a panoptic one the labels of its segments, and `IGNORE_INDEX` where there is none, which is the colour black.

  Raises:
    CorruptImage: nothing can be decoded, there are several numbers for a pixel, or a colour is no segment's.
  """
  panoptic = isinstance(encoded, Panoptic)
  content = encoded.image if panoptic else encoded
  try:
    mask = Image.open(io.BytesIO(content))
    if mask.mode not in (("RGB",) if panoptic else ("1", "L", "P", "I", "I;16")):
      raise transforms.CorruptImage(
        f"a mask of mode {mask.mode} has no ids of segments; wanted RGB"
        if panoptic
        else f"a mask of mode {mask.mode} has no one number for a pixel; wanted grey or a palette, or data.segments"
      )
    stored = np.asarray(mask).astype(np.int32)
  except (OSError, SyntaxError) as error:
    raise transforms.CorruptImage(f"{len(content)} bytes that are no mask: {error}") from error
  return _labels(stored, encoded) if panoptic else stored


def _labels(colours: np.ndarray, panoptic: Panoptic) -> np.ndarray:
  """The labels [Y, X] of the segments that colours name (Kirillov et al. 2019; COCO's format)."""
  ids = colours @ (1, 256, 256**2)
  found, which = np.unique(ids, return_inverse=True)
  labels = dict(zip(panoptic.ids.tolist(), panoptic.labels.tolist(), strict=True)) | {0: IGNORE_INDEX}
  if unknown := [n for n in found.tolist() if n not in labels]:
    raise transforms.CorruptImage(f"a mask has the colours of the ids {unknown[:5]}, which are none of its segments'")
  return np.array([labels[n] for n in found.tolist()])[which].reshape(ids.shape)


@dataclasses.dataclass(frozen=True)
class SemanticSegmentation(ImageClassification):
  """Images with a class for every pixel: what `config.data = dict(name="semantic_segmentation", ...)` makes.

  It is `ImageClassification` but for the following.

  Crops and flips move image and mask alike, the mask by nearest neighbours; all other operations change the image
  alone.

  Attributes:
    image, mask: what the set calls them.
    segments: what it calls the list of an image's segments, each with "id" and "label", where the colours of a mask are
      their ids: COCO's panoptic format. Empty where a mask's numbers are classes.
    offset: what stands in a mask for class 0. Lower numbers, and 255, are pixels without a class.
    classes: how many there are; 0: as the set has them.
    names: of the classes; as the set has them if empty.
  """

  image: str = "image"
  mask: str = "mask"
  segments: str = ""
  offset: int = 0
  classes: int = 0
  names: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    super().__post_init__()
    moving = [op.func.__name__ for op in self._ops if op.func in MOVING]
    if moving:
      raise ValueError(f"data.augment: {moving[0]} moves what is in an image, where its mask cannot follow")
    if not 0 <= self.classes <= IGNORE_INDEX or self.offset < 0:
      raise ValueError(
        f"data.classes is {self.classes} and data.offset {self.offset}; wanted 0 to {IGNORE_INDEX}, 0 or more"
      )
    object.__setattr__(self, "names", tuple(self.names))
    if self.names and self.classes and len(self.names) != self.classes:
      raise ValueError(f"data.names has {len(self.names)} names for {self.classes} classes")

  def examples(self, split: str | None = None) -> Source:
    """A split on disk, by default the training split."""
    names = Names(self.image, self.mask, self.segments)
    return make_source(self.dataset, split or self.train_split, self.data_dir, names)

  @property
  def num_classes(self) -> int:
    """Number of classes: those of all pixels are below it."""
    if classes := self.classes or len(self.names) or self.examples().num_classes - self.offset:
      return classes
    raise ValueError(f"{self.dataset!r} does not specify how many classes its masks have: set data.classes")

  @property
  def class_names(self) -> list[str]:
    """What the classes mean; their numbers, where neither the set nor the config has names."""
    names = self.names or self.examples().class_names[self.offset :]
    return list(names) or [str(number) for number in range(self.num_classes)]

  @classmethod
  def blank(cls, image_shape: tuple[int, int, int]) -> Batch:
    """An empty row of a batch, in the order of `example`."""
    image = super().blank(image_shape)
    return dict(image=image["image"], mask=np.full(image_shape[:2], IGNORE_INDEX, np.uint8), valid=image["valid"])

  def crop_target(
    self, examples: Source, index: int, encoded: bytes | Panoptic, shape: tuple[int, int], box: transforms.Box
  ) -> np.ndarray:
    """The mask of a box of the image, uint8 [Y, X].

    Raises:
      CorruptImage: it cannot be decoded.
      ValueError: it has another size than its image, or a number outside the classes.
    """
    stored = decode(encoded)
    if stored.shape != tuple(shape):
      sizes = " and its image {} x {}".format(*shape)
      raise ValueError("a mask has {} x {} pixels".format(*stored.shape) + f"{sizes}: {examples.where(index)}")
    classes = self.num_classes
    labelled = (stored >= self.offset) & (stored != IGNORE_INDEX)
    largest = int(stored.max(where=labelled, initial=self.offset))
    if largest - self.offset >= classes:
      raise ValueError(
        f"a mask has the number {largest}, which with data.offset={self.offset} is outside the {classes} classes:"
        f" {examples.where(index)}"
      )
    mask = np.where(labelled, stored - self.offset, IGNORE_INDEX).astype(np.uint8)
    return transforms.resize_mask(mask, box, self.image_size, IGNORE_INDEX)

  def augment_both(
    self, op: Callable, image: np.ndarray, mask: np.ndarray, rng: np.random.Generator
  ) -> tuple[np.ndarray, np.ndarray]:
    """One operation of `augment` on an image, and on its mask where pixels move."""
    if op.func is not transforms.flip:
      return op(image, rng), mask
    both = op(np.concatenate([image, mask[..., None]], -1), rng)
    return both[..., :-1], both[..., -1]
