"""Linear probe of an MAE's ViT-H/14 on ImageNet-1k, 50 epochs of LARS. Recipe, not run by us.

Published: 76.6 % top-1 (He et al. 2022; 50 epochs are enough by the released code's notes).

    zoo train mae_h14_linear_imagenet init.path=runs/mae_h14 --workdir runs/mae_h14_linear
"""

from configs import mae_b16_linear_imagenet


def get_config():
  config = mae_b16_linear_imagenet.get_config()
  config.model.name = "vit/h14"
  config.init.path = "runs/mae_h14"
  config.epochs = 50.0
  return config
