"""MAE ViT-L/16 pretrained on ImageNet-1k for 1600 epochs. Recipe, not run by us.

Published: 85.9 % top-1 after fine-tuning and 75.8 % by linear probing (He et al. 2022, table 3 and section 4).

    zoo train mae_l16_imagenet --workdir runs/mae_l16

On 32 chips with 16 GB each it needs accumulate=4, as `zoo plan mae_l16_imagenet --tpu v5e:4x8 accumulate=4` tells.
"""

from configs import mae_b16_imagenet


def get_config():
  config = mae_b16_imagenet.get_config()
  config.model.name = "mae/l16"
  return config
