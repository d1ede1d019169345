"""What the configs that fine-tune BERT share: Devlin et al. 2019, 4 and A.3.

What a step and the run take on TPUs, as the compiler predicts it: `docs/plan.md`.
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
