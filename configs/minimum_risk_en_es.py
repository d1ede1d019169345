"""Fine-tunes a translator of the bundled verses for BLEU, by minimum-risk training.

    zoo train translate_en_es
    zoo train minimum_risk_en_es

The training metric "bleu" is the expected sentence BLEU of samples, from 0 to 1; the evaluation "test" reports corpus
BLEU of greedy translations.
"""

from configs import translate_en_es


def get_config():
  config = translate_en_es.get_config()
  config.init.path = "runs/translate_en_es"
  config.objective = dict(name="minimum_risk", num_samples=8, sharpness=0.05)
  config.data.batching = "bucket"  # one pair a row: its samples are translations of it
  config.batch_size = 16
  config.steps = 500
  config.optimizer.learning_rate = 1e-4
  config.evals.val.every_steps = 100
  config.checkpoint.every_steps = 100
  return config
