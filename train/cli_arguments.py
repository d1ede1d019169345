"""The arguments of each verb of the command `zoo`, as `argparse` takes them."""

import argparse
import re

# An argument of this form is an override of the config: values are Python literals, anything else is a string. Without
# a dot its value must have no spaces, or be a bracket or a quotation: "x=3 is it" is a text to translate.
OVERRIDE = re.compile(r"[A-Za-z_]\w*((\.\w+)+=|=(\S*$|[\[({'\"]))")
BEAM_OPTION = "--beam-option"  # its value looks like an override

_OVERRIDES = "key.path=value ... sets values of the config, such as optimizer.learning_rate=1e-3 epochs=10"
_CONFIG = {
  "config": dict(
    help=f"path of a config file, or the name of an installed one (`zoo configs`), and :ARGUMENT; {_OVERRIDES}"
  )
}
_RUN = dict(metavar="WORKDIR|CONFIG", help=f"a run's work directory, or a config with init.path=WEIGHTS; {_OVERRIDES}")
_JSON = {"--json": dict(metavar="FILE", help="also write the result to this file")}
_FLAG = dict(action=argparse.BooleanOptionalAction)

_CORPUS = {
  "--vocab": dict(metavar="FILE", help="an existing vocab.txt or tokenizer.json, in place of training one"),
  "--lowercase": _FLAG | dict(help="convert its texts to lower case"),
  "--documents": dict(metavar="HOW", help="blank (a blank line ends one, the default) or file (a file is one)"),
  "--sentences": dict(metavar="HOW", help="line (each is one; the default for files) or split (running text)"),
  "--feature": dict(metavar="NAME", help="the text of a TFDS set, such as translation/en"),
  "--split": dict(metavar="SPLIT", help="of a TFDS set; default train"),
  "--length": dict(type=int, metavar="N", help="tokens in a row; default 128"),
  "--pairs": _FLAG | dict(help="sentence pairs, for the prediction of the next sentence (the default), or no pairs"),
  "--short-seq-prob": dict(type=float, metavar="P", help="share of shorter sequences; default 0.1 of pairs"),
  "--pack": _FLAG | dict(help="several sequences in a row"),
  "--dupe-factor": dict(type=int, metavar="N", help="number of passes over the text, each with other random choices"),
  "--validation": dict(type=float, metavar="SHARE", help="of the text for the split val; default 0.02"),
  "--seed": dict(type=int, metavar="N", help="of the random choices"),
  "--processes": dict(type=int, metavar="N", help="default one for each core"),
  "--runner": dict(metavar="NAME", help="local, or of Apache Beam: DirectRunner, FlinkRunner, DataflowRunner, ..."),
  BEAM_OPTION: dict(action="append", metavar="NAME=VALUE", help="an option of the runner; may be repeated"),
}
_TRAIN = {
  "--workdir": dict(metavar="DIR", help="for checkpoints, metrics and plots; default runs/CONFIG"),
  "--resume": dict(
    action=argparse.BooleanOptionalAction, default=True, help="resume the run in the work directory, or refuse to"
  ),
  "--distributed": dict(
    nargs="?",
    const="auto",
    metavar="HOST:PORT,I,N",
    help="join the other processes of the run: detected on a TPU pod or under Slurm, else process I of N, meeting at "
    "process 0's HOST:PORT",
  ),
  "--override-config": dict(action="store_true", help="resume even if the run was made with another config"),
}
_PLOT = {
  "names": dict(
    nargs="*",
    metavar="PLOT",
    help="default config.plots. loss_curve, position_similarity; of images reconstructions, attention_maps, "
    "attention_rollout; of masks segmentations; of regressions regression_curve, attention_heat_map, kernel_widths; of "
    "translations alignment, attention_heads; of BERT attention_heads",
  ),
  "--image": dict(metavar="FILE", help="an image to use in place of the data's"),
  "--out": dict(metavar="DIR", help="where to write; default the work directory"),
}
_TRANSLATE = {
  "run": _RUN,
  "text": dict(nargs="*", metavar="TEXT", help="to translate"),
  "--file": dict(metavar="FILE", help="translate its lines"),
  "--split": dict(metavar="SPLIT", help="translate a split of the run's data, in the order on disk"),
  "--out": dict(metavar="FILE", help="write the translations there, one a line"),
  "--beam-size": dict(type=int, default=4, metavar="N", help="of the beam search; 1 is greedy"),
  "--length-penalty": dict(type=float, default=0.6, metavar="X", help="exponent of the length penalty"),
  "--plot": dict(metavar="PNG", help="plot the attention of the first translation to its source"),
}
_PREPARE = {
  "name": dict(help="such as cifar10, fashion_mnist, wmt14_translate/de-en, parallel_text/en-es, corpus/NAME"),
  "--data-dir": dict(required=True, metavar="DIR", help="where the data set goes, DIR/NAME/..."),
  "--source": dict(
    metavar="DIR", help="directory of local files, for sets made of them; for a corpus also a file or a TFDS name"
  ),
  "--vocab-size": dict(
    type=int, metavar="N", help="tokens of a tokenizer; default 32000 for translations, 30522 for a corpus"
  ),
  "--tokenizer": dict(
    metavar="KIND", help="for translations bpe (the default), unigram or word; for a corpus wordpiece or bpe"
  ),
} | {name: options | dict(help=f"of a corpus: {options['help']}") for name, options in _CORPUS.items()}

# verb -> argument -> keyword arguments of `ArgumentParser.add_argument`.
ARGUMENTS = {
  "train": _CONFIG | _TRAIN | _JSON,
  "eval": {"run": _RUN, "evaluations": dict(nargs="*", metavar="NAME", help="of config.evals; default all")} | _JSON,
  "plot": {"run": _RUN} | _PLOT,
  "translate": _TRANSLATE | _JSON,
  "fill-mask": {
    "run": _RUN,
    "text": dict(nargs="+", metavar="TEXT", help="with [MASK] in it"),
    "--top-k": dict(type=int, default=5, metavar="K", help="number of tokens for each [MASK]"),
  }
  | _JSON,
  "average": {
    "run": dict(metavar="WORKDIR", help="a run's work directory; checkpoint.max_to_keep keeps its checkpoints"),
    "--last": dict(type=int, default=5, metavar="N", help="number of checkpoints to average"),
    "--out": dict(required=True, metavar="FILE.safetensors", help="where to write the weights"),
  },
  "models": {"pattern": dict(nargs="?", default="*", help="such as 'vit/*16'")} | _JSON,
  "configs": _JSON,
  "plan": {"config": dict(_CONFIG["config"], nargs="?")}
  | {
    "--tpu": dict(default="v5e:2x4", metavar="TYPE:SHAPE", help="such as v5e:2x4, v5p:2x2x2, v6e:4x4"),
    "--price": dict(type=float, metavar="P", help="of a chip and hour, for the cost of the run"),
    "--html": dict(metavar="FILE", help="write a page with figures of where time and memory go"),
    "--compare": dict(metavar="'KEY=VALUE ...'", help="other settings, or another config and settings, beside it"),
    "--search": dict(action="store_true", help="compile other remat policies, meshes and batches, and rank them"),
    "--all": dict(action="store_true", help="plan every shipped config: a table in Markdown"),
  }
  | _JSON,
  "prepare": _PREPARE,
  "doctor": _JSON,
}
