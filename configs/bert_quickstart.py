r"""Pretrains a small BERT on the English of the bundled verses, its vocabulary too.

    zoo train bert_quickstart
    zoo fill runs/bert_quickstart "In the beginning God created the [MASK]"

On a text of your own, a document behind each blank line and a sentence a line (or running text):

    zoo train bert_quickstart data.dataset=book.txt data.sentences=split --workdir runs/book
"""

from train.config import defaults


def get_config():
  config = defaults()
  config.model = dict(
    name="bert/nano",
    head="pretrain",
    dropout=0.0,
    attention_dropout=0.0,
    scan=True,
    remat="dots_saveable",
  )
  config.data = dict(name="text", dataset="verses_en_es", length=128, vocab_size=4000, copies=10)
  config.objective = dict(name="mlm_nsp", max_predictions=20, whole_words=True)
  config.batch_size = 32
  config.steps = 2000
  config.optimizer = dict(name="adamw", learning_rate=1e-3, schedule="cosine", warmup=0.1, b2=0.98, weight_decay=0.01)
  config.evals = dict(val=dict(name="loss", every=500))
  config.checkpoint.every = 500
  config.log_every = 50
  return config
