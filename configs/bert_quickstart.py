r"""Pretrains a small BERT, and learns its vocabulary, on the English of the bundled verses.

    zoo train bert_quickstart
    zoo fill-mask runs/bert_quickstart "In the beginning God created the [MASK]"

On a text of your own, with a blank line between documents and one sentence a line (or running text):

    zoo train bert_quickstart data.dataset=book.txt data.sentences=split --workdir runs/book
"""

from train.config import defaults


def get_config():
  config = defaults()
  # Masked tokens alone: next-sentence prediction takes far longer to learn.
  config.model = dict(
    name="bert/nano",
    head="masked_lm",
    dropout_rate=0.0,
    attention_dropout_rate=0.0,
    scan=True,
    remat="dots_saveable",
  )
  config.data = dict(name="masked_lm", dataset="verses_en_es", length=128, pairs=False, pack=True, vocab_size=4000)
  config.objective = dict(name="mlm_nsp", max_predictions=20)
  config.batch_size = 16
  config.steps = 1800
  config.optimizer = dict(name="adamw", learning_rate=4e-3, schedule="cosine", warmup=0.1, b2=0.98, weight_decay=0.01)
  config.evals = dict(val=dict(name="loss", every_steps=600))
  config.checkpoint.every_steps = 600
  config.log_every_steps = 50
  return config
