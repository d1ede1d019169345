r"""BERT-base fine-tuned on GLUE's WNLI, whether a sentence with its pronoun replaced follows. Recipe, not run by us.

Published: nothing: its authors left it out, since its splits are made so that the most frequent class wins, with 65.1 %
(Devlin et al. 2019, 4.1).

`bert-base-uncased` is a folder with published weights, their `config.json` and `vocab.txt`; in its place the work
directory of a pretraining run may stand, twice.

    zoo prepare glue/wnli --data-dir data
    zoo train bert_glue_wnli init.path=bert-base-uncased data.vocabulary=bert-base-uncased data.data_dir=data
"""

from configs._glue import glue


def get_config():
  return glue("wnli", num_classes=2)
