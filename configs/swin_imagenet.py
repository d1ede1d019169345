"""Swin-T, Swin-S or Swin-B on ImageNet-1k, 300 epochs at 224 px. Recipe, not run by us.

Published, top-1, by the released weights: 81.2 % for `t` (81.3 % in Liu et al. 2021, table 1), 83.2 % for `s` (83.0 %
in table 1), 83.5 % for `b` (table 1, too). Settings are those of the released code, which clips gradients at norm 5
where the paper says 1 (A2.1). The sizes differ in stochastic depth.

    zoo prepare imagenet2012 --data-dir data
    zoo train swin_imagenet:t --workdir runs/swin_t

The compiler's predictions, of each chip's 15.75 GiB; the time is that of a step at the chips' peak. Not measured: we
have no TPU.

| `zoo plan` | chips | parameters | memory | time |
|---|---|---|---|---|
| `swin_imagenet:t --tpu v5e:4x4` | 16 | 28,288,354 | 4.35 GiB | 8.74 ms |
| `swin_imagenet:s --tpu v5e:4x4` | 16 | 49,606,258 | 6.29 GiB | 17.03 ms |
| `swin_imagenet:b --tpu v5e:4x4` | 16 | 87,768,224 | 8.98 GiB | 30.07 ms |
| `swin_imagenet:b --tpu v5e:4x8` | 32 | 87,768,224 | 5.10 GiB | 15.03 ms |
"""

from configs._swin import swin

# Size -> stochastic depth rate of the last block.
VARIANTS = dict(t=0.2, s=0.3, b=0.5)


def get_config(size):
  return swin(f"swin/{size}", drop_path_rate=VARIANTS[size])
