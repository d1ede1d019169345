"""What the ImageNet configs share."""

from ml_collections import ConfigDict

from train.config import defaults
from train.images import IMAGENET_MEAN, IMAGENET_STD

TRAIN_IMAGES = 1_281_167
PIXELS = dict(mean=IMAGENET_MEAN, std=IMAGENET_STD)
# DeiT's, which Swin, ConvNeXt and MAE's fine-tuning adopted (Touvron et al. 2021, table 9).
DEIT_AUGMENT = (
  dict(name="rand_augment", layers=2, magnitude=9, deviation=0.5),
  dict(name="random_erasing", probability=0.25, **PIXELS),
)


def imagenet(
  *,
  image_size: int = 224,
  area: tuple[float, float] = (0.08, 1.0),
  augment: tuple = (),
  interpolation: str = "fast",
) -> ConfigDict:
  """A config with ImageNet-1k as its data (`zoo prepare imagenet2012`), for a TPU host.

  Args:
    image_size: pixels of a side.
    area: least and largest share of the image in a random crop.
    augment: operations after crop and flip.
    interpolation: in training: "fast" is bilinear, on JPEGs decoded at a reduced size where possible; "bicubic", as in
      MAE's released code, decodes less than half as many images a second.
  """
  config = defaults()
  config.data = dict(
    name="image_classification",
    dataset="imagenet2012",
    data_dir="data",
    eval_split="validation",
    image_size=image_size,
    channels=3,
    crop=dict(name="random_resized_crop", area=area),
    augment=(dict(name="flip"), *augment),
    interpolation=interpolation,
    eval_crop=dict(name="center_crop", fraction=0.875),
    workers=16,
  )
  config.checkpoint = dict(every_steps=2500, max_to_keep=2, best_metric="", best_mode="max")
  config.log_every_steps = 50
  # On a TPU "rbg" bits come from the hardware.
  config.prng_impl = "rbg"
  return config


def steps(epochs: float, batch_size: int) -> int:
  """Number of steps in a number of epochs of ImageNet."""
  return round(epochs * TRAIN_IMAGES / batch_size)
