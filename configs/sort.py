"""Trains a small Transformer to sort letters, without an error; data.task=copy and data.task=reverse are other tasks.

After 1,000 steps, 2 minutes of CPU time, all 500 evaluation sequences, none of which is in the training set, are
predicted exactly ("exact" is 1), in each of the three tasks, with seeds 0 and 1.

    zoo train sort
    zoo train sort data.task=reverse --workdir runs/reverse
    zoo translate runs/sort "c a b"

With letters outside the vocabulary, which only a model with a copy mechanism can output (See et al. 2017, 2.2):

    zoo train sort data.task=copy data.unseen=6 data.copy_slots=10 model.head=copy model.copy_slots=10
"""

from train.config import defaults


def get_config():
  config = defaults()
  config.model = dict(
    name="transformer/nano",
    width=64,
    depth=2,
    decoder_depth=2,
    mlp_dim=256,
    vocab_size=24,
    max_length=11,
    dropout_rate=0.0,
    scan=True,
    remat="dots_saveable",
  )
  config.data = dict(name="algorithmic", task="sort", symbols=20, max_length=10)
  config.objective = dict(name="seq2seq")
  config.batch_size = 128
  config.steps = 1000
  config.optimizer = dict(name="adamw", learning_rate=2e-3, schedule="cosine", warmup=0.1, b2=0.98)
  config.evals = dict(eval=dict(name="translation", every_steps=250))
  config.checkpoint.every_steps = 1000
  config.log_every_steps = 50
  return config
