"""Masks are cropped and flipped with their images, and what has no class is ignored."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from batches import concatenate, take
from PIL import Image
from support import raises

from train import data
from train.data import transforms
from train.data.semantic_segmentation import IGNORE_INDEX, decode


def file(array, mode=None):
  out = io.BytesIO()
  image = Image.fromarray(array)
  if mode == "P":
    image.putpalette(bytes(range(255, -1, -1)) * 3)
  image.save(out, "PNG")
  return out.getvalue()


class Fake(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A set of the (image, mask) files it is given."""

  name = "fake"
  VERSION = tfds.core.Version("1.0.0")
  examples, shape, labels = (), (None, None, 3), ()

  def _info(self):
    features = dict(photo=tfds.features.Image(shape=self.shape), trimap=tfds.features.Image(shape=(None, None, 1)))
    if self.labels:
      features["trimap"] = tfds.features.LabeledImage(labels=list(self.labels), shape=(None, None, 1))
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True)

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for i, (image, mask) in enumerate(self.examples):
      yield i, {"photo": io.BytesIO(image), "trimap": io.BytesIO(mask)}


def write(folder, examples, **attributes):
  kind = type("Fake", (Fake,), dict(name="fake", examples=examples, **attributes), skip_registration=True)
  kind(data_dir=folder, file_format="array_record").download_and_prepare()
  return str(folder)


def images_and_masks(count=6, seed=0, classes=3):
  """Images of all sizes and their masks: blocks of a class, each class of one colour."""
  rng = np.random.default_rng(seed)
  for i in range(count):
    blocks = rng.integers(0, classes, (5 + i, 9 - i)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    yield np.stack([blocks * 100] * 3, -1), blocks


def masks(folder, **kwargs):
  given = dict(dataset="fake", data_dir=folder, image_size=(24, 32), image="photo", mask="trimap", eval_split="train")
  return data.make("semantic_segmentation", **given | dict(classes=3) | kwargs)


def shown(batch):
  """The classes that an image's colours show."""
  return np.rint(batch["image"][..., 0] / 100).astype(int)


@pytest.mark.parametrize(
  "crop",
  [
    dict(name="random_resized_crop", area=(0.1, 1.0)),
    dict(name="random_scale_crop", scale=(0.4, 3.0)),
    dict(name="pad_crop", padding=9),
    dict(name="whole"),
  ],
  ids=lambda crop: crop["name"],
)
def test_a_mask_is_cropped_with_its_image(tmp_path, crop):
  folder = write(tmp_path, [(file(image), file(mask + 1)) for image, mask in images_and_masks()])
  flips = (dict(name="flip"),)
  made = masks(folder, crop=crop, augment=flips, offset=1)
  batch = concatenate(take(made.train_batches(6, 0), 8))
  assert batch["mask"].shape == (48, 24, 32) and batch["mask"].dtype == np.uint8 and batch["valid"].all()
  labelled = batch["mask"] != IGNORE_INDEX
  # Where an image is interpolated between two classes, and at a border, it shows neither.
  same = (shown(batch) == batch["mask"])[labelled]
  assert same.mean() > 0.8 and (same.reshape(-1).mean() < 1 or crop["name"] in ("whole", "pad_crop"))
  if crop["name"] in ("random_scale_crop", "pad_crop"):
    assert 0.02 < (~labelled).mean() < 0.6 and (batch["image"][~labelled] == 0).mean() > 0.9
  else:
    assert labelled.all()
  assert {0, 1, 2} <= set(np.unique(batch["mask"]))
  # Masks of another example agree no better than chance.
  assert (np.roll(shown(batch), 1, 0) == batch["mask"])[labelled].mean() < 0.6


def test_at_its_own_size_a_mask_is_exact_and_flips_with_its_image(tmp_path):
  rng = np.random.default_rng(0)
  classes = [rng.integers(0, 3, (24, 32)).astype(np.uint8) for _ in range(8)]
  folder = write(tmp_path, [(file(np.stack([c * 100] * 3, -1)), file(c)) for c in classes], shape=(24, 32, 3))
  for cache in (True, False):  # decoded once, and each time
    made = masks(folder, augment=(dict(name="flip"), dict(name="color_jitter", brightness=0.01)), cache=cache)
    batch = next(made.train_batches(8, 0))
    np.testing.assert_array_equal(shown(batch), batch["mask"])
    evaluated = next(made.eval_batches(8))
    np.testing.assert_array_equal(evaluated["mask"], classes)
    assert 0 < sum((batch["mask"] == evaluated["mask"][i]).all((1, 2)).any() for i in range(8)) < 8  # some are flipped


def test_padding_has_no_class_and_shapes_need_no_data(tmp_path):
  folder = write(tmp_path, [(file(image), file(mask)) for image, mask in images_and_masks(3)])
  batch = next(masks(folder).eval_batches(4))
  assert batch["valid"].tolist() == [True] * 3 + [False] and (batch["mask"][3] == IGNORE_INDEX).all()
  model = type("Config", (), dict(num_channels=3))
  labelled = data.kind("semantic_segmentation").shapes(dict(dataset="nowhere", image_size=(24, 32)), model, 4)
  assert {key: (a.shape, a.dtype) for key, a in labelled.items()} == {k: (a.shape, a.dtype) for k, a in batch.items()}


def test_processes_threads_and_workers_make_the_same_batch(tmp_path):
  folder = write(tmp_path, [(file(image), file(mask)) for image, mask in images_and_masks()])
  made = masks(folder, crop=dict(name="random_scale_crop"), augment=(dict(name="flip"),))
  whole = next(made.train_batches(6, 1, 2))
  parts = [next(made.train_batches(6, 1, 2, process, 2)) for process in range(2)]
  for key, value in whole.items():
    np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), value)


def test_labels_below_the_offset_and_255_are_ignored(tmp_path):
  stored = np.array([[0, 1, 2, 3], [255, 3, 2, 1]], np.uint8).repeat(12, 0).repeat(8, 1)
  folder = write(tmp_path, [(file(np.zeros((24, 32, 3), np.uint8)), file(stored, mode)) for mode in ("L", "P")])
  batch = next(masks(folder, offset=1).eval_batches(2))
  wanted = np.array([[IGNORE_INDEX, 0, 1, 2], [IGNORE_INDEX, 2, 1, 0]]).repeat(12, 0).repeat(8, 1)
  np.testing.assert_array_equal(batch["mask"], [wanted] * 2)  # a palette's colours are not its numbers
  less = next(masks(folder, offset=2).eval_batches(2))["mask"]
  np.testing.assert_array_equal(less, [np.where(wanted > 0, wanted - 1, IGNORE_INDEX) + (wanted == IGNORE_INDEX)] * 2)


def test_classes_are_read_from_the_set_where_it_has_them(tmp_path):
  examples = [(file(image), file(mask)) for image, mask in images_and_masks(2)]
  named = write(tmp_path / "named", examples, labels=("ground", "sea", "sky"))
  made = masks(named, classes=0)
  assert made.num_classes == 3 and made.class_names == ["ground", "sea", "sky"]
  folder = write(tmp_path / "plain", examples)
  with raises(ValueError, "data.classes"):
    _ = masks(folder, classes=0).num_classes
  assert (
    masks(folder).class_names == ["0", "1", "2"] and masks(folder, names=("a", "b", "c"), classes=0).num_classes == 3
  )


def test_invalid_masks_are_named(tmp_path):
  (image, mask), *_ = images_and_masks(1)
  good = file(image), file(mask)
  for name, wrong, named in (
    ("size", file(mask[:, 1:]), ("40 x 71", "40 x 72", "example 1", "'fake'")),
    ("class", file(mask + 1), ("number 3", "data.offset=0", "3 classes", "example 1", "'fake'")),
    ("colour", file(image), ("example 1", "'fake'", "record 1", "RGB")),
    ("bytes", b"no mask", ("example 1", "'fake'", "7 bytes")),
  ):
    folder = write(tmp_path / name, [good, (file(image), wrong)])
    with raises(ValueError, *named):
      list(masks(folder).eval_batches(2))
    if name in ("colour", "bytes"):
      batch = next(masks(folder, skip_corrupt=True).eval_batches(2))
      assert batch["valid"].tolist() == [True, False] and (batch["mask"][1] == IGNORE_INDEX).all()


@pytest.mark.parametrize(
  ("kwargs", "named"),
  [
    (dict(augment=(dict(name="rand_augment"),)), ("data.augment", "rand_augment")),
    (dict(classes=256), ("data.classes", 256, 255)),
    (dict(offset=-1), ("data.offset", -1)),
    (dict(names=("a",), classes=3), ("data.names", 1, 3)),
    (dict(crop=dict(name="random_scale_crop", scale=(2.0, 1.0))), ("data.crop", "scale", "(2.0, 1.0)")),
    (dict(ofset=1), ("'ofset'", "'offset'")),
  ],
  ids=str,
)
def test_an_invalid_config_is_an_error_that_names_the_fault(kwargs, named):
  with raises(ValueError, *named):
    masks("nowhere", **kwargs)


def test_a_set_without_masks_is_an_error():
  with raises(ValueError, "'fashion_mnist_small'", "'mask'", "data.mask", "label"):
    _ = data.make("semantic_segmentation", dataset="fashion_mnist_small", image_size=28).num_classes


def test_scaled_crops_have_the_given_shape_and_scales():
  rng = np.random.default_rng(0)
  boxes = [transforms.random_scale_crop((100, 150), rng, (40, 20), scale=(0.5, 2.0)) for _ in range(500)]
  heights = np.array([box.height for box in boxes])
  assert heights.min() >= 50 and heights.max() <= 200 and np.ptp(heights) > 140  # the shorter side is 100 at scale 1
  assert all(abs(box.width - box.height / 2) <= 1 for box in boxes)
  for side, start, length in ((100, 0, 2), (150, 1, 3)):
    for box in boxes:  # within the image, or the image within it
      low, high = sorted((0, side - box[length]))
      assert low <= box[start] <= high


def test_nearest_neighbour_masks_equal_pillows():
  mask = np.random.default_rng(0).integers(0, 9, (30, 50)).astype(np.uint8)
  for size in ((30, 50), (60, 100), (10, 25), (41, 61)):
    found = transforms.resize_mask(mask, transforms.Box(0, 0, 30, 50), size, 255)
    np.testing.assert_array_equal(found, Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST))
  part = transforms.resize_mask(mask, transforms.Box(-2, 3, 8, 49), (8, 49), 255)
  assert (part[:2] == 255).all() and (part[:, -2:] == 255).all()
  np.testing.assert_array_equal(part[2:, :-2], mask[:6, 3:])


def test_masks_of_16_bits_keep_their_values():
  out = io.BytesIO()
  Image.fromarray(np.array([[0, 300]], np.uint16)).save(out, "PNG")
  assert decode(out.getvalue()).tolist() == [[0, 300]]


class FakePanoptic(Fake, skip_registration=True):
  """A set as COCO's panoptic one: files of (image, mask in colours), and of each image the ids and labels."""

  def _info(self):
    segment = dict(id=np.int64, area=np.int64, label=tfds.features.ClassLabel(num_classes=133), is_crowd=np.bool_)
    features = dict(
      photo=tfds.features.Image(shape=(None, None, 3)),
      trimap=tfds.features.Image(shape=(None, None, 3)),
      objects=tfds.features.Sequence(segment),
    )
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True)

  def _generate_examples(self):
    for i, (image, mask, labels) in enumerate(self.examples):
      objects = [dict(id=n, area=1, label=label, is_crowd=False) for n, label in labels.items()]
      yield i, {"photo": io.BytesIO(image), "trimap": io.BytesIO(mask), "objects": objects}


def coloured(ids):
  """A panoptic mask: the id of each pixel as its colour."""
  return file(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8))


def write_panoptic(folder, examples):
  kind = type("Fake", (FakePanoptic,), dict(name="fake", examples=examples), skip_registration=True)
  kind(data_dir=folder, file_format="array_record").download_and_prepare()
  return str(folder)


def test_panoptic_masks_are_the_labels_of_their_segments(tmp_path):
  """Two segments of a label are one class; what is no segment is ignored."""
  ids = np.array([300, 7, 70_000, 0, 12])  # also two and three bytes long
  labels = {7: 132, 12: 0, 70_000: 5, 300: 5}
  index = np.random.default_rng(0).integers(0, 5, (24, 32))
  none = np.zeros((24, 32), int)
  image = file(np.zeros((24, 32, 3), np.uint8))
  folder = write_panoptic(tmp_path, [(image, coloured(ids[index]), labels), (image, coloured(none), {})])
  made = masks(folder, segments="objects", classes=0)
  assert made.num_classes == 133
  found = next(made.eval_batches(2))["mask"]
  np.testing.assert_array_equal(found[0], np.array([5, 132, 5, IGNORE_INDEX, 0])[index])
  assert (found[1] == IGNORE_INDEX).all()


def test_invalid_panoptic_masks_are_named(tmp_path):
  image = file(np.zeros((24, 32, 3), np.uint8))
  (tmp_path / "grey").mkdir()
  ids = np.full((24, 32), 9)
  folder = write_panoptic(tmp_path, [(image, coloured(ids), {8: 1})])
  with raises(ValueError, "example 0", [9]):
    next(masks(folder, segments="objects").eval_batches(1))
  with raises(ValueError, "'parts'", "data.segments"):
    _ = masks(folder, segments="parts").num_train
  with raises(ValueError, "RGB", "data.segments"):
    next(masks(folder).eval_batches(1))
  folder = write_panoptic(tmp_path / "grey", [(image, file(ids.astype(np.uint8)), {9: 1})])
  with raises(ValueError, "mode L", "RGB"):
    next(masks(folder, segments="objects").eval_batches(1))
