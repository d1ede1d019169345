"""UPerNet on ConvNeXt-T: pets, their outlines and what is behind them, in Oxford-IIIT Pet. Recipe, not run by us.

The head, the learning rate and the crops are those that Liu et al. 2022 (B.1) have for ADE20K, which TFDS has not got
with masks of classes; nothing is published for this set. `init.path` is a classifier's work directory.

    zoo prepare oxford_iiit_pet --data-dir data
    zoo train upernet_convnext_t_oxford_pet init.path=runs/convnext_t --workdir runs/upernet_convnext_t
"""

from train.config import defaults
from train.images import IMAGENET_MEAN, IMAGENET_STD


def get_config():
  config = defaults()
  config.model = dict(
    name="segmenter/upernet",
    backbone="convnext/t",
    options=dict(drop_path=0.4),
    num_classes=3,
    image_size=512,
    dropout=0.1,
    dtype="bfloat16",
  )
  config.init = dict(
    path="runs/convnext_t",
    ignore=(r"params/(norm|head)/.*",),
    keep=(r"(?!encoder/).*", r"encoder/stage_\d/feature_norm/.*"),
  )
  config.data = dict(
    name="masks",
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
  config.objective = dict(name="segment", mean=IMAGENET_MEAN, std=IMAGENET_STD)
  config.batch_size = 16
  config.epochs = 40.0
  config.optimizer = dict(name="adamw", learning_rate=1e-4, warmup=500, weight_decay=0.05)
  config.evals = dict(test=dict(name="segmentation", every=2000))
  config.checkpoint = dict(every=2000, keep=2, best="test/miou", mode="max")
  config.pictures = ("loss_curve", "segmentations")
  return config
