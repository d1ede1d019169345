"""Swin-B pretrained by SimMIM on ImageNet-1k for 800 epochs at 192 px. Recipe, not run by us.

Published: 84.0 % top-1 after 100 epochs of fine-tuning at 224 px (Xie et al. 2022, and the released weights). Settings
are those of the released code: squares of 32 pixels, 60 % of them masked; the learning rate is 1e-4 x batch / 512, and
is divided by 10 at epoch 700.

    zoo prepare imagenet2012 --data-dir data
    zoo train simmim_b_imagenet --workdir runs/simmim_b
    zoo train simmim_b_finetune_imagenet init.path=runs/simmim_b --workdir runs/simmim_b_finetune

What a step and the run take on TPUs, as the compiler predicts it: `docs/plan.md`.
"""

from configs._imagenet import PIXELS, imagenet, steps


def get_config():
  config = imagenet(image_size=192, area=(0.67, 1.0))
  config.model = dict(name="simmim/b", scan=True, remat="dots_saveable", dtype="bfloat16")
  config.objective = dict(name="simmim", mask_patch_size=32, mask_ratio=0.6, **PIXELS)
  config.batch_size = 2048
  config.epochs = 800.0
  config.optimizer = dict(
    name="adamw",
    learning_rate=1e-4 * config.batch_size / 512,
    schedule="step",
    boundaries=(700 / 800,),
    warmup=steps(10, config.batch_size),
    weight_decay=0.05,
    grad_clip_norm=5.0,
  )
  config.evals = dict(val=dict(name="loss", every_steps=10_000))
  config.plots = ("loss_curve", "reconstructions")
  return config
