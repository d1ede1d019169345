"""Trains a small BERT to classify snippets of movie reviews as positive or negative, from scratch or pretrained.

The snippets may not be redistributed here: PyPI has them (`train/datasets/vader_movies.py`).

    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2 -d FOLDER
    zoo prepare vader_movies --source FOLDER --data-dir data
    zoo train bert_sentiment data.vocab_file=VOCABULARY model.vocab_size=SIZE

and from pretrained weights of any size, ours or published:

    zoo train bert_sentiment init.path=PRETRAINED data.vocab_file=PRETRAINED model.name=bert/minilm
"""

from train.config import defaults


def get_config():
  config = defaults()
  # Neither masked tokens nor sentence similarity, which MiniLM learned, train the output at the first token.
  config.model = dict(name="bert/tiny", head="sequence_classification", num_classes=2, pool="mean")
  # The pretraining heads of published files and of our own.
  config.init = dict(
    path="",
    ignore=(r"cls\..*", r"(bert\.)?pooler\..*", r"params/(masked_lm|next_sentence|pooler)/.*"),
    reinit=(r"head/.*",),
  )
  config.data = dict(
    name="sequence_classification",
    dataset="vader_movies",
    data_dir="data",
    vocab_file="",
    text="text",
    eval_split="val",
    length=64,
  )
  config.objective = dict(name="sequence_classification")
  config.batch_size = 32
  config.epochs = 3.0
  config.optimizer = dict(
    name="adamw", learning_rate=5e-4, schedule="linear", warmup=0.1, weight_decay=0.01, grad_clip_norm=1.0
  )
  config.evals = dict(
    val=dict(name="sequence_classification", every_steps=250), test=dict(name="sequence_classification", split="test")
  )
  config.log_every_steps = 50
  return config
