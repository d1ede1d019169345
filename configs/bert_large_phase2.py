"""BERT-large pretrained, the last 100,000 steps: rows of 512 tokens. Recipe, not run by us.

It goes on with the parameters of `bert_large_phase1`, which tells what is published.

    zoo prepare corpus/wiki512 --source wikipedia/20230601.en --data-dir data --vocab bert-base-uncased --length 512
    zoo train bert_large_phase2 init.path=runs/bert_large_phase1

PLAN
"""

from configs._bert import published


def get_config():
  return published("bert/large", 2)
