r"""BERT-base pretrained as RoBERTa: full sentences, 512 tokens, no next-sentence prediction. Recipe, not run by us.

Published, on Wikipedia and books: perplexity 3.77 on held-out text, 84.6 % on MNLI and 92.8 % on SST-2 (Liu et al.
2019, table 3: 31,000 steps of 8,192 rows at a rate of 1e-3; its warmup is not reported, ours is the fraction in
table 9). With 160 GB of text the paper trains for 500,000 steps (table 9): steps=500_000 optimizer.learning_rate=6e-4.

The vocabulary, byte-level BPE as there, is learned from the text. Unlike in RoBERTa, rows begin with BERT's special
tokens, and there is an embedding table of two token types of which one is used.

    zoo prepare wikipedia/20230601.en --data-dir data
    zoo prepare corpus/wiki_sentences512 --source wikipedia/20230601.en --data-dir data --length 512 --no-pairs \
      --tokenizer bpe --vocab-size 50265 --no-lowercase
    zoo train bert_base_roberta

The pooler is not pretrained. To fine-tune:

    zoo train glue:mnli init.path=runs/bert_base_roberta data.vocab_file=data/corpus/wiki_sentences512/1.0.0 \
      model.vocab_size=50265 model.mask_token_id=4 "init.reinit=('head/.*', 'pooler/.*')"

What a step and the run take on TPUs, as the compiler predicts it: `docs/plan.md`.
"""

from configs._bert import pretraining


def get_config():
  config = pretraining(
    "bert/base",
    "corpus/wiki_sentences512",
    length=512,
    max_predictions=77,
    head="masked_lm",
    vocab_size=50_265,
    mask_token_id=4,
  )
  config.batch_size = 8192
  config.grad_accum_steps = 16
  config.steps = 31_000
  config.optimizer = dict(
    name="adamw", learning_rate=1e-3, schedule="linear", warmup=24 / 500, weight_decay=0.01, b2=0.98, eps=1e-6
  )
  config.checkpoint.every_steps = 1000
  return config
