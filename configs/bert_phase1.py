"""BERT-base or -large pretrained, first phase: rows of 128 tokens. Recipe, not run by us.

`bert_phase2` continues with rows of 512 tokens. Published, after both phases:

- `base`, 900,000 steps of 256 rows: 79.6 on average over GLUE's test sets, and 88.5 F1 on the development set of SQuAD
  1.1 (Devlin et al. 2019, tables 1 and 2), on Wikipedia and books, in 4 days on 16 TPU chips (A.2).
- `large`, likewise: 82.1 on GLUE and 90.9 F1 on SQuAD 1.1, in 4 days on 64 TPU chips.
- `large_lamb`, 7,038 steps of 65,536 rows by LAMB: 90.58 F1 on SQuAD 1.1, after the 8,599 steps of both phases, in 76
  minutes on 1,024 TPU chips (You et al. 2020, table 1). Steps, rates and warmups are those of NVIDIA's
  DeepLearningExamples for these batches; the rate decays linearly, as in the paper.

`bert-base-uncased` is a folder with the published `vocab.txt`. TFDS builds its Wikipedia with Apache Beam, the extra
[beam]. `configs/_bert.py` explains how to add books, and how to learn a vocabulary.

    zoo prepare wikipedia/20230601.en --data-dir data
    zoo prepare corpus/wiki128 --source wikipedia/20230601.en --data-dir data --vocab bert-base-uncased
    zoo train bert_phase1:base
    zoo train bert_phase2:base

What a step and the run take on TPUs, as the compiler predicts it: `docs/plan.md`.
"""

from configs._bert import lamb, published

VARIANTS = ("base", "large", "large_lamb")


def get_config(variant):
  return lamb(1) if variant == "large_lamb" else published(variant, 1)
