"""Swin-T on ImageNet-1k, 300 epochs at 224 px. Recipe, not run by us.

Published: 81.2 % top-1 by the released weights (81.3 % in Liu et al. 2021, table 1). Settings are those of the released
code, which clips gradients at norm 5 where the paper says 1 (A2.1).

    zoo prepare imagenet2012 --data-dir data
    zoo train swin_t_imagenet --workdir runs/swin_t

The compiler's prediction for 16 chips (`zoo plan swin_t_imagenet --tpu v5e:4x4`): 28,288,354 parameters, 6.27 of each
chip's 15.75 GiB, which fits; 8.74 ms a step at the chips' peak. Not measured: we have no TPU.
"""

from configs._swin import swin


def get_config():
  return swin("swin/t", drop_path_rate=0.2)
