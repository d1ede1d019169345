r"""BERT-base or -large pretrained, second phase: rows of 512 tokens. Recipe, not run by us.

It continues with the parameters of `bert_phase1`, which says what is published: the last 100,000 steps of `base` and
`large`, and the last 1,563 steps, of 32,768 rows, of `large_lamb`, which warms up again.

    zoo prepare corpus/wiki512 --source wikipedia/20230601.en --data-dir data --vocab bert-base-uncased --length 512
    zoo train bert_phase2:base init.path=runs/bert_phase1_base
    zoo train bert_phase2:large init.path=runs/bert_phase1_large
    zoo train bert_phase2:large_lamb init.path=runs/bert_phase1_large_lamb

To fine-tune:

    zoo train glue:mnli init.path=runs/bert_phase2_base data.vocab_file=data/corpus/wiki512/1.0.0
    zoo train glue:mnli model.name=bert/large init.path=runs/bert_phase2_large \
      data.vocab_file=data/corpus/wiki512/1.0.0

What a step and the run take on TPUs, as the compiler predicts it: `docs/plan.md`.
"""

from configs._bert import lamb, published

VARIANTS = ("base", "large", "large_lamb")


def get_config(variant):
  return lamb(2) if variant == "large_lamb" else published(variant, 2)
