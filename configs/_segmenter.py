"""What the segmenters share: initialisation from a classifier, and of the UPerNets the head, the data and its crops."""

from ml_collections import ConfigDict

from train.config import defaults
from train.images import IMAGENET_MEAN, IMAGENET_STD


def from_classifier(path: str, ignore: str, norm: str) -> dict:
  """`config.init` of a segmenter whose backbone was trained as a classifier.

  Args:
    path: of the run; "" for none: it may be given on the command line.
    ignore: the classifier's parameters that the backbone does not have.
    norm: the norm of the backbone's feature maps, which the classifier does not have.
  """
  return dict(path=path, ignore=(f"params/{ignore}/.*",), reinit=(r"(?!encoder/).*", rf"encoder/stage_\d/{norm}/.*"))


def upernet(backbone: str, ignore: str, norm: str, **options) -> ConfigDict:
  """UPerNet on Oxford-IIIT Pet, from a classifier.

  Args:
    backbone: name of the image model, and of the classifier's run.
    ignore, norm: see `from_classifier`.
    **options: fields of the backbone.
  """
  config = defaults()
  config.model = dict(
    name="segmenter/upernet",
    backbone=backbone,
    backbone_kwargs=options,
    num_classes=3,
    image_size=512,
    dropout_rate=0.1,
    dtype="bfloat16",
  )
  config.init = from_classifier(f"runs/{backbone.replace('/', '_')}", ignore, norm)
  config.data = dict(
    name="semantic_segmentation",
    dataset="oxford_iiit_pet",
    data_dir="data",
    mask="segmentation_mask",
    offset=1,
    names=("pet", "background", "outline"),
    image_size=512,
    channels=3,
    crop=dict(name="random_scale_crop", scale=(0.5, 2.0)),
    augment=(dict(name="flip"), dict(name="color_jitter", brightness=0.125, contrast=0.5, saturation=0.5, hue=0.05)),
    workers=8,
  )
  config.objective = dict(name="semantic_segmentation", mean=IMAGENET_MEAN, std=IMAGENET_STD)
  config.batch_size = 16
  config.epochs = 40.0
  config.evals = dict(test=dict(name="semantic_segmentation", every_steps=2000))
  config.checkpoint = dict(every_steps=2000, max_to_keep=2, best_metric="test/miou", best_mode="max")
  config.plots = ("loss_curve", "segmentations")
  return config
