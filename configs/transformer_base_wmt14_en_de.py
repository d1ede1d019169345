"""Transformer base on WMT 2014 English-German, 100,000 steps. Recipe, not run by us.

Published: 27.3 BLEU on newstest2014, of the mean of the last 5 checkpoints (Vaswani et al. 2017, table 2 and 6.1).
That is of tokenised text with hyphenated words split, and of a byte-pair vocabulary of characters; ours is of bytes,
and `zoo eval` tells sacrebleu's BLEU of the text as it is. For another model the authors of fairseq tell 29.3 with
words split and 28.6 of sacrebleu (https://github.com/facebookresearch/fairseq/issues/435).

The compiler's prediction for 8 chips (`zoo plan transformer_base_wmt14_en_de --tpu v5e:2x4`): 2.96 GiB of each chip's
15.75 GiB. Not measured: we have no TPU.

The data is 4.5 million pairs, which TFDS downloads from statmt.org. It wants the folder for files that only a person
may download, though for this pair of languages it stays empty.

    mkdir -p data/downloads/manual
    zoo prepare wmt14_translate/de-en --data-dir data --vocab-size 37000
    zoo train transformer_base_wmt14_en_de --workdir runs/base
    zoo average runs/base --last 5 --out base.safetensors
    zoo eval runs/base test init.path=base.safetensors
"""

from configs._wmt14 import wmt14_en_de


def get_config():
  config = wmt14_en_de(width=512, steps=100_000)
  config.model = dict(name="transformer/base", max_length=256, scan=True, dtype="bfloat16")
  config.checkpoint.every_steps = 1500
  config.checkpoint.max_to_keep = 5
  return config
