"""Translates English to Spanish, learned from the 31,000 bundled verses.

zoo train translate_en_es
"""

from train.config import defaults


def get_config():
  config = defaults()
  config.model = dict(name="transformer/nano", scan=True, remat="dots_saveable")
  config.data = dict(
    name="pairs", dataset="verses_en_es", source="en", target="es", source_length=96, target_length=96, eval_split="val"
  )
  config.objective = dict(name="translate", label_smoothing=0.1)
  config.batch_size = 64
  config.epochs = 10.0
  config.optimizer = dict(name="adamw", learning_rate=2e-3, schedule="cosine", warmup=0.1, b2=0.98, weight_decay=0.01)
  config.evals = dict(
    val=dict(name="loss", every=500),
    test=dict(name="translation", split="test", batch_size=64),
  )
  config.checkpoint.every = 1000
  config.log_every = 20
  return config
