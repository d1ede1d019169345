"""What the configs that fine-tune BERT share: Devlin et al. 2019, 4 and A.3.

The compiler's prediction for batches of 32 in float32, of a v5e chip's 15.75 GiB (`zoo plan bert_glue_mnli --tpu
v5e:1x1`, ...); with no time but that at the chips' bf16 peak. Not measured: we have no TPU.

| config | head | tokens | parameters | one chip | v5e:2x2 |
|---|---|---|---|---|---|
| `bert_glue_mnli` | classify | 128 | 109,484,547 | 4.00 GiB, 10.9 ms | 2.22 GiB, 2.7 ms |
| `bert_conll2003` | tag | 128 | 107,726,601 | 4.00 GiB, 10.9 ms | 2.20 GiB, 2.7 ms |
| `bert_squad_v1` | span | 384 | 108,893,186 | 11.78 GiB, 34.4 ms | 4.15 GiB, 8.6 ms |
| the same, grad_accum_steps=2 | span | 384 | 108,893,186 | 7.07 GiB, 34.4 ms | |
"""

from ml_collections import ConfigDict

from train.config import defaults


def glue(task: str, *, num_classes: int, learning_rate: float = 2e-5, epochs: float = 3.0, **data) -> ConfigDict:
  """A config that fine-tunes BERT-base on a task of GLUE, of the name that TFDS has for it.

  Args:
    task: such as "sst2".
    num_classes: of the model; 1 where the label is a number.
    learning_rate: published is the best of 5e-5, 4e-5, 3e-5 and 2e-5 on the development set.
    epochs: published are 3.
    **data: more of `train.data.text.sequence_classification.Sentences`.
  """
  config = fine_tuned("classify", num_classes=num_classes)
  config.data = dict(
    name="sentences",
    dataset=f"glue/{task}",
    data_dir="data",
    vocabulary="bert-base-uncased",
    eval_split="validation",
    length=128,
    **data,
  )
  config.objective = dict(name="label")
  config.batch_size = 32
  config.epochs = epochs
  config.optimizer.learning_rate = learning_rate
  config.evals = dict(val=dict(name="loss"), glue=dict(name="sequence_classification"))
  return config


def fine_tuned(head: str, **model) -> ConfigDict:
  """A config of BERT-base with a new head on published or our own pretrained weights.

  Args:
    head: what is new.
    **model: more of `zoo.models.bert.Config`.
  """
  config = defaults()
  config.model = dict(name="bert/base", head=head, scan=True, **model)
  # What the pretraining told; and the pooler, which the heads that see all tokens have not.
  told = [r"cls\..*", r"params/(words|next)/.*"]
  if head != "classify":
    told += [r"(bert\.)?pooler\..*", r"params/pooler/.*"]
  config.init = dict(path="bert-base-uncased", ignore=tuple(told), reinit=(r"head/.*",))
  # As released: the norm of all gradients is at most 1, and norms and biases do not decay.
  config.optimizer = dict(
    name="adamw", learning_rate=2e-5, schedule="linear", warmup=0.1, weight_decay=0.01, eps=1e-6, grad_clip_norm=1.0
  )
  config.checkpoint.max_to_keep = 1
  config.log_every_steps = 50
  return config
