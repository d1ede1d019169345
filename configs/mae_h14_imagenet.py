"""MAE ViT-H/14 pretrained on ImageNet-1k for 1600 epochs. Recipe, not run by us.

Published: 86.9 % top-1 after fine-tuning and 76.6 % by linear probing (He et al. 2022, table 3 and section 4).

    zoo train mae_h14_imagenet --workdir runs/mae_h14

The compiler's prediction for 64 chips (`zoo plan mae_h14_imagenet --tpu v5e:8x8`): 656,613,964 parameters, 14.83 of
each chip's 15.75 GiB, which fits; 94.92 ms a step at the chips' peak. Not measured: we have no TPU.
"""

from configs import mae_b16_imagenet


def get_config():
  config = mae_b16_imagenet.get_config()
  config.model.name = "mae/h14"
  config.model.remat = "dots_with_no_batch_dims_saveable"
  return config
