r"""Translates English to Spanish, all tokens at once, learned from the 31,000 bundled verses.

    zoo train nat_en_es

A classifier tells the length. Without one, of 96 places each says its token or that the sentence has ended:

    zoo train nat_en_es model.length=cut model.max_length=96 steps=2800 optimizer.learning_rate=1e-3 \
      optimizer.grad_clip_norm=1.0 --workdir runs/nat_cut

(at the classifier's learning rate it diverges).

Tokens that do not know of each other mix several translations; a teacher's translations have less to mix (Kim & Rush
2016, 3.2; Gu et al. 2018, 4). The teacher is a run that translates token by token, and its encoder is where to start:

    zoo train translate_en_es
    zoo translate runs/translate_en_es --split train --beam-size 1 --out distilled.es
    zoo train nat_en_es data.train_targets=distilled.es init.path=runs/translate_en_es \
      "init.ignore=params/decoder/.*" "init.reinit=('decoder/.*', 'length/.*')" --workdir runs/nat_distilled
"""

from configs import translate_en_es


def get_config():
  config = translate_en_es.get_config()
  config.model.name = "nat/nano"
  config.objective.name = "nat"
  config.data.batching = "bucket"  # one pair a row: its length is the row's
  config.batch_size = 24
  config.steps = 5000  # as many as take the time of the Transformer's
  return config
