"""What the configs that fine-tune BERT share: Devlin et al. 2019, 4 and A.3.

The compiler's prediction for batches of 32 in float32, of the 15.75 GiB of a v5e chip (`zoo plan glue:mnli --tpu
v5e:1x1`, ...). The time is that at the chip's bf16 peak. Not measured: we have no TPU.

| config | head | tokens | parameters | one chip | v5e:2x2 |
|---|---|---|---|---|---|
| `glue:mnli` | classify | 128 | 109,484,547 | 3.50 GiB, 10.9 ms | 2.09 GiB, 2.7 ms |
| `conll2003` | tag | 128 | 107,726,601 | 3.50 GiB, 10.9 ms | 2.11 GiB, 2.7 ms |
| `squad:v1` | span | 384 | 108,893,186 | 9.15 GiB, 34.4 ms | 3.47 GiB, 8.6 ms |
| the same, grad_accum_steps=2 | span | 384 | 108,893,186 | 5.75 GiB, 34.4 ms | |
"""

from ml_collections import ConfigDict

from train.config import defaults


def finetune(head: str, **model) -> ConfigDict:
  """A config of BERT-base with a new head on published or our own pretrained weights.

  Args:
    head: the new head.
    **model: more fields of `zoo.models.bert.Config`.
  """
  config = defaults()
  config.model = dict(name="bert/base", head=head, scan=True, remat="dots_saveable", **model)
  # The pretraining heads; and the pooler, which the heads over all tokens do not have.
  ignore = [r"cls\..*", r"params/(masked_lm|next_sentence)/.*"]
  if head != "sequence_classification":
    ignore += [r"(bert\.)?pooler\..*", r"params/pooler/.*"]
  config.init = dict(path="bert-base-uncased", ignore=tuple(ignore), reinit=(r"head/.*",))
  # As in the released code: gradients are clipped to a global norm of 1, norms and biases do not decay.
  config.optimizer = dict(
    name="adamw", learning_rate=2e-5, schedule="linear", warmup=0.1, weight_decay=0.01, eps=1e-6, grad_clip_norm=1.0
  )
  config.checkpoint.max_to_keep = 1
  config.log_every_steps = 50
  return config
