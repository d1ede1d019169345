"""Crops and augmentations: their properties, and agreement with Pillow."""

import functools
import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from support import raises

from train.data import transforms
from train.data.transforms import decoding, filters


def sample_image(height=96, width=128, channels=3, seed=0):
  """Smooth, coloured and without symmetry."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:height, :width].astype(np.float64)
  waves = [
    127 + 60 * np.sin(x / rng.uniform(6, 20) + rng.uniform(0, 6)) + 60 * np.cos(y / rng.uniform(6, 20) + x / 40)
    for _ in range(channels)
  ]
  return np.clip(np.stack(waves, -1) + rng.normal(0, 3, (height, width, channels)), 0, 255).astype(np.uint8)


def encoded(image_YXC, format="PNG", **options):
  file = io.BytesIO()
  Image.fromarray(image_YXC if image_YXC.shape[-1] > 1 else image_YXC[..., 0]).save(file, format, **options)
  return file.getvalue()


def rng(seed=0):
  return np.random.default_rng(seed)


def test_random_resized_crop_has_the_given_areas_and_shapes():
  boxes = [transforms.random_resized_crop((300, 400), rng(i), (8, 8), area=(0.2, 0.5)) for i in range(2000)]
  areas = np.array([b.height * b.width / (300 * 400) for b in boxes])
  logs = np.log([b.width / b.height for b in boxes])
  assert 0.19 < areas.min() < 0.21 and 0.49 < areas.max() < 0.51
  np.testing.assert_allclose(areas.mean(), 0.35, atol=0.01)  # uniform: the middle
  np.testing.assert_allclose([logs.mean(), logs.std()], [0, np.log(16 / 9) / np.sqrt(12)], atol=0.01)
  assert all(0 <= b.top <= 300 - b.height and 0 <= b.left <= 400 - b.width for b in boxes)
  centres = np.array([[b.top + b.height / 2, b.left + b.width / 2] for b in boxes])
  np.testing.assert_allclose(centres.mean(0), [150, 200], atol=4)


def test_random_resized_crop_of_an_impossible_shape_is_the_largest_central_one():
  # 10 x 1000: no box of a fifth of the area is at most 4 / 3 wide.
  box = transforms.random_resized_crop((10, 1000), rng(), (8, 8), area=(0.5, 1.0))
  assert box == transforms.Box(0, 493, 10, 13)


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("channels", [1, 3])
def test_evaluation_is_resize_and_central_crop_as_in_pillow(format, interpolation, channels):
  # 256 / 224 = 64 / 56: the short side to 64, then the central 56.
  file = encoded(sample_image(96, 144, channels), format)
  crop = functools.partial(transforms.center_crop, rng=None, size=(56, 56), fraction=56 / 64)
  ours = transforms.decode_crop(file, crop, (56, 56), channels, interpolation)
  resized = Image.open(io.BytesIO(file)).resize((96, 64), transforms.RESAMPLING[interpolation])
  theirs = np.asarray(resized.crop((20, 4, 76, 60))).reshape(56, 56, channels)
  assert ours.shape == (56, 56, channels) and ours.dtype == np.uint8
  # Cropping first or last differs by rounding in the 8-bit steps; libjpeg-turbo's versions differ by one level.
  assert np.abs(ours.astype(int) - theirs).max() <= 2


def test_evaluation_of_an_image_of_the_right_size_is_the_identity():
  image = sample_image(28, 28, 1)
  crop = functools.partial(transforms.center_crop, rng=None, size=(28, 28))
  np.testing.assert_array_equal(transforms.decode_crop(encoded(image), crop, (28, 28), 1, "bicubic"), image)


@pytest.mark.parametrize("size", [75, 100])
def test_the_fast_crop_agrees_with_the_exact_one(size):
  # 75 of 360 pixels: decoded at a quarter; 100: at a half.
  file = encoded(sample_image(400, 600), "JPEG", quality=95)
  box = transforms.Box(20, 132, 360, 400)
  fast = transforms.decode_crop(file, lambda shape: box, (size, size), 3, "fast").astype(int)
  exact = transforms.decode_crop(file, lambda shape: box, (size, size), 3, "bilinear").astype(int)
  other = transforms.decode_crop(file, lambda shape: box._replace(left=142), (size, size), 3, "bilinear").astype(int)
  assert np.abs(fast - exact).mean() < 4 < np.abs(other - exact).mean()


def test_the_fast_crop_decodes_fewer_pixels(monkeypatch):
  file, shapes = encoded(sample_image(400, 600), "JPEG"), []
  real = transforms.resize
  monkeypatch.setattr(decoding, "resize", lambda image, *args: (shapes.append(image.shape[:2]), real(image, *args))[1])
  for size in (30, 100, 150, 250):
    transforms.decode_crop(file, lambda shape: transforms.Box(0, 0, 400, 400), (size, size), 3, "fast")
  assert shapes == [(50, 75), (100, 150), (200, 300), (400, 600)]

  shapes.clear()  # large enough one way is not enough
  for box in (transforms.Box(0, 0, 120, 400), transforms.Box(0, 0, 400, 120)):
    transforms.decode_crop(file, lambda shape, box=box: box, (100, 100), 3, "fast")
  assert shapes == [(400, 600)] * 2


def test_pad_crop_shifts_the_image_over_black():
  image = np.full((28, 28, 1), 200, np.uint8)
  corners = set()
  for i in range(300):
    box = transforms.pad_crop((28, 28), rng(i), (28, 28), padding=2)
    moved = transforms.resize(image, box, (28, 28), "fast")
    assert moved.shape == image.shape
    assert (moved == 0).sum() == 28 * 28 - (28 - abs(box.top)) * (28 - abs(box.left))
    assert (moved[0, 0, 0] == 0) == (box.top < 0 or box.left < 0)
    corners.add((box.top, box.left))
  assert corners == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}


@pytest.mark.parametrize("interpolation", transforms.INTERPOLATIONS)
def test_a_box_beyond_the_image_is_resized_with_its_border(interpolation):
  image = np.full((20, 20, 3), 200, np.uint8)
  result = transforms.resize(image, transforms.Box(-10, 0, 20, 20), (40, 40), interpolation)
  assert result[:18].max() == 0 and result[22:].min() == 200


@pytest.mark.parametrize(
  ("format", "mode"),
  [(f, m) for f, ms in {"PNG": "L RGB RGBA P", "JPEG": "L RGB CMYK", "WEBP": "L RGB RGBA"}.items() for m in ms.split()],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_file_format_and_mode_decodes_to_grey_or_rgb(format, mode, channels):
  file = io.BytesIO()
  Image.fromarray(sample_image(64, 64)).convert(mode).save(file, format)
  crop = functools.partial(transforms.whole, rng=None, size=(64, 64))
  ours = transforms.decode_crop(file.getvalue(), crop, (64, 64), channels, "bicubic")
  theirs = Image.open(io.BytesIO(file.getvalue())).convert("RGB").convert("L" if channels == 1 else "RGB")
  difference = np.abs(ours.astype(int) - np.asarray(theirs).reshape(64, 64, channels))
  assert difference.mean() < (5 if mode == "CMYK" else 1.5)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_truncated_files_are_corrupt(format):
  file = encoded(sample_image(200, 200), format)
  crop = functools.partial(transforms.whole, rng=None, size=(8, 8))
  for wrong in (file[: len(file) // 2], file[:20], b"", b"no image at all"):
    with pytest.raises(transforms.CorruptImage):
      transforms.decode_crop(wrong, crop, (8, 8), 3, "fast")


def test_rotations_in_exif_are_ignored_by_both_decoders():
  exif = Image.Exif()
  exif[274] = 6  # on its side
  for options in ({}, dict(progressive=True)):
    file = encoded(sample_image(30, 50), "JPEG", exif=exif, **options)
    assert transforms.decode(file, 3).shape == (30, 50, 3)
    assert np.abs(transforms.decode(file, 3).astype(int) - transforms.decode_jpeg(file, "RGB")).max() <= 2


@pytest.mark.parametrize("where", ["header", "scans"])
def test_extraneous_bytes_are_ignored(where):
  file = encoded(sample_image(64, 64), "JPEG", progressive=True)
  position = 20 if where == "header" else file.rindex(b"\xff\xda")  # before the last scan
  crop = functools.partial(transforms.whole, rng=None, size=(64, 64))
  expected, got = (
    transforms.decode_crop(f, crop, (64, 64), 3, "bicubic")
    for f in (file, file[:position] + b"\x12\x34" + file[position:])
  )
  np.testing.assert_array_equal(got, expected)


SPECS = [
  dict(name="flip"),
  dict(name="color_jitter", brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
  dict(name="rand_augment"),
  dict(name="rand_augment", layers=5, magnitude=10, deviation=3.0, probability=1.0),
  dict(name="random_erasing", probability=1.0),
  dict(name="random_erasing", probability=1.0, mode="const", mean=(0.2,), std=0.1),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_operations_are_functions_of_the_image_and_the_key(spec, channels):
  op, image = transforms.bind_op(spec, what="test"), sample_image(40, 56, channels)
  before = image.copy()
  results = [op(image, rng(seed)) for seed in range(20)]
  for seed, result in enumerate(results):
    assert result.shape == image.shape and result.dtype == np.uint8
    np.testing.assert_array_equal(result, op(image, rng(seed)))
  np.testing.assert_array_equal(image, before)  # images are shared with the cache
  assert len({r.tobytes() for r in results}) > 1


def test_flip_has_its_probability():
  image = sample_image(4, 6)
  flipped = [np.array_equal(transforms.flip(image, rng(i), probability=0.3), image[:, ::-1]) for i in range(2000)]
  assert abs(np.mean(flipped) - 0.3) < 0.03
  np.testing.assert_array_equal(transforms.flip(image, rng(), probability=1.0), image[:, ::-1])


def test_random_erasing_erases_the_given_areas():
  image = np.full((100, 120, 3), 255, np.uint8)
  areas, shapes, touched = [], [], 0
  for i in range(1000):
    erased = (transforms.random_erasing(image, rng(i), mode="const", mean=0.0, area=(0.1, 0.2)) == 0).all(-1)
    touched += erased.any()
    if erased.any():
      y, x = np.flatnonzero(erased.any(1)), np.flatnonzero(erased.any(0))
      assert erased[y[0] : y[-1] + 1, x[0] : x[-1] + 1].all()  # one rectangle
      areas.append(erased.mean())
      shapes.append(len(y) / len(x))
  assert abs(touched / 1000 - 0.25) < 0.05
  assert min(areas) > 0.09 and max(areas) < 0.21 and abs(np.mean(areas) - 0.15) < 0.01
  assert 0.25 < min(shapes) < 0.5 and 2 < max(shapes) < 3.6


def test_random_erasing_by_pixel_has_the_given_mean_and_deviation():
  image = np.zeros((200, 200, 3), np.uint8)
  noise = transforms.random_erasing(image, rng(1), probability=1.0, area=(0.5, 0.5), mean=(0.3, 0.5, 0.6), std=0.1)
  noise = noise[(noise != 0).any(-1)] / 255
  np.testing.assert_allclose(noise.mean(0), [0.3, 0.5, 0.6], atol=0.01)
  np.testing.assert_allclose(noise.std(0), 0.1, atol=0.01)


def test_random_erasing_by_pixel_saturates_at_white():
  image = np.zeros((200, 200, 1), np.uint8)
  noise = transforms.random_erasing(image, rng(1), probability=1.0, area=(0.5, 0.5), mean=1.0, std=0.1)
  assert 0.45 < (noise[noise > 0] == 255).mean() < 0.55 and noise[noise > 0].min() > 100


IDENTITIES = ["solarize", "solarize_add", "brightness", "contrast", "color", "sharpness"]
GEOMETRIC = ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"]


@pytest.mark.parametrize("name", IDENTITIES + GEOMETRIC)
@pytest.mark.parametrize("channels", [1, 3])
def test_rand_augment_operations_are_the_identity_at_level_zero(name, channels):
  image, op = sample_image(33, 47, channels), transforms.RAND_AUGMENT[name]
  np.testing.assert_array_equal(op(image, 0.0, 1, 128), image)
  if channels == 3 or name != "color":
    assert not np.array_equal(op(image, 1.0, -1, 128), image)


def test_rand_augment_operations_against_pillow():
  image = sample_image(60, 80)
  image[:20] //= 2
  pil = Image.fromarray(image)
  enhance = lambda kind, factor: getattr(ImageEnhance, kind)(pil).enhance(factor)  # noqa: E731
  expected = {
    "auto_contrast": ImageOps.autocontrast(pil),
    "equalize": ImageOps.equalize(pil),
    "invert": ImageOps.invert(pil),
    "posterize": ImageOps.posterize(pil, 2),
    "solarize": ImageOps.solarize(pil, 128),
    "solarize_add": pil.point(lambda value: value + 55 if value < 128 else value),
    "brightness": enhance("Brightness", 1.45),
    "contrast": enhance("Contrast", 1.45),
    "color": enhance("Color", 1.45),
    "sharpness": enhance("Sharpness", 1.45),
  }
  for name, theirs in expected.items():
    ours = transforms.RAND_AUGMENT[name](image, 0.5, 1, 128).astype(int)
    assert np.abs(ours - np.asarray(theirs)).max() <= 2, name
  for level, bits in {0.0: 4, 0.25: 3, 0.75: 1}.items():
    ours = transforms.RAND_AUGMENT["posterize"](image, level, 1, 128)
    np.testing.assert_array_equal(ours, ImageOps.posterize(pil, bits))
  geometric = {
    "rotate": pil.rotate(15, Image.Resampling.BILINEAR, fillcolor=(128,) * 3),
    "translate_x": pil.transform(
      pil.size, Image.Transform.AFFINE, (1, 0, 18, 0, 1, 0), Image.Resampling.BILINEAR, fillcolor=(128,) * 3
    ),
    "translate_y": pil.transform(
      pil.size, Image.Transform.AFFINE, (1, 0, 0, 0, 1, 13.5), Image.Resampling.BILINEAR, fillcolor=(128,) * 3
    ),
  }
  for name, theirs in geometric.items():
    ours = transforms.RAND_AUGMENT[name](image, 0.5, 1, 128).astype(int)
    # OpenCV interpolates in 32nds of a pixel, and blends with the fill at the border, which Pillow does not.
    difference = np.abs(ours - np.asarray(theirs))
    assert np.median(difference) <= 2 and np.quantile(difference, 0.95) <= 6, name


def test_rand_augment_draws_all_operations_equally_often():
  counts = dict.fromkeys(transforms.RAND_AUGMENT, 0)

  def counting(name):
    return lambda image, level, sign, fill: (counts.__setitem__(name, counts[name] + 1), image)[1]

  real = transforms.RAND_AUGMENT.copy()
  try:
    transforms.RAND_AUGMENT.update({name: counting(name) for name in real})
    for i in range(1500):
      transforms.rand_augment(np.zeros((4, 4, 3), np.uint8), rng(i))
  finally:
    transforms.RAND_AUGMENT.update(real)
  assert abs(sum(counts.values()) / 1500 - 1) < 0.06  # two layers, half of the time
  assert min(counts.values()) > 60 and max(counts.values()) < 140


def test_color_jitter_stays_in_its_range():
  grey = np.full((8, 8, 3), 100, np.uint8)
  levels = [transforms.color_jitter(grey, rng(i), brightness=0.4)[0, 0, 0] for i in range(500)]
  assert 59 <= min(levels) < 65 and 135 < max(levels) <= 140
  red = np.zeros((8, 8, 3), np.uint8) + np.array([200, 0, 0], np.uint8)
  np.testing.assert_allclose(filters.hue(red, 1 / 3)[0, 0], [0, 200, 0], atol=6)
  np.testing.assert_array_equal(transforms.color_jitter(red, rng()), red)  # no argument, no change
  np.testing.assert_array_equal(transforms.color_jitter(red, rng(), brightness=0.9, probability=0.0), red)


@pytest.mark.parametrize(
  ("spec", "named"),
  [
    (dict(name="flp"), ["'flp'", "'flip'"]),
    (dict(probability=1.0), ["name", None]),
    ("flip", ["'flip'", "dict(name=...", "rand_augment"]),
    (dict(name="flip", probabilty=1.0), ["probabilty", "probability"]),
    (dict(name="flip", rng=0), ["rng"]),
    (dict(name="random_erasing", area=(0.3, 0.1)), ["area", "(0.3, 0.1)"]),
  ],
)
def test_an_invalid_operation_is_an_error_that_names_the_fault(spec, named):
  with raises(ValueError, "data.augment[0]", *named):
    transforms.bind_op(spec, what="data.augment[0]")
