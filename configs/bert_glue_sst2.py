r"""BERT-base fine-tuned on GLUE's SST-2, the sentiment of sentences about films. Recipe, not run by us.

Published: 93.5 % on the test set, 92.7 % on the development set (Devlin et al. 2019, tables 1 and 5); 92.2 % on the
latter by Flax code of Hugging Face.

`bert-base-uncased` is a folder with published weights, their `config.json` and `vocab.txt`; in its place the work
directory of a pretraining run may stand, twice.

    zoo prepare glue/sst2 --data-dir data
    zoo train bert_glue_sst2 init.path=bert-base-uncased data.vocabulary=bert-base-uncased data.data_dir=data
"""

from configs._glue import glue


def get_config():
  return glue("sst2", num_classes=2)
