"""Plain ViT-S/16 baseline on ImageNet-1k, 90 epochs. Recipe, not run by us.

Published: 76.5 % top-1 in 90 epochs (Beyer et al. 2022, "Better plain ViT baselines for ImageNet-1k"), 6 to 7 hours
on a TPU v3-8. Their weight decay of 0.0001 is not multiplied by the learning rate; ours is, hence 0.1. Different
from the released code: the classifier has no hidden layer, and RandAugment's operations have the ranges of timm.

    zoo prepare imagenet2012 --data-dir data
    zoo train vit_s16_imagenet --workdir runs/vit_s16

What a step and the run take on TPUs, as the compiler predicts it: `docs/plan.md`.
"""

from configs._imagenet import imagenet


def get_config():
  augment = (dict(name="rand_augment", layers=2, magnitude=10, deviation=0.0, probability=1.0),)
  config = imagenet(area=(0.05, 1.0), augment=augment)
  config.model = dict(
    name="vit/s16",
    pool="gap",
    class_token=False,
    position_embedding="sincos_2d",
    scan=True,
    remat="dots_saveable",
    dtype="bfloat16",
  )
  config.objective = dict(name="image_classification", mixup=0.2, mean=(0.5,), std=(0.5,))
  config.batch_size = 1024
  config.epochs = 90.0
  config.optimizer = dict(
    name="adamw", learning_rate=1e-3, warmup=10_000, weight_decay=0.1, grad_clip_norm=1.0, mu_dtype="bfloat16"
  )
  config.evals = dict(val=dict(name="loss", every_steps=2500))
  config.checkpoint.best_metric = "val/accuracy"
  return config
