r"""BERT-base fine-tuned on GLUE's QNLI, whether a sentence answers a question. Recipe, not run by us.

Published: 90.5 % right on the test set, 88.4 % on the development set (Devlin et al. 2019, tables 1 and 5).

`bert-base-uncased` is a folder with published weights, their `config.json` and `vocab.txt`; in its place the work
directory of a pretraining run may stand, twice.

    zoo prepare glue/qnli --data-dir data
    zoo train bert_glue_qnli init.path=bert-base-uncased data.vocabulary=bert-base-uncased data.data_dir=data
"""

from configs._glue import glue


def get_config():
  return glue("qnli", num_classes=2)
