"""BERT-large pretrained by LAMB, the last 1,563 steps: 32,768 rows of 512 tokens. Recipe, not run by us.

It goes on with the parameters of `bert_large_lamb_phase1`, which tells what is published, and warms up anew.

    zoo prepare corpus/wiki512 --source wikipedia/20230601.en --data-dir data --vocab bert-base-uncased --length 512
    zoo train bert_large_lamb_phase2 init.path=runs/bert_large_lamb_phase1

PLAN
"""

from configs._bert import lamb


def get_config():
  return lamb(2)
