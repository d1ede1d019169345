"""Swin-S on ImageNet-1k, 300 epochs at 224 px. Recipe, not run by us.

Published: 83.2 % top-1 by the released weights (83.0 % in Liu et al. 2021, table 1). As `swin_t_imagenet`, with more
stochastic depth.

    zoo prepare imagenet2012 --data-dir data
    zoo train swin_s_imagenet --workdir runs/swin_s

The compiler's prediction for 16 chips (`zoo plan swin_s_imagenet --tpu v5e:4x4`): 49,606,258 parameters, 10.74 of each
chip's 15.75 GiB, which fits; 17.03 ms a step at the chips' peak. Not measured: we have no TPU.
"""

from configs._swin import swin


def get_config():
  return swin("swin/s", drop_path_rate=0.3)
