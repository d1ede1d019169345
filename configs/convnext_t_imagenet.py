"""ConvNeXt-T on ImageNet-1k, 300 epochs. Recipe, not run by us.

Published: 82.1 % top-1 (Liu et al. 2022, table 1; settings of table 5). The learning rate is 4e-3 for 4096 images. The
evaluation is of the moving average, as there.

    zoo prepare imagenet2012 --data-dir data
    zoo train convnext_t_imagenet --workdir runs/convnext_t

The compiler's prediction for 16 chips (`zoo plan convnext_t_imagenet --tpu v5e:4x4`): 28,589,128 parameters, 14.20 of
each chip's 15.75 GiB, which fits; 34.70 ms a step at the chips' peak. On 32 chips it needs 7.33 GiB. Not measured: we
have no TPU.
"""

from configs._imagenet import DEIT_AUGMENT, PIXELS, imagenet, steps


def get_config():
  config = imagenet(
    augment=DEIT_AUGMENT,
    interpolation="bicubic",
  )
  config.model = dict(name="convnext/t", drop_path_rate=0.1, scan=True, dtype="bfloat16")
  config.objective = dict(name="classify", label_smoothing=0.1, mixup=0.8, cutmix=1.0, **PIXELS)
  config.batch_size = 4096
  config.epochs = 300.0
  config.ema_decay = 0.9999
  config.optimizer = dict(
    name="adamw", learning_rate=4e-3, warmup=steps(20, config.batch_size), final_learning_rate=1e-6, weight_decay=0.05
  )
  config.evals = dict(val=dict(name="loss", every_steps=2500))
  config.checkpoint.best_metric = "val/accuracy"
  return config
