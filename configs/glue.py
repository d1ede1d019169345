r"""BERT-base fine-tuned on a GLUE task. Recipe, not run by us.

The argument is the task, under its name in TFDS. Published for BERT-base (Devlin et al. 2019, test set: table 1,
development set: table 5) and, in the last column, for Hugging Face's Flax example on the development set:

| argument | task | test set | development set | Flax, development set |
|---|---|---|---|---|
| `cola` | is a sentence grammatical | 52.1 Matthews correlation | | |
| `mnli` | does a sentence entail another | 84.6 % matched, 83.4 % mismatched | | 83.8 % matched |
| `mrpc` | do two sentences mean the same | 88.9 F1 | 86.7 % | 89.0 F1, 84.4 % |
| `qnli` | does a sentence answer a question | 90.5 % | 88.4 % | |
| `qqp` | are two questions the same | 71.2 F1 | | |
| `rte` | does a sentence entail another | 66.4 % | | |
| `sst2` | sentiment of film reviews | 93.5 % | 92.7 % | 92.2 % |
| `stsb` | similarity of two sentences, 0 to 5 | 85.8 Spearman correlation | | |
| `wnli` | is a pronoun resolved correctly | | | |

The paper leaves WNLI out: its splits make predicting the most frequent class, 65.1 %, the best choice (4.1).

`bert-base-uncased` is a folder with the published weights, their `config.json` and `vocab.txt`. The work directory of a
pretraining run may replace it, in both places.

    zoo prepare glue/mnli --data-dir data
    zoo train glue:mnli init.path=bert-base-uncased data.vocab_file=bert-base-uncased data.data_dir=data

TFDS does not have the labels of GLUE's diagnostic set (AX). A folder that contains its file `diagnostic-full.tsv` is
evaluated by

    zoo eval runs/glue_mnli glue data.dataset=FOLDER data.text=Premise data.text_pair=Hypothesis data.label=Label \
      "data.classes=('entailment', 'neutral', 'contradiction')" "evals.glue.metrics=('matthews_correlation',)" \
      data.train_split=diagnostic-full data.eval_split=diagnostic-full

`configs/_bert_finetune.py` has the predicted memory and time.
"""

from configs._bert_finetune import finetune

# Task -> number of classes; 1 is regression.
VARIANTS = dict(cola=2, mnli=3, mrpc=2, qnli=2, qqp=2, rte=2, sst2=2, stsb=1, wnli=2)


def get_config(task):
  config = finetune("sequence_classification", num_classes=VARIANTS[task])
  config.data = dict(
    name="sequence_classification",
    dataset=f"glue/{task}",
    data_dir="data",
    vocab_file="bert-base-uncased",
    eval_split="validation_matched" if task == "mnli" else "validation",
    length=128,
  )
  config.objective = dict(name="sequence_classification")
  config.batch_size = 32
  config.epochs = 3.0
  # The published rate is the best of 5e-5, 4e-5, 3e-5 and 2e-5 on the development set.
  config.optimizer.learning_rate = 2e-5
  config.evals = dict(val=dict(name="loss"), glue=dict(name="sequence_classification"))
  if task == "mnli":
    config.evals.mismatched = dict(name="sequence_classification", split="validation_mismatched")
  return config
