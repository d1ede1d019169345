r"""BERT-base fine-tuned on GLUE's MRPC, whether two sentences say the same. Recipe, not run by us.

Published: 88.9 F1 on the test set, 86.7 % right on the development set (Devlin et al. 2019, tables 1 and 5); 89.0 F1
and 84.4 % on the latter by Flax code of Hugging Face.

`bert-base-uncased` is a folder with published weights, their `config.json` and `vocab.txt`; in its place the work
directory of a pretraining run may stand, twice.

    zoo prepare glue/mrpc --data-dir data
    zoo train bert_glue_mrpc init.path=bert-base-uncased data.vocabulary=bert-base-uncased data.data_dir=data
"""

from configs._glue import glue


def get_config():
  return glue("mrpc", num_classes=2)
