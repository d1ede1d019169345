"""Translates English to Spanish with a recurrent network and attention, trained on the 31,000 bundled verses.

zoo train seq2seq_en_es

The same without attention: the encoder passes the decoder one state:

zoo train seq2seq_en_es "model={'name': 'seq2seq/nano_distracted'}" --workdir runs/distracted
"""

from configs import translate_en_es


def get_config():
  config = translate_en_es.get_config()
  # Additive attention has attention_dim hidden units for each pair of tokens: the backward pass recomputes them.
  config.model = dict(name="seq2seq/nano_bahdanau", remat="nothing_saveable")
  config.steps = 4150  # the same time as the Transformer's
  config.optimizer.grad_clip_norm = 1.0  # gradients of long sequences explode occasionally (Pascanu et al. 2013)
  return config
