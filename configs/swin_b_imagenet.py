"""Swin-B on ImageNet-1k, 300 epochs at 224 px. Recipe, not run by us.

Published: 83.5 % top-1 (Liu et al. 2021, table 1, and the released weights). As `swin_t_imagenet`, with more stochastic
depth.

    zoo prepare imagenet2012 --data-dir data
    zoo train swin_b_imagenet --workdir runs/swin_b

The compiler's prediction for 16 chips (`zoo plan swin_b_imagenet --tpu v5e:4x4`): 87,768,224 parameters, 14.40 of each
chip's 15.75 GiB, which fits; 30.07 ms a step at the chips' peak. On 32 chips it needs 7.84 GiB. Not measured: we have
no TPU.
"""

from configs._swin import swin


def get_config():
  return swin("swin/b", drop_path_rate=0.5)
