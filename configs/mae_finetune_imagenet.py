"""ViT-B/16, ViT-L/16 or ViT-H/14 fine-tuned from an MAE on ImageNet-1k. Recipe, not run by us.

Published, top-1: 83.6 % for `b16`, after 100 epochs, 85.9 % for `l16` and 86.9 % for `h14`, after 50 (He et al. 2022,
table 3). Settings are those of table 9 and of the released code, which pools the patch tokens and normalises them after
pooling. The learning rate is 5e-4 x batch / 256 for `b16`, and 1e-3 x batch / 256 for `l16` and `h14`.

`init.path` is the work directory of the pretraining. Facebook's .pth files are loaded by init.layout=timm
init.ignore="norm\\..*".

    zoo train mae_finetune_imagenet:b16 init.path=runs/mae_b16 --workdir runs/mae_b16_finetune

What a step and the run take on TPUs, as the compiler predicts it: `docs/plan.md`.
"""

from configs._imagenet import DEIT_AUGMENT, PIXELS, imagenet, steps

VARIANTS = dict(
  b16=dict(epochs=100.0, base_rate=5e-4, layer_decay=0.65, drop_path_rate=0.1),
  l16=dict(epochs=50.0, base_rate=1e-3, layer_decay=0.75, drop_path_rate=0.2),
  h14=dict(epochs=50.0, base_rate=1e-3, layer_decay=0.75, drop_path_rate=0.3),
)


def get_config(size):
  variant = VARIANTS[size]
  config = imagenet(
    augment=DEIT_AUGMENT,
    interpolation="bicubic",
  )
  config.model = dict(
    name=f"vit/{size}",
    pool="gap",
    position_embedding="sincos_2d",
    final_norm=False,
    head_norm="layer",
    drop_path_rate=variant["drop_path_rate"],
    scan=True,
    remat="dots_saveable",
    dtype="bfloat16",
  )
  config.init = dict(
    path=f"runs/mae_{size}", ignore=(r"params/(decoder|encoder/norm)/.*",), reinit=(r"head_norm/.*", r"head/.*")
  )
  config.objective = dict(name="image_classification", label_smoothing=0.1, mixup=0.8, cutmix=1.0, **PIXELS)
  config.batch_size = 1024
  config.epochs = variant["epochs"]
  config.optimizer = dict(
    name="adamw",
    learning_rate=variant["base_rate"] * config.batch_size / 256,
    warmup=steps(5, config.batch_size),
    final_learning_rate=1e-6,
    weight_decay=0.05,
    layer_decay=variant["layer_decay"],
  )
  config.evals = dict(val=dict(name="loss", every_steps=2500))
  config.checkpoint.best_metric = "val/accuracy"
  return config
