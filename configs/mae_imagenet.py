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

The compiler's predictions, of each chip's 15.75 GiB; the time is that of a step at the chips' peak. Not measured: we
have no TPU.

| `zoo plan` | chips | parameters | memory | time |
|---|---|---|---|---|
| `mae_imagenet:b16 --tpu v5e:4x8` | 32 | 111,655,680 | 6.91 GiB | 37.75 ms |
| `mae_imagenet:b16 --tpu v5e:4x4` | 16 | 111,655,680 | 12.37 GiB | 75.51 ms |
| `mae_imagenet:l16 grad_accum_steps=4 --tpu v5e:4x8` | 32 | 329,239,296 | 8.00 GiB | 80.41 ms |
| `mae_imagenet:l16 grad_accum_steps=2 --tpu v5e:4x8` | 32 | 329,239,296 | 10.11 GiB | 80.41 ms |
| `mae_imagenet:l16 --tpu v5e:4x8` | 32 | 329,239,296 | 11.99 GiB | 80.41 ms |
| `mae_imagenet:h14 --tpu v5e:8x8` | 64 | 656,613,964 | 14.89 GiB | 94.92 ms |
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
