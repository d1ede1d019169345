"""ViT-H/14 fine-tuned from an MAE on ImageNet-1k for 50 epochs. Recipe, not run by us.

Published: 86.9 % top-1 (He et al. 2022, table 3; settings of table 9 and of the released code). The learning rate is
1e-3 x batch / 256.

    zoo train mae_h14_finetune_imagenet init.path=runs/mae_h14 --workdir runs/mae_h14_finetune

The compiler's prediction for 64 chips (`zoo plan mae_h14_finetune_imagenet parallel.fsdp=8 --tpu v5e:8x8`): 631,716,840
parameters, 13.47 of each chip's 15.75 GiB, which fits; 81.49 ms a step at the chips' peak. Without parallel.fsdp=8 it
needs 22.57 GiB. Not measured: we have no TPU.
"""

from configs import mae_b16_finetune_imagenet


def get_config():
  config = mae_b16_finetune_imagenet.get_config()
  config.model.name = "vit/h14"
  config.model.drop_path_rate = 0.3
  config.init.path = "runs/mae_h14"
  config.epochs = 50.0
  config.optimizer.learning_rate = 1e-3 * config.batch_size / 256
  config.optimizer.layer_decay = 0.75
  return config
