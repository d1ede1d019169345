"""Transformer base or big on WMT 2014 English-German. Recipe, not run by us.

Published, BLEU on newstest2014 (Vaswani et al. 2017, table 2 and 6.1; settings of sections 5 and 6.1):

- `base`: 27.3 after 100,000 steps, with the mean of the last 5 checkpoints.
- `big`: 28.4 after 300,000 steps, with the mean of the last 20 checkpoints, which take 51 GB of disk.

That is BLEU of tokenised text with compounds split at hyphens, and a byte-pair vocabulary of characters. Ours is of
bytes, and `zoo eval` reports sacrebleu's BLEU of detokenised text. For another model the authors of fairseq report 29.3
with compounds split and 28.6 of sacrebleu (https://github.com/facebookresearch/fairseq/issues/435).

What a step and the run take on TPUs, as the compiler predicts it: `docs/plan.md`.

The data is 4.5 million pairs, which TFDS downloads from statmt.org. TFDS requires the folder for manual downloads,
though it stays empty for this pair of languages.

    mkdir -p data/downloads/manual
    zoo prepare wmt14_translate/de-en --data-dir data --vocab-size 37000
    zoo train transformer_wmt14_en_de:base --workdir runs/base
    zoo average runs/base --last 5 --out base.safetensors
    zoo eval runs/base test init.path=base.safetensors

    zoo train transformer_wmt14_en_de:big --workdir runs/big
    zoo average runs/big --last 20 --out big.safetensors
    zoo eval runs/big test init.path=big.safetensors
"""

from train.config import defaults

VARIANTS = dict(
  base=dict(width=512, steps=100_000, checkpoint_every=1500, checkpoints=5),
  big=dict(width=1024, steps=300_000, checkpoint_every=600, checkpoints=20),
)


def get_config(size):
  variant = VARIANTS[size]
  config = defaults()
  config.model = dict(name=f"transformer/{size}", max_length=256, scan=True, remat="dots_saveable", dtype="bfloat16")
  config.data = dict(
    name="translation",
    dataset="wmt14_translate/de-en",
    data_dir="data",
    source="en",
    target="de",
    eval_split="validation",
    source_length=256,
    target_length=256,
    batching="pack",
  )
  config.objective = dict(name="seq2seq", label_smoothing=0.1)
  # 104 rows of 256 tokens, of which packing leaves a few per cent empty: about 25,000 tokens on each side.
  config.batch_size = 104
  config.steps = variant["steps"]
  # Eq. 3, width^-0.5 min(step^-0.5, step warmup^-1.5): after the warmup, peak / sqrt(step / warmup). Adam: no decay.
  warmup = 4000
  config.optimizer = dict(
    name="adamw",
    learning_rate=(variant["width"] * warmup) ** -0.5,
    schedule="rsqrt",
    warmup=warmup,
    timescale=warmup,
    b1=0.9,
    b2=0.98,
    eps=1e-9,
  )
  config.evals = dict(
    val=dict(name="loss", every_steps=5000),
    test=dict(name="translation", split="test", batch_size=64, beam_size=4, length_penalty=0.6),
  )
  config.checkpoint.every_steps = variant["checkpoint_every"]
  config.checkpoint.max_to_keep = variant["checkpoints"]
  config.log_every_steps = 100
  # On a TPU "rbg" bits come from the hardware.
  config.prng_impl = "rbg"
  return config
