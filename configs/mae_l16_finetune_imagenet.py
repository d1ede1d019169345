"""ViT-L/16 fine-tuned from an MAE on ImageNet-1k for 50 epochs. Recipe, not run by us.

Published: 85.9 % top-1 (He et al. 2022, table 3; settings of table 9 and of the released code). The learning rate is
1e-3 x batch / 256.

    zoo train mae_l16_finetune_imagenet init.path=runs/mae_l16 --workdir runs/mae_l16_finetune

The compiler's prediction for 32 chips (`zoo plan mae_l16_finetune_imagenet --tpu v5e:4x8`): 304,124,904 parameters,
14.88 of each chip's 15.75 GiB, which fits; 59.94 ms a step at the chips' peak. On 16 chips it needs 24.96 GiB. Not
measured: we have no TPU.
"""

from configs import mae_b16_finetune_imagenet


def get_config():
  config = mae_b16_finetune_imagenet.get_config()
  config.model.name = "vit/l16"
  config.model.drop_path_rate = 0.2
  config.init.path = "runs/mae_l16"
  config.epochs = 50.0
  config.optimizer.learning_rate = 1e-3 * config.batch_size / 256
  config.optimizer.layer_decay = 0.75
  return config
