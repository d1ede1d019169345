"""Swin-S on ImageNet-1k, 300 epochs at 224 px. Recipe, not run by us.

Published: 83.2 % top-1 by the released weights (83.0 % in Liu et al. 2021, table 1). As `swin_t_imagenet`, with more
stochastic depth.

    zoo prepare imagenet2012 --data-dir data
    zoo train swin_s_imagenet --workdir runs/swin_s
"""

from configs._swin import swin


def get_config():
  return swin("swin/s", drop_path=0.3)
