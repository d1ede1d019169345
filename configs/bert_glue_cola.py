r"""BERT-base fine-tuned on GLUE's CoLA, whether a sentence is grammatical. Recipe, not run by us.

Published: 52.1 of Matthews correlation on the test set (Devlin et al. 2019, table 1).

`bert-base-uncased` is a folder with published weights, their `config.json` and `vocab.txt`; in its place the work
directory of a pretraining run may stand, twice.

    zoo prepare glue/cola --data-dir data
    zoo train bert_glue_cola init.path=bert-base-uncased data.vocabulary=bert-base-uncased data.data_dir=data
"""

from configs._glue import glue


def get_config():
  return glue("cola", num_classes=2)
