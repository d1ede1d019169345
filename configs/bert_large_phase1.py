"""BERT-large pretrained, the first 900,000 steps: rows of 128 tokens. Recipe, not run by us.

Published, after both phases: 82.1 on average over GLUE's test sets, and 90.9 F1 on the development set of SQuAD 1.1
(Devlin et al. 2019, tables 1 and 2), on Wikipedia and books, in 4 days on 64 chips of the time (A.2).

The data is that of `bert_base_phase1`.

    zoo prepare wikipedia/20230601.en --data-dir data
    zoo prepare corpus/wiki128 --source wikipedia/20230601.en --data-dir data --vocab bert-base-uncased
    zoo train bert_large_phase1
    zoo train bert_large_phase2

The compiler's prediction for 64 chips (`zoo plan bert_large_phase1 --tpu v5e:8x8`): 336,226,108 parameters, 6.07 GiB of
each chip's 15.75 GiB, which fits; 4.89 ms a step at the chips' peak. At 40 % of that, which is a guess, and much for 4
rows a chip, 900,000 steps take 3.1 hours. Not measured: we have no TPU.
"""

from configs._bert import published


def get_config():
  return published("bert/large", 1)
