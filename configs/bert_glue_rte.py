r"""BERT-base fine-tuned on GLUE's RTE, whether one sentence follows from another. Recipe, not run by us.

Published: 66.4 % right on the test set (Devlin et al. 2019, table 1).

`bert-base-uncased` is a folder with published weights, their `config.json` and `vocab.txt`; in its place the work
directory of a pretraining run may stand, twice.

    zoo prepare glue/rte --data-dir data
    zoo train bert_glue_rte init.path=bert-base-uncased data.vocabulary=bert-base-uncased data.data_dir=data
"""

from configs._glue import glue


def get_config():
  return glue("rte", num_classes=2)
