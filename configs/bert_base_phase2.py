"""BERT-base pretrained, the last 100,000 steps: rows of 512 tokens. Recipe, not run by us.

It goes on with the parameters of `bert_base_phase1`, which tells what is published.

    zoo prepare corpus/wiki512 --source wikipedia/20230601.en --data-dir data --vocab bert-base-uncased --length 512
    zoo train bert_base_phase2 init.path=runs/bert_base_phase1
    zoo train bert_glue_mnli init.path=runs/bert_base_phase2 data.vocabulary=data/corpus/wiki512/1.0.0

The compiler's prediction for 16 chips (`zoo plan bert_base_phase2 --tpu v5e:4x4`): 9.71 GiB of each chip's 15.75 GiB,
which fits; 24.45 ms a step at the chips' peak. At 40 % of that, which is a guess, 100,000 steps take 1.7 hours. Not
measured: we have no TPU.
"""

from configs._bert import published


def get_config():
  return published("bert/base", 2)
