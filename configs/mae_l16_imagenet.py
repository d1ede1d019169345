"""MAE ViT-L/16 pretrained on ImageNet-1k for 1600 epochs. Recipe, not run by us.

Published: 85.9 % top-1 after fine-tuning and 75.8 % by linear probing (He et al. 2022, table 3 and section 4).

    zoo train mae_l16_imagenet --workdir runs/mae_l16

The compiler's prediction for 32 chips (`zoo plan mae_l16_imagenet grad_accum_steps=4 --tpu v5e:4x8`): 329,239,296
parameters, 11.11 of each chip's 15.75 GiB, which fits; 80.41 ms a step at the chips' peak. With grad_accum_steps=2 it
needs 15.90 GiB, 0.15 too much, and without 22.52. Not measured: we have no TPU.
"""

from configs import mae_b16_imagenet


def get_config():
  config = mae_b16_imagenet.get_config()
  config.model.name = "mae/l16"
  return config
