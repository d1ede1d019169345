r"""BERT-base fine-tuned on GLUE's QQP, whether two questions ask the same. Recipe, not run by us.

Published: 71.2 F1 on the test set (Devlin et al. 2019, table 1).

`bert-base-uncased` is a folder with published weights, their `config.json` and `vocab.txt`; in its place the work
directory of a pretraining run may stand, twice.

    zoo prepare glue/qqp --data-dir data
    zoo train bert_glue_qqp init.path=bert-base-uncased data.vocabulary=bert-base-uncased data.data_dir=data
"""

from configs._glue import glue


def get_config():
  return glue("qqp", num_classes=2)
