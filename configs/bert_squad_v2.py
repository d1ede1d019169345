"""BERT-base fine-tuned on SQuAD 2.0. Recipe, not run by us.

Published: for BERT-large 78.7 exact and 81.9 F1 on the development set, with the best threshold (Devlin et al. 2019,
table 3): model.name=bert/large. Nothing is told of base.

`bert-base-uncased` is a folder with published weights, their `config.json` and `vocab.txt`; in its place the work
directory of a pretraining run may stand, twice. SQuAD's own files do too, in a folder: data.dataset=FOLDER
data.train_split=train-v2.0 data.eval_split=dev-v2.0.

    zoo prepare squad/v2.0 --data-dir data
    zoo train bert_squad_v2 init.path=bert-base-uncased data.vocabulary=bert-base-uncased data.data_dir=data

On one TPU chip of 16 GB it needs grad_accum_steps=2: `configs/_glue.py` has the plans.
"""

from configs._glue import fine_tuned


def get_config():
  config = fine_tuned("span")
  config.data = dict(
    name="questions",
    dataset="squad/v2.0",
    data_dir="data",
    vocabulary="bert-base-uncased",
    length=384,
    stride=128,
    question_length=64,
  )
  config.objective = dict(name="span")
  config.batch_size = 48
  config.epochs = 2.0
  config.optimizer.learning_rate = 5e-5
  config.evals = dict(val=dict(name="loss"), squad=dict(name="question_answering"))
  return config
