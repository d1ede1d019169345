"""The order of the data is a function of (seed, step), every example is used, and invalid data is named."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from batches import assert_equal, concatenate, image_file, take
from PIL import Image
from support import TINY_CONFIG, raises

from train import config as configuration
from train import data, loop
from train.data import transforms

pytestmark = pytest.mark.usefixtures("one_device")


CROP = dict(name="random_resized_crop", area=(0.2, 1.0))
AUGMENT = (dict(name="flip"), dict(name="rand_augment", layers=1))


def small(**kwargs):
  """A tenth of the bundled set, with randomness in every image."""
  given = dict(dataset="fashion_mnist_small", image_size=28, train_split="train[:10%]", crop=CROP, augment=AUGMENT)
  return data.make("image_classification", **given | kwargs)


class Fake(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A set of the examples [(bytes, label)] it is given, in two shards."""

  name = "fake"
  VERSION = tfds.core.Version("1.0.0")
  examples = ()
  shape = (None, None, 3)

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=self.shape),
          "label": tfds.features.ClassLabel(num_classes=3),
          "more": tfds.features.Text(),
        }
      ),
      supervised_keys=("image", "label"),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for i, (file, label) in enumerate(self.examples):
      yield i, {"image": io.BytesIO(file), "label": label, "more": "x"}


def write_fake(folder, examples, **attributes):
  builder = type("Fake", (Fake,), dict(name="fake", examples=examples, **attributes), skip_registration=True)(
    data_dir=folder, file_format="array_record"
  )
  builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=2))
  return str(folder)


@pytest.mark.parametrize("cache", [True, False])
def test_every_epoch_has_every_example_once_in_an_order_of_its_own(cache):
  plain = small(train_split="train[:200]", crop=dict(name="center_crop"), augment=(), cache=cache)
  source = plain.examples()
  pixels = [plain.example(source, i)[0].tobytes() for i in range(200)]
  assert len(set(pixels)) == 200
  # Batches of 80 do not divide the epoch: the stream runs on through its end.
  stream = concatenate(take(plain.train_batches(80, seed=1), 5))
  orders = [[pixels.index(image.tobytes()) for image in stream["image"][e * 200 : e * 200 + 200]] for e in (0, 1)]
  assert sorted(orders[0]) == sorted(orders[1]) == list(range(200))
  assert orders[0] != orders[1]
  assert stream["label"].tolist() == [source[i][1] for order in orders for i in order]
  other = take(plain.train_batches(80, seed=2), 1)[0]
  assert other["label"].tolist() != stream["label"][:80].tolist()


def test_augmentation_differs_by_epoch_and_by_seed():
  images = small(train_split="train[:1]")
  first, second = take(images.train_batches(1, seed=0), 2)
  assert not np.array_equal(first["image"], second["image"])
  assert not np.array_equal(first["image"], take(images.train_batches(1, seed=1), 1)[0]["image"])


@pytest.mark.parametrize("batch_size", [24, 256])  # one piece of work a process, and several
def test_any_number_of_processes_makes_the_same_batch(batch_size):
  images = small()
  whole = take(images.train_batches(batch_size, seed=5), 3)
  np.testing.assert_array_equal(whole[0]["id"], np.arange(batch_size))
  for count in (2, 4):
    parts = [take(images.train_batches(batch_size, 5, 0, process, count), 3) for process in range(count)]
    for step in range(3):
      assert_equal(concatenate([part[step] for part in parts]), whole[step])


@pytest.mark.parametrize("process", [0, 1])
def test_starting_at_a_step_continues_exactly_there(process):
  images = small()
  every = take(images.train_batches(256, 7, 0, process, 2), 9)
  for first in (1, 8):  # the second one in the third epoch
    assert_equal(take(images.train_batches(256, 7, first, process, 2), 1)[0], every[first])


def test_threads_and_the_cache_change_nothing():
  expected = take(small(threads=1).train_batches(128, 3), 4)
  for other in (small(threads=4), small(cache=False, threads=3)):
    for a, b in zip(expected, take(other.train_batches(128, 3), 4), strict=True):
      assert_equal(a, b)


# As `zoo train` runs: a program whose flags absl has not parsed, and which a worker imports again.
PROGRAM = """
import hashlib, multiprocessing, sys, time
from train import data

def main(workers, wait):
  images = data.make(
    "image_classification", dataset="fashion_mnist_small", image_size=28, train_split="train[:300]", workers=workers,
    crop=dict(name="random_resized_crop"), augment=[dict(name="rand_augment")],
  )
  batches = images.train_batches(128, seed=3)
  digest = hashlib.sha256()
  for _ in range(3):
    digest.update(next(batches)["image"].tobytes())
  if wait:
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(60)
  print(digest.hexdigest())
  return batches

if __name__ == "__main__":
  open_to_the_end = main(int(sys.argv[1]), len(sys.argv) > 2)
"""


@pytest.fixture
def program(tmp_path):
  path = tmp_path / "program.py"
  path.write_text(PROGRAM)
  return [sys.executable, str(path)]


ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(data.__file__).parents[2])}


def test_worker_processes_make_the_same_batches_and_end_quietly_with_the_program(program):
  runs = [
    subprocess.run([*program, n], check=True, capture_output=True, text=True, timeout=120, env=ENVIRONMENT)
    for n in ("0", "2")
  ]
  assert runs[0].stdout == runs[1].stdout != ""
  for run in runs:
    assert not any(word in run.stderr for word in ("Traceback", "Exception", "leaked"))


def test_workers_end_when_the_program_is_killed(program):
  with subprocess.Popen([*program, "2", "wait"], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
    workers = [int(pid) for pid in process.stdout.readline().split()]
    process.kill()
  assert len(workers) == 2
  end = time.monotonic() + 20
  while workers and time.monotonic() < end:
    workers = [pid for pid in workers if running(pid)]
    time.sleep(0.1)
  assert not workers


def running(pid):
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  status = Path(f"/proc/{pid}/stat")  # in a container zombies may never be reaped
  return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(("batch_size", "limit"), [(64, None), (300, None), (4096, None), (64, 100)])
def test_evaluation_sees_every_example_once_over_all_processes(batch_size, limit):
  images = small(eval_split="test[:50%]")
  source, count = images.examples("test[:50%]"), limit or 1000
  expected = [source[i][1] for i in range(count)]
  for processes in (1, 2, 4):
    parts = [list(images.eval_batches(batch_size, None, p, processes, limit)) for p in range(processes)]
    assert {len(part) for part in parts} == {-(-count // batch_size)}
    batches = [concatenate(step) for step in zip(*parts, strict=True)]
    for batch in batches:
      assert len(batch["label"]) == batch_size and batch["id"].tolist() == list(range(batch_size))
      assert not batch["image"][~batch["valid"]].any()
    assert concatenate(batches)["valid"].sum() == count
    assert np.concatenate([b["label"][b["valid"]] for b in batches]).tolist() == expected


def test_training_crops_and_then_applies_operations_in_order():
  images = small(train_split="train[:64]", crop=dict(name="whole"), augment=(dict(name="flip", probability=1.0),))
  source = images.examples()
  originals = {images.example(source, i)[0].tobytes() for i in range(64)}
  batch = take(images.train_batches(64, 0), 1)[0]
  assert {np.ascontiguousarray(image[:, ::-1]).tobytes() for image in batch["image"]} == originals
  # The crop draws first, then each operation, all from one generator made of the seed and the position.
  images = small(train_split="train[:64]", crop=CROP, augment=(dict(name="flip"), dict(name="rand_augment")))
  batch = take(images.train_batches(64, 9, 1), 1)[0]
  decoded = [transforms.decode(source[i][0], 1) for i in range(64)]
  expected = set()
  for original in decoded:
    for position in range(64, 128):
      rng = np.random.default_rng((9, position))
      box = transforms.random_resized_crop((28, 28), rng, (28, 28), area=(0.2, 1.0))
      image = transforms.resize(original, box, (28, 28), "fast")
      expected.add(transforms.rand_augment(transforms.flip(image, rng), rng).tobytes())
  assert {image.tobytes() for image in batch["image"]} <= expected


def test_evaluation_can_read_the_training_split_without_augmentation():
  images = small()
  batch = next(images.eval_batches(8, split="train[:10%]"))
  plain = [images.example(images.examples(), i)[0] for i in range(8)]
  np.testing.assert_array_equal(batch["image"], plain)


@pytest.mark.parametrize(("channels", "expected"), [(None, 1), (1, 1), (3, 3)])
@pytest.mark.parametrize("size", [28, (32, 40)])
def test_images_have_the_configured_size_and_channels(channels, expected, size):
  images = small(channels=channels, image_size=size)
  shape = ((28, 28) if size == 28 else size) + (expected,)
  assert images.image_shape == shape
  for batch in (take(images.train_batches(4, 0), 1)[0], next(images.eval_batches(4))):
    assert batch["image"].shape == (4, *shape) and batch["image"].dtype == np.uint8
    assert [batch[k].dtype for k in ("label", "valid", "id")] == [np.int32, np.bool_, np.int32]
    if expected == 3 and size == 28:
      assert batch["image"].std() > 10


def test_images_of_all_sizes_are_cropped_to_one_size(tmp_path):
  folder = write_fake(tmp_path, [(image_file(i, (20 + i, 40 - i), "JPEG"), i % 3) for i in range(12)])
  images = data.make("image_classification", dataset="fake", data_dir=folder, image_size=16, crop=CROP, augment=AUGMENT)
  batch = take(images.train_batches(12, 0), 1)[0]
  assert batch["image"].shape == (12, 16, 16, 3) and batch["valid"].all()
  assert sorted(batch["label"].tolist()) == sorted([0, 1, 2] * 4)
  with raises(ValueError, "'fake'", "cache"):
    next(
      data.make("image_classification", dataset="fake", data_dir=folder, image_size=16, cache=True).train_batches(4, 0)
    )


@pytest.mark.parametrize("shape", [(None, None, 3), (20, 24, 3)])  # read, and cached
def test_a_corrupt_image_is_named_and_skipped_only_with_skip_corrupt(tmp_path, shape):
  files = [image_file(i) for i in range(10)]
  files[7] = files[7][:60]
  folder = write_fake(tmp_path, [(file, i % 3) for i, file in enumerate(files)], shape=shape)
  given = dict(dataset="fake", data_dir=folder, image_size=(20, 24))
  with raises(ValueError, "example 7", "'fake' 'train'", "record 2", "fake-train.array_record-00001-of"):
    list(data.make("image_classification", **given).eval_batches(10, "train"))
  batch = next(data.make("image_classification", **given, skip_corrupt=True).eval_batches(10, "train"))
  assert np.flatnonzero(~batch["valid"]).tolist() == [7] and not batch["image"][7].any()
  for i in set(range(10)) - {7}:  # the others stay where they were
    np.testing.assert_array_equal(batch["image"][i], np.asarray(Image.open(io.BytesIO(files[i]))))


def test_skipped_images_are_counted_across_a_resume(tmp_path):
  files = [image_file(i) for i in range(16)]
  files[7] = files[7][:60]
  folder = write_fake(tmp_path / "data", [(file, i % 3) for i, file in enumerate(files)])
  given = dict(data_dir=folder, dataset="fake", image_size=16, train_split="train", eval_split="train")
  given = [*(f"data.{key}={value}" for key, value in given.items()), "data.skip_corrupt=True", "model.num_channels=3"]
  config = configuration.load(TINY_CONFIG, given)
  config.evals, config.batch_size, config.log_every_steps, config.checkpoint.every_steps = {}, 8, 1, 2
  for steps in 3, 6:
    config.steps, config.epochs = steps, 0.0
    loop.train(config, tmp_path / "run", override_config=True)
  lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  counts = {line["step"]: line["train/corrupt_images"] for line in lines if "train/loss" in line}
  assert [counts[step] for step in (2, 4, 6)] == [1, 2, 3]  # an epoch is two steps


@pytest.mark.parametrize("skip", [True, False])
def test_a_label_outside_the_classes_is_named(tmp_path, skip):
  folder = write_fake(tmp_path, [(image_file(i), -1 if i == 4 else 0) for i in range(6)])
  images = data.make("image_classification", dataset="fake", data_dir=folder, image_size=16, skip_corrupt=skip)
  with raises(ValueError, "label -1", 3, "example 4", "'fake'"):
    list(images.eval_batches(6, "train"))


@pytest.mark.parametrize(("shape", "record"), [((None, None, 3), "example 3"), ((20, 24, 3), "record 0")])
def test_a_truncated_shard_is_named(tmp_path, shape, record):
  folder = write_fake(tmp_path, [(image_file(i), 0) for i in range(6)], shape=shape)
  shard = tmp_path / "fake" / "1.0.0" / "fake-train.array_record-00001-of-00002"
  shard.write_bytes(shard.read_bytes()[:1000])
  images = data.make("image_classification", dataset="fake", data_dir=folder, image_size=16)
  with raises(ValueError, record, shard):
    list(images.eval_batches(6, "train"))


@pytest.mark.parametrize(
  ("kwargs", "named"),
  [
    (dict(dataset="fashion_mnist_smal"), ["'fashion_mnist_smal'", "fashion_mnist_small"]),
    (dict(dataset="cifr10"), ["cifar10"]),
    (dict(dataset="cifar10", data_dir="/nowhere"), ["/nowhere", "zoo prepare cifar10 --data-dir /nowhere"]),
    (dict(train_split="trian"), ["trian", "'train'", "test"]),
    (dict(train_split="train[:900%]"), ["train[:900%]"]),
    (dict(image_size=0), ["image_size", "0"]),
    (dict(image_size=(28, 28, 1)), ["image_size", "(28, 28, 1)"]),
    (dict(channels=4), ["channels", "4"]),
    (dict(workers=-1), ["workers", "-1"]),
    (dict(threads="many"), ["threads", "many"]),
    (dict(interpolation="bicubc"), ["bicubc", "'bicubic'"]),
    (dict(crop=dict(name="random_resize_crop")), ["data.crop", "'random_resized_crop'"]),
    (dict(crop=dict(name="random_resized_crop", areas=1)), ["data.crop", "'areas'", "'area'"]),
    (dict(eval_crop=dict(name="center_crop", fraction="big")), ["data.eval_crop", "big"]),
    (dict(augment=(dict(name="flip"), dict(name="erase"))), ["data.augment[1]", "random_erasing"]),
    (dict(augment=(dict(name="random_erasing", mode="pixels"),)), ["data.augment[0]", "pixels"]),
    (dict(agument=()), ["'agument'", "'augment'"]),
    (dict(name="image_classificatio"), ["'image_classificatio'", "'image_classification'"]),
  ],
  ids=lambda value: str(value)[:60],
)
def test_an_invalid_config_is_an_error_that_names_the_fault(kwargs, named):
  given = dict(name="image_classification", dataset="fashion_mnist_small", image_size=28) | kwargs
  with raises(ValueError, *named):
    _ = data.make(**given).num_train


def test_invalid_batch_sizes_are_errors_before_the_first_batch():
  images = small(train_split="train[:100]")
  with raises(ValueError, "batch_size", 128, "'fashion_mnist_small' 'train[:100]'"):
    images.train_batches(128, 0)
  with raises(ValueError, "batch_size", 6, 4):
    images.eval_batches(6, process_count=4)
