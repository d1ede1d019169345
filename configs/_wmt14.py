"""What the WMT 2014 English-German configs share: Vaswani et al. 2017, sections 5 and 6.1."""

from ml_collections import ConfigDict

from train.config import defaults


def wmt14_en_de(*, width: int, steps: int) -> ConfigDict:
  """A config with WMT 2014 English-German as its data, for a TPU slice.

  Args:
    width: D, which the learning rate depends on.
    steps: of training.
  """
  config = defaults()
  config.data = dict(
    name="pairs",
    dataset="wmt14_translate/de-en",
    data_dir="data",
    source="en",
    target="de",
    eval_split="validation",
    source_length=256,
    target_length=256,
    batching="pack",
  )
  config.objective = dict(name="translate", label_smoothing=0.1)
  # 104 rows of 256 tokens, of which packing leaves a few per cent empty: about 25,000 tokens on each side.
  config.batch_size = 104
  config.steps = steps
  # Eq. 3, D^-0.5 min(step^-0.5, step warmup^-1.5): after the warmup, peak / sqrt(step / warmup). Adam: no decay.
  warmup = 4000
  config.optimizer = dict(
    name="adamw",
    learning_rate=(width * warmup) ** -0.5,
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
  config.log_every_steps = 100
  # On a TPU "rbg" bits come from the hardware.
  config.prng_impl = "rbg"
  return config
