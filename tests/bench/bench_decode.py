"""Images per second of one core: JPEG files to augmented images, here and in the style of Pillow and torchvision.

python tests/bench/bench_decode.py [--photos FOLDER] [--seconds 2] [--json FILE]

All decode a 500x375 JPEG (quality 92), cut a random box of 8 to 100 % of the area, resize it to 224x224, flip half of
them, and normalise to float32. Ours leaves the last to the device; "normalised on the host" does it too, for equal
work. "fast" is bilinear, of JPEGs that are decoded smaller where they can be: what to compare it with is Pillow's and
torchvision's bilinear. With "bicubic" ours is Pillow's resampling. The pictures: every JPEG or PNG in a folder of
photos, or the one photo that comes with Matplotlib (and those in scikit-image and scikit-learn, where installed).
"""

import argparse
import functools
import importlib.util
import io
import json
import os
import time
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image

from train.data import transforms

SIZE = (224, 224)
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
# Photographs in these packages; the rest of what they bring are diagrams and instruments' pictures.
PHOTOS = {
  "skimage": ("data", ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")),
  "sklearn": ("datasets/images", ("china.jpg", "flower.jpg")),
}


def photos(folder: str | None) -> list[bytes]:
  """JPEG files of 500x375 pixels."""
  if folder:
    paths = sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
  else:
    paths = [Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"]
    for package, (inside, names) in PHOTOS.items():
      if spec := importlib.util.find_spec(package):
        paths += [p for p in (Path(spec.origin).parent / inside / n for n in names) if p.exists()]
  files = []
  for path in paths:
    file = io.BytesIO()
    Image.open(path).convert("RGB").resize((500, 375), Image.Resampling.LANCZOS).save(file, "JPEG", quality=92)
    files.append(file.getvalue())
  return files


def here(encoded: bytes, rng: np.random.Generator, interpolation: str) -> np.ndarray:
  """Our pipeline: uint8, to be normalised on the device."""
  crop = functools.partial(transforms.random_resized_crop, rng=rng, size=SIZE)
  return transforms.flip(transforms.decode_crop(encoded, crop, SIZE, 3, interpolation), rng)


def here_normalised(encoded: bytes, rng: np.random.Generator, interpolation: str) -> np.ndarray:
  """Our pipeline and the normalisation, for equal work."""
  image_YXC = here(encoded, rng, interpolation).astype(np.float32)
  return cv2.divide(cv2.subtract(image_YXC, (*(MEAN * 255).tolist(), 0)), (*(STD * 255).tolist(), 1))


def pillow(encoded: bytes, rng: np.random.Generator, interpolation: str) -> np.ndarray:
  """Plain Pillow and numpy."""
  picture = Image.open(io.BytesIO(encoded)).convert("RGB")
  box = transforms.random_resized_crop(picture.size[::-1], rng, SIZE)
  picture = picture.crop((box.left, box.top, box.left + box.width, box.top + box.height))
  picture = picture.resize(SIZE[::-1], Image.Resampling[interpolation.upper()])
  if rng.random() < 0.5:
    picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  return (np.asarray(picture, np.float32) / 255 - MEAN) / STD


def torchvision_pipeline(interpolation: str):
  """Torchvision's transforms, from the file's bytes; None if it is not installed."""
  try:
    import torch
    from torchvision import transforms
  except ImportError:
    return None
  torch.set_num_threads(1)
  transform = transforms.Compose(
    [
      transforms.RandomResizedCrop(SIZE[0], interpolation=transforms.InterpolationMode(interpolation)),
      transforms.RandomHorizontalFlip(),
      transforms.ToTensor(),
      transforms.Normalize(MEAN.tolist(), STD.tolist()),
    ]
  )
  return lambda encoded, rng: transform(Image.open(io.BytesIO(encoded)).convert("RGB"))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--photos", help="a folder of photos to use instead")
  parser.add_argument("--seconds", type=float, default=2, help="for each pipeline")
  parser.add_argument("--json", help="write the figures to this file")
  args = parser.parse_args()
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # one core for all
  files = photos(args.photos)
  pipelines = {}
  for ours in ("fast", "bicubic"):
    pipelines[f"here, {ours}"] = functools.partial(here, interpolation=ours)
    pipelines[f"here, {ours}, normalised on the host"] = functools.partial(here_normalised, interpolation=ours)
  for interpolation in ("bilinear", "bicubic"):
    pipelines[f"Pillow, {interpolation}"] = functools.partial(pillow, interpolation=interpolation)
    if peer := torchvision_pipeline(interpolation):
      pipelines[f"torchvision, {interpolation}"] = peer
  seconds, images = dict.fromkeys(pipelines, 0.0), 0
  round_ = 0
  # In turns, so that what else the machine does falls on all; processor time, so that it does not count.
  begin = time.perf_counter()
  while time.perf_counter() - begin < args.seconds * len(pipelines) or round_ < 2:
    for name, pipeline in pipelines.items():
      rng = np.random.default_rng(round_)
      start = time.process_time()
      for encoded in files:
        pipeline(encoded, rng)
      if round_:  # the first round warms up
        seconds[name] += time.process_time() - start
    images += len(files) if round_ else 0
    round_ += 1
  rate = {name: images / s for name, s in seconds.items()}
  print(f"{len(files)} photos, {sum(map(len, files)) / len(files) / 1000:.0f} kB on average, {images} images each")
  for name, value in rate.items():
    print(f"{name:38s}{value:8.0f} images/s; here, fast: {rate['here, fast'] / value:5.2f} x of it")
  if args.json:
    Path(args.json).write_text(json.dumps({"images_per_second": rate}))


if __name__ == "__main__":
  main()
