"""Transformer big on WMT 2014 English-German, 300,000 steps. Recipe, not run by us.

Published: 28.4 BLEU on newstest2014, of the mean of the last 20 checkpoints (Vaswani et al. 2017, table 2 and 6.1).
`transformer_base_wmt14_en_de` tells how that differs from the BLEU of `zoo eval`. Those 20 take 51 GB of disk.

The compiler's prediction for 8 chips (`zoo plan transformer_big_wmt14_en_de --tpu v5e:2x4`): 6.90 GiB of each chip's
15.75 GiB. Not measured: we have no TPU.

The data is 4.5 million pairs, which TFDS downloads from statmt.org. It wants the folder for files that only a person
may download, though for this pair of languages it stays empty.

    mkdir -p data/downloads/manual
    zoo prepare wmt14_translate/de-en --data-dir data --vocab-size 37000
    zoo train transformer_big_wmt14_en_de --workdir runs/big
    zoo average runs/big --last 20 --out big.safetensors
    zoo eval runs/big test init.path=big.safetensors
"""

from configs._wmt14 import wmt14_en_de


def get_config():
  config = wmt14_en_de(width=1024, steps=300_000)
  config.model = dict(name="transformer/big", max_length=256, scan=True, dtype="bfloat16")
  config.checkpoint.every_steps = 600
  config.checkpoint.max_to_keep = 20
  return config
