"""ViT-B/16 fine-tuned from an MAE on ImageNet-1k for 100 epochs. Recipe, not run by us.

Published: 83.6 % top-1 (He et al. 2022, table 3; settings of table 9 and of the released code, which pools the patch
tokens and normalises them after pooling). The learning rate is 5e-4 x batch / 256. `init.path` is the pretraining's
work directory; Facebook's .pth files work too, with init.layout=timm init.ignore="norm\\..*".

    zoo train mae_b16_finetune_imagenet init.path=runs/mae_b16 --workdir runs/mae_b16_finetune

The compiler's prediction for 16 chips (`zoo plan mae_b16_finetune_imagenet --tpu v5e:4x4`): 86,416,360 parameters, 9.11
of each chip's 15.75 GiB, which fits; 34.16 ms a step at the chips' peak. Not measured: we have no TPU.
"""

from configs._imagenet import DEIT_AUGMENT, PIXELS, imagenet, steps


def get_config():
  config = imagenet(
    augment=DEIT_AUGMENT,
    interpolation="bicubic",
  )
  config.model = dict(
    name="vit/b16",
    pool="gap",
    position_embedding="sincos_2d",
    final_norm=False,
    head_norm="layer",
    drop_path_rate=0.1,
    scan=True,
    dtype="bfloat16",
  )
  config.init = dict(
    path="runs/mae_b16", ignore=(r"params/(decoder|encoder/norm)/.*",), reinit=(r"head_norm/.*", r"head/.*")
  )
  config.objective = dict(name="classify", label_smoothing=0.1, mixup=0.8, cutmix=1.0, **PIXELS)
  config.batch_size = 1024
  config.epochs = 100.0
  config.optimizer = dict(
    name="adamw",
    learning_rate=5e-4 * config.batch_size / 256,
    warmup=steps(5, config.batch_size),
    final_learning_rate=1e-6,
    weight_decay=0.05,
    layer_decay=0.65,
  )
  config.evals = dict(val=dict(name="loss", every_steps=2500))
  config.checkpoint.best_metric = "val/accuracy"
  return config
