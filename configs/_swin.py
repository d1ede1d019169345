"""What the Swin configs share: the settings of Liu et al. 2021, 4.1 and A2.1, where the released code has them."""

from ml_collections import ConfigDict

from configs._imagenet import DEIT_AUGMENT, PIXELS, imagenet, steps


def swin(name: str, drop_path_rate: float, *, image_size: int = 224) -> ConfigDict:
  """Training on ImageNet-1k for 300 epochs, from random weights.

  Args:
    name: of the model. drop_path_rate: stochastic depth rate of the last block.
    image_size: pixels of a side.
  """
  config = imagenet(image_size=image_size, augment=DEIT_AUGMENT, interpolation="bicubic")
  config.model = dict(name=name, drop_path_rate=drop_path_rate, scan=True, remat="dots_saveable", dtype="bfloat16")
  config.objective = dict(name="image_classification", label_smoothing=0.1, mixup=0.8, cutmix=1.0, **PIXELS)
  config.batch_size = 1024
  config.epochs = 300.0
  config.optimizer = dict(
    name="adamw",
    learning_rate=1e-3,
    warmup=steps(20, config.batch_size),
    final_learning_rate=1e-5,
    weight_decay=0.05,
    grad_clip_norm=5.0,
  )
  config.evals = dict(val=dict(name="loss", every_steps=2500))
  config.checkpoint.best_metric = "val/accuracy"
  return config
