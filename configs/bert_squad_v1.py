"""BERT-base fine-tuned on SQuAD 1.1. Recipe, not run by us.

Published: 80.8 exact and 88.5 F1 on the development set, alone and not with TriviaQA (Devlin et al. 2019, table 2).

`bert-base-uncased` is a folder with published weights, their `config.json` and `vocab.txt`; in its place the work
directory of a pretraining run may stand, twice. SQuAD's own files do too, in a folder: data.dataset=FOLDER
data.train_split=train-v1.1 data.eval_split=dev-v1.1.

    zoo prepare squad/v1.1 --data-dir data
    zoo train bert_squad_v1 init.path=bert-base-uncased data.vocabulary=bert-base-uncased data.data_dir=data

It fits on one TPU chip of 16 GB: `configs/_glue.py` has the plans.
"""

from configs._glue import fine_tuned


def get_config():
  config = fine_tuned("span")
  config.data = dict(
    name="questions",
    dataset="squad/v1.1",
    data_dir="data",
    vocabulary="bert-base-uncased",
    length=384,
    stride=128,
    question_length=64,
  )
  config.objective = dict(name="span")
  config.batch_size = 32
  config.epochs = 3.0
  config.optimizer.learning_rate = 5e-5
  config.evals = dict(val=dict(name="loss"), squad=dict(name="question_answering"))
  return config
