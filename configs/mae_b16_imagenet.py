"""MAE ViT-B/16 pretrained on ImageNet-1k for 1600 epochs. Recipe, not run by us.

Published: 83.6 % top-1 after fine-tuning (He et al. 2022, table 3; settings of
table 8) and 68.0 % by linear probing. The learning rate is 1.5e-4 x batch / 256.

    zoo prepare imagenet2012 --data-dir data
    zoo train mae_b16_imagenet --workdir runs/mae_b16

The compiler's prediction for 32 chips (`zoo plan mae_b16_imagenet --tpu v5e:4x8`): 111,655,680 parameters, 14.34 of
each chip's 15.75 GiB, which fits; 37.75 ms a step at the chips' peak. On 16 chips it needs 27.30 GiB. Not measured: we
have no TPU.
"""

from configs._imagenet import PIXELS, imagenet, steps


def get_config():
  config = imagenet(area=(0.2, 1.0), interpolation="bicubic")
  config.model = dict(name="mae/b16", scan=True, dtype="bfloat16")
  config.objective = dict(name="mae", mask_ratio=0.75, normalise_patches=True, **PIXELS)
  config.batch_size = 4096
  config.epochs = 1600.0
  config.optimizer = dict(
    name="adamw",
    learning_rate=1.5e-4 * config.batch_size / 256,
    warmup=steps(40, config.batch_size),
    weight_decay=0.05,
    b2=0.95,
  )
  config.evals = dict(val=dict(name="loss", every_steps=10_000))
  config.plots = ("loss_curve", "reconstructions")
  return config
