r"""Non-autoregressive translation of English to Spanish, trained on the 31,000 bundled verses.

    zoo train nat_en_es

A classifier predicts the length. Without it, each of 96 positions predicts its token or the end of the sentence:

    zoo train nat_en_es model.length_prediction=none model.max_length=96 steps=2800 optimizer.learning_rate=1e-3 \
      optimizer.grad_clip_norm=1.0 --workdir runs/nat_cut

(with the learning rate of the classifier it diverges).

Tokens predicted independently mix several translations; a teacher's translations are less diverse (Kim & Rush 2016,
3.2; Gu et al. 2018, 4). The teacher is a run of an autoregressive model, whose encoder is the initialisation:

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
