"""BERT-base fine-tuned on SQuAD 1.1 (`v1`) or 2.0 (`v2`). Recipe, not run by us.

Published, on the development set:

- `v1`: 80.8 exact match and 88.5 F1, a single model without TriviaQA (Devlin et al. 2019, table 2).
- `v2`: 78.7 exact match and 81.9 F1 for BERT-large, with the best threshold (table 3): model.name=bert/large. The paper
  has no result for BERT-base.

`bert-base-uncased` is a folder with the published weights, their `config.json` and `vocab.txt`. The work directory of a
pretraining run may replace it, in both places. A folder with SQuAD's own files is a data set, too: data.dataset=FOLDER
data.train_split=train-v1.1 data.eval_split=dev-v1.1 (or train-v2.0 and dev-v2.0).

    zoo prepare squad/v1.1 --data-dir data
    zoo train squad:v1 init.path=bert-base-uncased data.vocab_file=bert-base-uncased data.data_dir=data
    zoo prepare squad/v2.0 --data-dir data
    zoo train squad:v2 init.path=bert-base-uncased data.vocab_file=bert-base-uncased data.data_dir=data

`v1` fits on one TPU chip of 16 GB, `v2` with grad_accum_steps=2: `configs/_bert_finetune.py` has the predictions.
"""

from configs._bert_finetune import finetune

# Version -> its name in TFDS, batch size, epochs.
VARIANTS = dict(v1=("v1.1", 32, 3.0), v2=("v2.0", 48, 2.0))


def get_config(version):
  release, batch_size, epochs = VARIANTS[version]
  config = finetune("question_answering")
  config.data = dict(
    name="question_answering",
    dataset=f"squad/{release}",
    data_dir="data",
    vocab_file="bert-base-uncased",
    length=384,
    doc_stride=128,
    max_query_length=64,
  )
  config.objective = dict(name="question_answering")
  config.batch_size = batch_size
  config.epochs = epochs
  config.optimizer.learning_rate = 5e-5
  config.evals = dict(val=dict(name="loss"), squad=dict(name="question_answering"))
  return config
