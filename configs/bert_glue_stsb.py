r"""BERT-base fine-tuned on GLUE's STS-B, how similar two sentences are, from 0 to 5. Recipe, not run by us.

Published: 85.8 of Spearman correlation on the test set (Devlin et al. 2019, table 1).

`bert-base-uncased` is a folder with published weights, their `config.json` and `vocab.txt`; in its place the work
directory of a pretraining run may stand, twice.

    zoo prepare glue/stsb --data-dir data
    zoo train bert_glue_stsb init.path=bert-base-uncased data.vocabulary=bert-base-uncased data.data_dir=data
"""

from configs._glue import glue


def get_config():
  return glue("stsb", num_classes=1)
