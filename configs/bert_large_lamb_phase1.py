"""BERT-large pretrained by LAMB in 7,038 steps of 65,536 rows of 128 tokens. Recipe, not run by us.

Published, after both phases: 90.58 F1 on the development set of SQuAD 1.1, after 8,599 steps in 76 minutes on 1,024
chips of the time (You et al. 2020, table 1). Steps, rates and warmups are of NVIDIA's DeepLearningExamples for these
batches; the rate falls linearly, as in the paper.

The data is that of `bert_base_phase1`.

    zoo prepare wikipedia/20230601.en --data-dir data
    zoo prepare corpus/wiki128 --source wikipedia/20230601.en --data-dir data --vocab bert-base-uncased
    zoo train bert_large_lamb_phase1
    zoo train bert_large_lamb_phase2

The compiler's prediction for 256 chips (`zoo plan bert_large_lamb_phase1 --tpu v5e:16x16`): 336,226,108 parameters,
10.65 GiB of each chip's 15.75 GiB, which fits, with 16 rows at a time; 0.313 s a step at the chips' peak. At 40 % of
that, which is a guess, 7,038 steps take 1.5 hours; that leaves out 12,130 MiB of gradients to sum in each step, as all
16 parts of a batch do it. By grad_accum_steps=8 model.remat=dots_with_no_batch_dims_saveable these are half as many, in
12.74 GiB and with 0.7 % more to compute. Not measured: we have no TPU.
"""

from configs._bert import lamb


def get_config():
  return lamb(1)
