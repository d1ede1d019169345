"""Swin-B fine-tuned from a SimMIM on ImageNet-1k for 100 epochs. Recipe, not run by us.

Published: 84.0 % top-1 (Xie et al. 2022, and the released weights; settings of the released code). The learning rate is
1.25e-3 x batch / 512. Tables of offsets for windows of 6 are interpolated for those of 7, bicubically, where the
released code first takes offsets to be the farther apart the larger they are. Microsoft's .pth files are read by
`zoo.load(path, "simmim/b", layout="microsoft")`, and `zoo.save` writes what `init.path` takes.

    zoo train simmim_b_finetune_imagenet init.path=runs/simmim_b --workdir runs/simmim_b_finetune

What a step and the run take on TPUs, as the compiler predicts it: `docs/plan.md`.
"""

from configs._imagenet import steps
from configs._swin import swin


def get_config():
  config = swin("swin/b", drop_path_rate=0.1)
  config.init = dict(
    path="runs/simmim_b", ignore=(r"params/(encoder/stage_0/mask|pixels/.*)",), reinit=(r"head/.*",), resample=True
  )
  config.batch_size = 2048
  config.epochs = 100.0
  config.optimizer.update(
    learning_rate=1.25e-3 * config.batch_size / 512,
    warmup=steps(20, config.batch_size),
    final_learning_rate=2.5e-7 * config.batch_size / 512,
    layer_decay=0.8,
  )
  return config
