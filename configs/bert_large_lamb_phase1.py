"""BERT-large pretrained by LAMB in 7,038 steps of 65,536 rows of 128 tokens. Recipe, not run by us.

Published, after both phases: 90.58 F1 on the development set of SQuAD 1.1, after 8,599 steps in 76 minutes on 1,024
chips of the time (You et al. 2020, table 1). Steps, rates and warmups are of NVIDIA's DeepLearningExamples for these
batches; the rate falls linearly, as in the paper.

The data is that of `bert_base_phase1`.

    zoo prepare wikipedia/20230601.en --data-dir data
    zoo prepare corpus/wiki128 --source wikipedia/20230601.en --data-dir data --vocab bert-base-uncased
    zoo train bert_large_lamb_phase1
    zoo train bert_large_lamb_phase2

PLAN
"""

from configs._bert import lamb


def get_config():
  return lamb(1)
