"""BERT-base fine-tuned on the named entities of CoNLL-2003. Recipe, not run by us.

Published: 96.4 F1 on the development set and 92.4 on the test set (Devlin et al. 2019, table 7), the mean of 5 runs,
with the document around each sentence as context, which this recipe leaves out.

`bert-base-cased` is a folder with the published weights, their `config.json` and `vocab.txt`. The work directory of a
pretraining run may replace it, in both places. A folder with CoNLL's own files is a data set, too: data.dataset=FOLDER
data.token=0 data.tag=-1.

    zoo prepare conll2003/conll2003 --data-dir data
    zoo train conll2003 init.path=bert-base-cased data.vocab_file=bert-base-cased data.data_dir=data

`configs/_bert_finetune.py` has the predicted memory and time.
"""

from configs._bert_finetune import finetune


def get_config():
  config = finetune("token_classification", num_classes=9, vocab_size=28996)
  config.init.path = "bert-base-cased"
  config.data = dict(
    name="token_classification",
    dataset="conll2003/conll2003",
    data_dir="data",
    vocab_file="bert-base-cased",
    token="tokens",
    tag="ner",
    eval_split="dev",
    length=128,
  )
  config.objective = dict(name="token_classification")
  config.batch_size = 32
  config.epochs = 3.0
  config.optimizer.learning_rate = 5e-5
  config.evals = dict(
    val=dict(name="loss"), dev=dict(name="token_classification"), test=dict(name="token_classification", split="test")
  )
  return config
