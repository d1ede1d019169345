"""BERT-base fine-tuned on the named entities of CoNLL-2003. Recipe, not run by us.

Published: 96.4 F1 on the development set and 92.4 on the test set (Devlin et al. 2019, table 7), the mean of 5 runs,
with the document around each sentence, which this recipe leaves out.

`bert-base-cased` is a folder with published weights, their `config.json` and `vocab.txt`; in its place the work
directory of a pretraining run may stand, twice. CoNLL's own files do too, in a folder: data.dataset=FOLDER data.token=0
data.tag=-1.

    zoo prepare conll2003/conll2003 --data-dir data
    zoo train bert_conll2003 init.path=bert-base-cased data.vocabulary=bert-base-cased data.data_dir=data
"""

from configs._glue import fine_tuned


def get_config():
  config = fine_tuned("tag", num_classes=9, vocab_size=28996)
  config.init.path = "bert-base-cased"
  config.data = dict(
    name="tags",
    dataset="conll2003/conll2003",
    data_dir="data",
    vocabulary="bert-base-cased",
    token="tokens",
    tag="ner",
    eval_split="dev",
    length=128,
  )
  config.objective = dict(name="tag")
  config.batch_size = 32
  config.epochs = 3.0
  config.optimizer.learning_rate = 5e-5
  config.evals = dict(
    val=dict(name="loss"), dev=dict(name="token_classification"), test=dict(name="token_classification", split="test")
  )
  return config
