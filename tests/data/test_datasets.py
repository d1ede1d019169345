"""Data sets are built from local files and archives, and the bundled one is what its script makes."""

import gzip
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from batches import image_file, take
from support import raises

from train import data
from train.data import image_classification, prepare, transforms
from train.data.text import tables
from train.datasets import fashion_mnist, vader_movies

CROP = dict(name="random_resized_crop", area=(0.2, 1.0))


def test_the_bundled_set_is_small_balanced_and_readable_by_tfds():
  images = data.make("image_classification", dataset="fashion_mnist_small", image_size=28)
  assert (images.num_train, images.num_eval(), images.num_classes) == (10_000, 2_000, 10)
  assert images.image_shape == (28, 28, 1) and images.class_names == list(fashion_mnist.CLASSES)
  folder = os.path.join(os.path.dirname(fashion_mnist.__file__), "fashion_mnist_small")
  paths = [os.path.join(f, name) for f, _, names in os.walk(folder) for name in names]
  assert sum(map(os.path.getsize, paths)) <= 6_000_000
  assert "The MIT License" in Path(folder, "ORIGIN.md").read_text()
  builder = tfds.builder_from_directory(os.path.join(folder, "1.0.0"))
  for split, count in {"train": 1000, "test": 200}.items():
    source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    labels = [images.examples(split)[i][1] for i in range(len(source))]
    assert np.bincount(labels).tolist() == [count] * 10
    assert (source[7]["image"], source[7]["label"]) == images.examples(split)[7]


def write_idx(folder, count):
  """Random Fashion-MNIST, as the four files of the real one."""
  pixels = {}
  for split, prefix in fashion_mnist.FILES.items():
    rng = np.random.default_rng(len(split))
    pixels[split] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), rng.integers(0, 10, count, dtype=np.uint8)
    for name, array in zip(("images-idx3", "labels-idx1"), pixels[split], strict=True):
      header = np.array([2048 + array.ndim, *array.shape], ">i4").tobytes()
      (folder / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
  return pixels


def test_the_full_fashion_mnist_from_local_files(tmp_path):
  with raises(ValueError, "fashion_mnist", "--source"):
    prepare.prepare("fashion_mnist", tmp_path)
  pixels = write_idx(tmp_path, 30)
  prepare.prepare("fashion_mnist", str(tmp_path / "sets"), str(tmp_path))
  for split, (images_BYX, labels_B) in pixels.items():
    images = data.make("image_classification", dataset="fashion_mnist", data_dir=str(tmp_path / "sets"), image_size=28)
    batch = next(images.eval_batches(30, split))
    # TFDS shuffles what it writes.
    written = sorted(zip((i.tobytes() for i in batch["image"]), batch["label"].tolist(), strict=True))
    assert written == sorted(zip((i.tobytes() for i in images_BYX), labels_B.tolist(), strict=True))


def test_the_bundled_set_is_reproduced_by_its_script(tmp_path, monkeypatch):
  from train.datasets import make_fashion_mnist_small as script

  pixels = write_idx(tmp_path, 40)
  monkeypatch.setattr(script, "PER_CLASS", {"train": 2, "test": 1})
  folder = script.make(str(tmp_path), tmp_path / "out")
  for split, count in script.PER_CLASS.items():
    source = image_classification.Source("small", split, None, tfds.builder_from_directory(folder))
    got = sorted(
      (label, transforms.decode(file, 1).tobytes()) for file, label in (source[i] for i in range(len(source)))
    )
    images, labels = pixels[split]
    firsts = [i for c in range(10) for i in np.flatnonzero(labels == c)[:count]]
    assert got == sorted((int(labels[i]), images[i].tobytes()) for i in firsts)


def tar(files, mode="w"):
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode=mode) as archive:
    for name, content in files.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      archive.addfile(info, io.BytesIO(content))
  return file.getvalue()


def test_imagenet_is_prepared_from_its_archives(tmp_path):
  with raises(ValueError, "downloads/manual", "ILSVRC2012_img_train.tar"):
    prepare.prepare("imagenet2012", str(tmp_path))
  manual = tmp_path / "downloads" / "manual"
  manual.mkdir(parents=True)
  photos = {f"n01440764_{i}.JPEG": image_file(i, format="JPEG") for i in range(4)}
  # The one PNG among ImageNet's files, which TFDS makes a JPEG.
  classes = {"n01440764.tar": tar(photos), "n02105855.tar": tar({"n02105855_2933.JPEG": image_file()})}
  (manual / "ILSVRC2012_img_train.tar").write_bytes(tar(classes))
  validation = {f"ILSVRC2012_val_0000000{i}.JPEG": image_file(i, format="JPEG") for i in (1, 2, 3)}
  (manual / "ILSVRC2012_img_val.tar").write_bytes(tar(validation))
  prepare.prepare("imagenet2012", str(tmp_path))
  images = data.make(
    "image_classification",
    dataset="imagenet2012",
    data_dir=str(tmp_path),
    eval_split="validation",
    image_size=16,
    crop=CROP,
  )
  assert (images.num_train, images.num_eval(), images.num_classes) == (5, 3, 1000)
  assert all(images.examples()[i][0][:2] == b"\xff\xd8" for i in range(5))
  assert sorted(take(images.train_batches(5, 0), 1)[0]["label"].tolist()) == [0, 0, 0, 0, 230]


def test_cifar_is_prepared_from_arrays(tmp_path, monkeypatch):
  files = tmp_path / "cifar-10-batches-bin"
  files.mkdir()
  rng = np.random.default_rng(0)
  records = {}
  for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
    records[name] = np.concatenate(
      [rng.integers(0, 10, (4, 1), dtype=np.uint8), rng.integers(0, 256, (4, 3072), dtype=np.uint8)], axis=1
    )
    (files / name).write_bytes(records[name].tobytes())
  (files / "batches.meta.txt").write_text(
    "\n".join(["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"])
  )
  monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", lambda self, url: str(tmp_path))
  prepare.prepare("cifar10", str(tmp_path / "sets"))
  images = data.make("image_classification", dataset="cifar10", data_dir=str(tmp_path / "sets"), image_size=32)
  assert (images.num_train, images.num_eval(), images.image_shape) == (20, 4, (32, 32, 3))
  batch = next(images.eval_batches(4))
  planar = records["test_batch.bin"][:, 1:].reshape(4, 3, 32, 32).transpose(0, 2, 3, 1)
  assert {i.tobytes() for i in batch["image"]} == {i.tobytes() for i in planar}


def test_sets_that_cannot_be_prepared_are_errors(tmp_path):
  for name, known in {"imagnet2012": "imagenet2012", "fashion_mnist_small": "bundled"}.items():
    with raises(ValueError, f"'{name}'", known):
      prepare.prepare(name, str(tmp_path))


def test_rated_snippets_are_built_from_their_archive(tmp_path):
  rows = [(i, (i % 9 - 4) / 2, f"snippet {i // 2}") for i in range(1, 400)] + [(400, 0.5, "no"), (401, -0.5, "nor")]
  archive = tmp_path / "source" / "vaderSentiment-3.3.2.tar.gz"
  archive.parent.mkdir()
  lines = "".join(f"{n}\t{rating}\t{text}\r\n" for n, rating, text in rows).encode()
  inner = tar({f"x/{vader_movies.FILE}": lines}, "w:gz")
  archive.write_bytes(tar({f"vaderSentiment-3.3.2/{vader_movies.INNER}": inner}, "w:gz"))
  prepare.prepare("vader_movies", str(tmp_path / "data"), str(archive.parent))
  found = {}
  for split in ("train", "val", "test"):
    table = tables.read("vader_movies", split, str(tmp_path / "data"), ("number", "text", "label", "rating"))
    found[split] = table.rows
    assert all((label == 1) == (rating > 0) and abs(rating) > 0.5 for _, _, label, rating in table.rows)
  assert sorted(int(row[0]) for part in found.values() for row in part) == [
    n for n, rating, _ in rows if abs(rating) > 0.5
  ]
  texts = [{row[1] for row in part} for part in found.values()]
  assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]
  assert 0.6 < len(found["train"]) / sum(map(len, found.values())) < 0.95
  with raises(ValueError, tmp_path, "vaderSentiment-*.tar.gz"):
    prepare.prepare("vader_movies", str(tmp_path / "other"), str(tmp_path))
