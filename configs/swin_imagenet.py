"""Swin-T, Swin-S or Swin-B on ImageNet-1k, 300 epochs at 224 px. Recipe, not run by us.

Published, top-1, by the released weights: 81.2 % for `t` (81.3 % in Liu et al. 2021, table 1), 83.2 % for `s` (83.0 %
in table 1), 83.5 % for `b` (table 1, too). Settings are those of the released code, which clips gradients at norm 5
where the paper says 1 (A2.1). The sizes differ in stochastic depth.

    zoo prepare imagenet2012 --data-dir data
    zoo train swin_imagenet:t --workdir runs/swin_t

What a step and the run take on TPUs, as the compiler predicts it: `docs/plan.md`.
"""

from configs._swin import swin

# Size -> stochastic depth rate of the last block.
VARIANTS = dict(t=0.2, s=0.3, b=0.5)


def get_config(size):
  return swin(f"swin/{size}", drop_path_rate=VARIANTS[size])
