"""MAE with ViT-B/16, ViT-L/16 or ViT-H/14 pretrained on ImageNet-1k for 1600 epochs. Recipe, not run by us.

Published, top-1 (He et al. 2022, table 3 and section 4; settings of table 8). The learning rate is 1.5e-4 x batch /
256.

| argument | after fine-tuning | linear probing |
|---|---|---|
| `b16` | 83.6 % | 68.0 % |
| `l16` | 85.9 % | 75.8 % |
| `h14` | 86.9 % | 76.6 % |

    zoo prepare imagenet2012 --data-dir data
    zoo train mae_imagenet:b16 --workdir runs/mae_b16

What a step and the run take on TPUs, as the compiler predicts it: `docs/plan.md`.
"""

from configs._imagenet import PIXELS, imagenet, steps

# Size -> remat policy; H/14 would not fit with the scores of its attention.
VARIANTS = dict(b16="dots_saveable", l16="dots_saveable", h14="dots_with_no_batch_dims_saveable")


def get_config(size):
  config = imagenet(area=(0.2, 1.0), interpolation="bicubic")
  config.model = dict(name=f"mae/{size}", scan=True, remat=VARIANTS[size], dtype="bfloat16")
  config.objective = dict(name="mae", mask_ratio=0.75, norm_pix_loss=True, **PIXELS)
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
