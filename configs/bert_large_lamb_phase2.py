"""BERT-large pretrained by LAMB, the last 1,563 steps: 32,768 rows of 512 tokens. Recipe, not run by us.

It goes on with the parameters of `bert_large_lamb_phase1`, which tells what is published, and warms up anew.

    zoo prepare corpus/wiki512 --source wikipedia/20230601.en --data-dir data --vocab bert-base-uncased --length 512
    zoo train bert_large_lamb_phase2 init.path=runs/bert_large_lamb_phase1

The compiler's prediction for 256 chips (`zoo plan bert_large_lamb_phase2 --tpu v5e:16x16`): 12.41 GiB of each chip's
15.75 GiB, which fits, with 2 rows at a time; 0.663 s a step at the chips' peak. At 40 % of that, which is a guess,
1,563 steps take 0.7 hours; that leaves out 48,497 MiB of gradients to sum in each step, as all 64 parts of a batch do
it. Not measured: we have no TPU.
"""

from configs._bert import lamb


def get_config():
  return lamb(2)
