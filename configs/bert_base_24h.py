r"""BERT-base pretrained on one chip in a day. Recipe, not run by us.

Published, for one GPU in a day: 78.6 on average over GLUE (Geiping & Goldstein 2023, as cited in later work); the
published BERT-base has 79.6 on the test sets. From that paper: no next-sentence prediction, no dropout, packed rows of
128 tokens, 4,096 in a batch, gradients clipped at norm 0.5. From Izsak et al. 2021: a peak learning rate of 1e-3,
reached after 6 % of the time and then decayed linearly to 0, and Adam's b2 and epsilon. From both: norms before the
sublayers (pre-norm), which makes that rate stable. Masked tokens are the only target.

    zoo prepare wikipedia/20230601.en --data-dir data
    zoo prepare corpus/wiki_packed128 --source wikipedia/20230601.en --data-dir data --no-pairs --pack
    zoo train bert_base_24h

The pooler is not pretrained. To fine-tune:

    zoo train glue:mnli init.path=runs/bert_base_24h data.vocab_file=data/corpus/wiki_packed128/1.0.0 \
      model.max_length=128 model.mask_token_id=4 model.norm_position=pre "init.reinit=('head/.*', 'pooler/.*')"

The compiler predicts a step on one chip (`docs/plan.md`); the log has its real speed after 20 steps. Set `steps` to
82,000 s divided by the time of a step, and start again.
"""

from configs._bert import pretraining


def get_config():
  config = pretraining(
    "bert/base",
    "corpus/wiki_packed128",
    length=128,
    max_predictions=20,
    head="masked_lm",
    max_length=128,
    mask_token_id=4,
    dropout_rate=0.0,
    attention_dropout_rate=0.0,
    norm_position="pre",
  )
  config.batch_size = 4096
  config.grad_accum_steps = 64
  config.steps = 23_000
  config.optimizer = dict(
    name="adamw",
    learning_rate=1e-3,
    schedule="linear",
    warmup=0.06,
    weight_decay=0.01,
    b2=0.98,
    eps=1e-6,
    grad_clip_norm=0.5,
  )
  config.evals.val.every_steps = 2000
  config.checkpoint.every_steps = 500
  config.log_every_steps = 20
  return config
