"""ConvNeXt-T, -S, -B or -L on ImageNet-1k, 300 epochs. Recipe, not run by us.

Published, top-1: 82.1 % for `t`, 83.1 % for `s`, 83.8 % for `b`, 84.3 % for `l` (Liu et al. 2022, table 1; settings of
table 5). The learning rate is 4e-3 for 4096 images. The evaluation is of the moving average, as there. The sizes differ
in stochastic depth.

    zoo prepare imagenet2012 --data-dir data
    zoo train convnext_imagenet:t --workdir runs/convnext_t

What a step and the run take on TPUs, as the compiler predicts it: `docs/plan.md`.
"""

from configs._imagenet import DEIT_AUGMENT, PIXELS, imagenet, steps

# Size -> stochastic depth rate of the last block.
VARIANTS = dict(t=0.1, s=0.4, b=0.5, l=0.5)


def get_config(size):
  config = imagenet(
    augment=DEIT_AUGMENT,
    interpolation="bicubic",
  )
  config.model = dict(
    name=f"convnext/{size}", drop_path_rate=VARIANTS[size], scan=True, remat="dots_saveable", dtype="bfloat16"
  )
  config.objective = dict(name="image_classification", label_smoothing=0.1, mixup=0.8, cutmix=1.0, **PIXELS)
  config.batch_size = 4096
  config.epochs = 300.0
  config.ema_decay = 0.9999
  config.optimizer = dict(
    name="adamw", learning_rate=4e-3, warmup=steps(20, config.batch_size), final_learning_rate=1e-6, weight_decay=0.05
  )
  config.evals = dict(val=dict(name="loss", every_steps=2500))
  config.checkpoint.best_metric = "val/accuracy"
  return config
