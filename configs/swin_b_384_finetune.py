"""Swin-B fine-tuned at 384 px with windows of 12, 30 epochs, from one trained at 224 px with windows of 7, on ImageNet.

Recipe, not run by us. Published: 84.5 % top-1 (Liu et al. 2021, table 1, and the released weights). Settings are those
of the released code: the learning rate is 2e-5 x batch / 512; the paper says constant 1e-5, and stochastic depth 0.1
(A2.1). Relative position bias tables are interpolated as there, by `init.resample`. Microsoft's .pth files are loaded
by init.layout=microsoft.

    zoo train swin_imagenet:b --workdir runs/swin_b
    zoo train swin_b_384_finetune --workdir runs/swin_b_384

What a step and the run take on TPUs, as the compiler predicts it: `docs/plan.md`.
"""

from configs._imagenet import steps
from configs._swin import swin


def get_config():
  config = swin("swin/b_w12_384", drop_path_rate=0.5, image_size=384)
  config.data.eval_crop = dict(name="whole")
  config.init = dict(path="runs/swin_b", resample=True)
  config.epochs = 30.0
  config.optimizer.update(
    learning_rate=2e-5 * config.batch_size / 512,
    warmup=steps(5, config.batch_size),
    final_learning_rate=2e-7 * config.batch_size / 512,
    weight_decay=1e-8,
  )
  return config
