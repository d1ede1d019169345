"""Linear probe of an MAE's ViT-B/16, ViT-L/16 or ViT-H/14 on ImageNet-1k, trained by LARS. Recipe, not run by us.

Published, top-1: 68.0 % for `b16`, after 90 epochs, 75.8 % for `l16` and 76.6 % for `h14`, for which 50 epochs are
enough by the notes of the released code (He et al. 2022; settings of table 10): the class token, batch normalisation
without scale and bias, one linear layer; nothing else is trained. The learning rate is 0.1 x batch / 256.

    zoo train mae_linear_imagenet:b16 init.path=runs/mae_b16 --workdir runs/mae_b16_linear

What a step and the run take on TPUs, as the compiler predicts it: `docs/plan.md`.
"""

from configs._imagenet import PIXELS, imagenet, steps

# Size -> epochs.
VARIANTS = dict(b16=90.0, l16=50.0, h14=50.0)


def get_config(size):
  config = imagenet(interpolation="bicubic")
  config.model = dict(
    name=f"vit/{size}", pool="cls", position_embedding="sincos_2d", head_norm="batch", scan=True, dtype="bfloat16"
  )
  config.init = dict(path=f"runs/mae_{size}", ignore=(r"params/decoder/.*",), reinit=(r"head_norm/.*", r"head/.*"))
  config.objective = dict(name="image_classification", **PIXELS)
  config.batch_size = 16384
  config.epochs = VARIANTS[size]
  config.optimizer = dict(
    name="lars",
    learning_rate=0.1 * config.batch_size / 256,
    warmup=steps(10, config.batch_size),
    momentum=0.9,
    freeze=(r"^encoder/",),
  )
  config.evals = dict(val=dict(name="loss", every_steps=500))
  config.checkpoint.best_metric = "val/accuracy"
  return config
