r"""BERT-base fine-tuned on GLUE's MNLI, whether one sentence follows from another. Recipe, not run by us.

Published: 84.6 % right on the matched and 83.4 % on the mismatched test set (Devlin et al. 2019, table 1); 83.8 % on
the matched development set by Flax code of Hugging Face.

`bert-base-uncased` is a folder with published weights, their `config.json` and `vocab.txt`; in its place the work
directory of a pretraining run may stand, twice.

    zoo prepare glue/mnli --data-dir data
    zoo train bert_glue_mnli init.path=bert-base-uncased data.vocabulary=bert-base-uncased data.data_dir=data

The labels of GLUE's diagnostic set (AX) are not in TFDS. A folder with its file `diagnostic-full.tsv` is scored by

    zoo eval runs/bert_glue_mnli glue data.dataset=FOLDER data.text=Premise data.text2=Hypothesis data.label=Label \
      "data.classes=('entailment', 'neutral', 'contradiction')" "evals.glue.metrics=('matthews_correlation',)" \
      data.train_split=diagnostic-full data.eval_split=diagnostic-full
"""

from configs._glue import glue


def get_config():
  config = glue("mnli", num_classes=3)
  config.data.eval_split = "validation_matched"
  config.evals.mismatched = dict(name="sequence_classification", split="validation_mismatched")
  return config
