"""BERT-base pretrained, the first 900,000 steps: rows of 128 tokens. Recipe, not run by us.

Published, after both phases: 79.6 on average over GLUE's test sets, and 88.5 F1 on the development set of SQuAD 1.1
(Devlin et al. 2019, tables 1 and 2), on Wikipedia and books, in 4 days on 16 chips of the time (A.2).

`bert-base-uncased` is a folder with the published `vocab.txt`. TFDS makes its Wikipedia with Apache Beam, the extra
[beam]. `configs/_bert.py` tells of books, and of a vocabulary of your own.

    zoo prepare wikipedia/20230601.en --data-dir data
    zoo prepare corpus/wiki128 --source wikipedia/20230601.en --data-dir data --vocab bert-base-uncased
    zoo train bert_base_phase1
    zoo train bert_base_phase2

The compiler's prediction for 16 chips (`zoo plan bert_base_phase1 --tpu v5e:4x4`): 110,106,428 parameters, 2.62 GiB of
each chip's 15.75 GiB, which fits; 5.68 ms a step at the chips' peak. At 40 % of that, which is a guess, 900,000 steps
take 3.6 hours. Not measured: we have no TPU.
"""

from configs._bert import published


def get_config():
  return published("bert/base", 1)
