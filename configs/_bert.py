"""What the configs that pretrain BERT share: Devlin et al. 2019, 3.1 and A.2.

The paper pretrains on English Wikipedia (2,500 million words) and BooksCorpus (800 million), which is no longer
distributed. The recipes use Wikipedia alone, as TFDS has it. For books of your own, or both, give a folder of text
files: `--source FOLDER --documents file --sentences split`.

The vocabulary is the published one, in a folder `bert-base-uncased`. Without `--vocab` a vocabulary of the same size is
learned, in which [MASK] is another token: model.mask_token_id=4. The rows of 512 tokens need the vocabulary of the rows
of 128: `--vocab data/corpus/wiki128/1.0.0`.
"""

from ml_collections import ConfigDict

from train.config import defaults

STEPS = 1_000_000
WARMUP = 10_000
RATE = 1e-4


def pretraining(
  model: str,
  corpus: str,
  *,
  length: int,
  max_predictions: int,
  head: str = "pretraining",
  whole_words: bool = False,
  **fields,
) -> ConfigDict:
  """A config that pretrains a BERT, for TPUs.

  Args:
    model: such as "bert/base".
    corpus: "corpus/NAME", which the config's command prepares.
    length: tokens in a row.
    max_predictions: masked tokens of a row at most, which is 15 % of its tokens.
    head: "pretraining" with next-sentence prediction, for rows of pairs; "masked_lm" without, for others.
    whole_words: mask whole words, with all their pieces.
    **fields: more fields of the model. By default its special tokens are those of the published vocabulary.
  """
  config = defaults()
  config.model = dict(name=model, head=head, scan=True, remat="dots_saveable", dtype="bfloat16", **fields)
  config.data = dict(
    name="masked_lm_corpus", dataset=corpus, data_dir="data", length=length, pairs=head == "pretraining"
  )
  config.objective = dict(name="mlm_nsp", max_predictions=max_predictions, whole_words=whole_words)
  config.evals = dict(val=dict(name="loss", every_steps=10_000))
  config.checkpoint = dict(every_steps=5000, max_to_keep=2, best_metric="", best_mode="max")
  config.log_every_steps = 100
  # On a TPU "rbg" bits come from the hardware.
  config.prng_impl = "rbg"
  return config


def published(size: str, phase: int) -> ConfigDict:
  """A phase of the published pretraining, of `STEPS` steps of 256 rows: 90 % of 128 tokens, the rest of 512.

  The rate rises for `WARMUP` steps and then decays linearly to 0 at the last one. The second phase continues where the
  first ended, except for a short warmup of its own, since Adam's averages are not passed on.

  Args:
    size: "base" or "large".
    phase: 1 or 2.
  """
  first = round(0.9 * STEPS)
  middle = RATE * (STEPS - first) / (STEPS - WARMUP)
  optimizer = dict(name="adamw", schedule="linear", weight_decay=0.01, eps=1e-6, grad_clip_norm=1.0)
  if phase == 1:
    config = pretraining(f"bert/{size}", "corpus/wiki128", length=128, max_predictions=20)
    config.steps = first
    config.optimizer = dict(learning_rate=RATE, warmup=WARMUP, final_learning_rate=middle, **optimizer)
  else:
    config = pretraining(f"bert/{size}", "corpus/wiki512", length=512, max_predictions=77)
    config.init = dict(path=f"runs/bert_phase1_{size}")
    config.steps = STEPS - first
    config.optimizer = dict(learning_rate=middle, warmup=1000, **optimizer)
  config.batch_size = 256
  return config


def lamb(phase: int) -> ConfigDict:
  """A phase of BERT-large's pretraining in large batches (You et al. 2020, 4.1): 65,536 rows, then 32,768.

  Steps, rates and warmups of each phase are those of NVIDIA's DeepLearningExamples for these batches.

  Args:
    phase: 1, of 128 tokens, or 2, of 512.
  """
  optimizer = dict(name="lamb", schedule="linear", weight_decay=0.01, grad_clip_norm=1.0)
  if phase == 1:
    config = pretraining("bert/large", "corpus/wiki128", length=128, max_predictions=20)
    config.batch_size = 65_536
    config.steps = 7038
    config.optimizer = dict(learning_rate=6e-3, warmup=2000, **optimizer)
  else:
    config = pretraining("bert/large", "corpus/wiki512", length=512, max_predictions=77)
    config.init = dict(path="runs/bert_phase1_large_lamb")
    config.batch_size = 32_768
    config.steps = 1563
    config.optimizer = dict(learning_rate=4e-3, warmup=200, **optimizer)
  config.grad_accum_steps = 16 if phase == 1 else 64
  config.evals.val.every_steps = 500
  config.checkpoint.every_steps = 200
  config.log_every_steps = 10
  return config
