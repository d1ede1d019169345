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

The compiler's predictions, of each chip's 15.75 GiB, and the time of a step at the chips' peak; the hours of all steps
are at 40 % of the peak, which is a guess. Not measured: we have no TPU.

| `zoo plan` | chips | memory | step | all steps |
|---|---|---|---|---|
| `bert_phase2:base --tpu v5e:4x4` | 16 | 5.40 GiB | 24.45 ms | 1.7 h |
| `bert_phase2:large --tpu v5e:8x8` | 64 | 8.43 GiB | 20.71 ms | 1.4 h |
| `bert_phase2:large_lamb --tpu v5e:16x16` | 256 | 9.93 GiB | 0.663 s | 0.7 h |

`large_lamb` computes 2 rows a chip at a time. Its hours leave out the all-reduce of 48,497 MiB of gradients in each
step, once for each of the 64 micro-batches.
"""

from configs._bert import lamb, published

VARIANTS = ("base", "large", "large_lamb")


def get_config(variant):
  return lamb(2) if variant == "large_lamb" else published(variant, 2)
