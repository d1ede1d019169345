"""The command `zoo VERB`: a function a verb, thin over the library. Every verb that reports takes `--json FILE`."""

import argparse
import functools
import importlib.util
import inspect
import json as json_module
import logging
import os
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

# jax and what imports it are imported by the verbs: `zoo --help` need not wait for them.


def main(argv: list[str] | None = None) -> int:
  """Runs `zoo VERB ...`; errors that tell what to do are printed without a traceback."""
  parser = argparse.ArgumentParser(prog="zoo", description=__doc__.partition("\n")[0])
  verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
  parsers = {}
  for function, arguments in VERBS.items():
    doc = function.__doc__
    name = function.__name__.replace("_", "-")
    verb = verbs.add_parser(name, help=doc.partition("\n")[0], description=doc)
    parsers[name] = verb
    for names, options in arguments.items():
      verb.add_argument(*names.split(), **options)
    verb.set_defaults(function=function)
  # Overrides may stand anywhere, also between and after the options.
  argv = sys.argv[1:] if argv is None else argv
  after = ["", *argv]
  overrides = [word for word, before in zip(argv, after, strict=False) if _OVERRIDE.match(word) and before != _BEAM]
  words = [word for word in argv if word not in overrides]
  # Whatever has no option's name may stand anywhere too, which argparse has for a verb but not for the choice of one.
  known = words and words[0] in parsers
  options = vars(parsers[words[0]].parse_intermixed_args(words[1:]) if known else parser.parse_args(words))
  function = options.pop("function")
  if "overrides" in inspect.signature(function).parameters:
    options["overrides"] = overrides
  elif overrides:
    parser.error(f"zoo {function.__name__.replace('_', '-')} takes no {overrides[0]!r}")
  try:
    _quiet()
    if options.get("json"):
      _check_writable(options["json"])
    return function(**options) or 0
  except ValueError as error:
    from zoo.errors import Unwritable

    print(f"zoo: {error}", file=sys.stderr, flush=True)
    if isinstance(error, Unwritable):
      os._exit(2)  # what libraries have left to write, they would try again, and print a traceback each
    return 2
  except ModuleNotFoundError:
    from train.doctor import missing_packages

    if not (missing := missing_packages()):
      raise
    print(f"zoo: {', '.join(missing)} not installed: pip install 'transformer-zoo[train]'", file=sys.stderr)
    return 2
  except KeyboardInterrupt:  # before or after training, which stops by itself and saves
    print("zoo: interrupted", file=sys.stderr)
    return 130


def train(config, overrides, workdir, resume, override_config, distributed, json):
  """Train, or go on with the run in the work directory."""
  _join(distributed)
  import jax

  from train import config as configuration
  from train import loop

  loaded = configuration.load(config, overrides)
  workdir = Path(workdir or Path("runs") / configuration.run_name(config))
  result = loop.train(loaded, workdir, resume=resume, override_config=override_config)
  if jax.process_index():  # one of several tells
    return
  if result["stopped"]:
    words = ["zoo", "train", config, *overrides, *([f"--distributed={distributed}"] if distributed else [])]
    print(f"Stopped by {result['stopped']} after step {result['step']}; the checkpoint is written. To go on:")
    print(" ", shlex.join([*words, "--workdir", str(workdir)]))
  else:
    _print_results(result, workdir)
  _write(json, result)


def eval(source, evaluations, overrides, json):
  """Evaluate a run (its work directory) or a config with init.path=WEIGHTS, on every example exactly once."""
  from train import loop

  run, variables, step = loop.open_run(source, overrides)
  made = run.make_evaluations()
  wanted = evaluations or list(made)
  if unknown := [name for name in wanted if name not in made]:
    from zoo.errors import nearest

    raise ValueError(f"{source} has no evaluation {unknown[0]!r}{nearest(unknown[0], made)}")
  result = {name: made[name].function(variables) for name in wanted}
  table = Table("evaluation", "metric", "value", box=None)
  for name, values in result.items():
    for key, value in values.items():
      table.add_row(name, key, f"{value:.5g}")
  _console().print(table)
  _write(json, {"step": step, **result})


def translate(run, text, file, split, out, beam_size, length_penalty, plot, json, overrides):
  """Translate texts, the lines of a file or a split with a trained run; draw which words each word was read from."""
  from train import loop, plots
  from train.data.text import files
  from train.inference import translate

  if sum(map(bool, (text, file, split))) != 1:
    raise ValueError("wanted one of TEXT, --file FILE and --split SPLIT")
  for path in filter(None, (out, plot)):
    _check_writable(path)
  if file:
    try:
      text = [*files.lines(Path(file))]
    except OSError as error:
      raise ValueError(f"cannot read {file}: {error.strerror}") from error
    if not text:
      raise ValueError(f"{file} is empty")
  trained, variables, _ = loop.open_run(run, overrides)
  if not hasattr(trained.data, "tokenizer"):
    raise ValueError(f"{run} is no translator: it was trained on {trained.config.data.name}")
  if split:
    text = [source for source, _ in trained.data.texts(split)]
  translator = translate.Translator(trained, trained.data.target_length, beam_size, length_penalty)
  found = translate.translate_lines(translator, variables, text, strict=not split)
  if split and (empty := sum(not line for line in found)):
    what = f"{empty} of {len(found)} translations are empty"
    print(f"{what}; sources that are empty or too long have no other", file=sys.stderr)
  if out:
    # A translation is a line, whatever it holds.
    Path(out).write_text("".join(line.replace("\n", " ") + "\n" for line in found), encoding="utf-8")
  else:
    print(*found, sep="\n")
  if plot:
    host = trained.parallel.host(variables)
    plots.alignment(*translate.align(trained, host, text[0], found[0]), path=plot)
    print(plot, file=sys.stderr)
  _write(json, [{"source": source, "translation": target} for source, target in zip(text, found, strict=True)])


def fill_mask(run, text, top_k, json, overrides):
  """Tell the most probable words for every [MASK] of a text, with a run that has learned to."""
  from train import loop
  from train.inference import fill_mask as inference

  trained, variables, _ = loop.open_run(run, overrides)
  if not hasattr(trained.data, "vocabulary"):
    raise ValueError(f"{run} fills in no words: it was trained on {trained.config.data.name}")
  found = inference.fill_mask(trained.model, variables, trained.data.vocabulary, text, top_k)
  table = Table("text", "word", "probability", box=None)
  for given, masks in zip(text, found, strict=True):
    for number, guesses in enumerate(masks, 1):
      what = given if len(masks) == 1 else f"{given} ({number} of {len(masks)})"
      for place, guess in enumerate(guesses):
        table.add_row("" if place else what, guess.token, f"{guess.probability:.1%}")
  _console().print(table)
  words = [[[guess._asdict() for guess in guesses] for guesses in masks] for masks in found]
  _write(json, [{"text": given, "masks": masks} for given, masks in zip(text, words, strict=True)])


def average(run, last, out):
  """Write the mean of a run's last checkpoints as one file of weights, for init.path and `zoo.load`."""
  from zoo import weights

  steps = weights.average(run, out, last=last)
  print(f"{out}: the mean of the checkpoints of steps {', '.join(map(str, steps))}")


def plot(source, what, image, out, overrides):
  """Plot a run as PNG files: reconstructions, attention, positions, loss curves."""
  from train import loop
  from train.plots import registry

  run, variables, _ = loop.open_run(source, overrides)
  variables = run.parallel.host(variables)
  what = what or run.config.plots
  for name in what:
    registry.check(name, run)
  if image is not None and not set(what) <= {*registry.OF_IMAGES}:
    raise ValueError(f"--image is for {', '.join(registry.OF_IMAGES)}; wanted are {', '.join(what)}")
  images = None if image is None else registry.read_image(image, run.data)
  folder = Path(source) if Path(source).is_dir() else Path(".")
  for name in what:
    # A picture of one's own does not take the place of the run's.
    path = Path(out or folder) / (f"{name}.png" if image is None else f"{name}_{Path(image).stem}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    registry.draw(name, run, variables, folder, path, images)
    print(path)


def models(pattern, json):
  """List every model with its parameters, multiply-adds and input."""
  from train.plan import compiler

  # Seconds a model, which nobody should wait for before a still screen; gone when it ends, and no part of the output.
  screen = Console(stderr=True)
  progress = functools.partial(
    track, description="counting", console=screen, transient=True, disable=not screen.is_terminal
  )
  facts = compiler.describe_models(pattern, progress)
  table = Table("model", box=None)
  for title in ("parameters", "GMACs", "input"):
    table.add_column(title, justify="right")
  for fact in facts:
    table.add_row(
      fact.name,
      f"{fact.parameters:,}",
      f"{fact.macs / 1e9:,.2f}",
      ", ".join(" x ".join(map(str, shape)) for shape in fact.inputs),
    )
  _console().print(table)
  _write(json, [vars(fact) for fact in facts])


def plan(config, overrides, tpu, json):
  """Compile a config's step for a TPU that need not be here; print memory, FLOPs, and whether it fits (else exit 1)."""
  os.environ["JAX_PLATFORMS"] = "cpu"  # libtpu can compile for a described TPU or drive a real one, not both
  from train import config as configuration
  from train.plan import compiler

  result = compiler.plan(configuration.load(config, overrides), tpu)
  _console().print(result.table())
  _write(json, result.as_dict())
  return 0 if result.memory.fits else 1


def prepare(name, data_dir, source, vocab_size, tokenizer, **corpus):
  """Build a data set as ArrayRecord files: any TFDS name, a local one, or a text to pretrain on as corpus/NAME."""
  from train.data import array_record

  print(array_record.prepare(name, data_dir, source, vocab_size, tokenizer, **corpus))


def configs(json):
  """List the configs that are installed, with what they do."""
  import ast

  import configs as package
  from train import config as configuration

  summaries, arguments = {}, {}
  for full in configuration.shipped():
    name, _, argument = full.partition(":")
    text = (Path(package.__path__[0]) / f"{name}.py").read_text(encoding="utf-8")
    summaries[full] = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    arguments.setdefault((name, summaries[full]), []).append(argument)
  table = Table("config", "what it does", box=None)
  for (name, summary), given in arguments.items():
    if given[0]:
      name, summary = f"{name}:ARGUMENT", f"{summary} ARGUMENT: {', '.join(given)}."
    table.add_row(name, summary)
  _console().print(table)
  _write(json, summaries)


def doctor(json):
  """Report the devices that are used, the versions, the time of a tiny step, and what is wrong (else exit 1)."""
  from train import doctor

  facts, problems = doctor.examine()
  table = Table(box=None, show_header=False)
  for key, value in facts.items():
    table.add_row(key, ", ".join(value) if isinstance(value, list) else str(value))
  _console().print(table)
  for found in problems:
    print(f"problem: {found.problem}\n    fix: {found.remedy}")
  _write(json, facts | {"problems": [vars(found) for found in problems]})
  return 1 if problems else 0


# Any argument of this form changes the config; values are Python literals, anything else is a string. A word without a
# dot and with spaces does only if its value is a bracket or a quotation: "x=3 is it" is a text to translate.
_OVERRIDE = re.compile(r"[A-Za-z_]\w*((\.\w+)+=|=(\S*$|[\[({'\"]))")
_SET = "key.path=value ... sets values of the config, such as optimizer.learning_rate=1e-3 epochs=10"
_CONFIG = {
  "config": dict(help=f"path of a config file, or the name of an installed one (`zoo configs`), and :ARGUMENT; {_SET}"),
}
_SOURCE = {
  "source": dict(metavar="WORKDIR|CONFIG", help=f"a run's work directory, or a config with init.path=WEIGHTS; {_SET}")
}
_JSON = {"--json": dict(metavar="FILE", help="also write the result to this file")}
_BEAM = "--beam-option"  # its value looks like an override
_FLAG = dict(action=argparse.BooleanOptionalAction)
_CORPUS = {
  name: options | dict(help=f"of a corpus: {options['help']}")
  for name, options in {
    "--vocab": dict(metavar="FILE", help="a vocab.txt or tokenizer.json that is there, in place of a new one"),
    "--lowercase": _FLAG | dict(help="whether its texts are made lower-case"),
    "--documents": dict(metavar="HOW", help="blank (a blank line ends one, if not given) or file (a file is one)"),
    "--sentences": dict(metavar="HOW", help="line (each is one; if not given, of files) or split (running text)"),
    "--feature": dict(metavar="NAME", help="the text of a TFDS set, such as translation/en"),
    "--split": dict(metavar="SPLIT", help="of a TFDS set; train if not given"),
    "--length": dict(type=int, metavar="N", help="tokens in a row; 128 if not given"),
    "--pairs": _FLAG | dict(help="sentence pairs, for the prediction of the next sentence (if not given), or no pairs"),
    "--short-seq-prob": dict(
      type=float, metavar="SHARE", help="of sequences that are shorter; 0.1 of pairs if not given"
    ),
    "--pack": _FLAG | dict(help="several sequences in a row"),
    "--dupe-factor": dict(type=int, metavar="N", help="how often the text is gone through, with other draws"),
    "--validation": dict(type=float, metavar="SHARE", help="of the text for the split val; 0.02 if not given"),
    "--seed": dict(type=int, metavar="N", help="of what is drawn"),
    "--processes": dict(type=int, metavar="N", help="one for each core if not given"),
    "--runner": dict(metavar="NAME", help="local, or of Apache Beam: DirectRunner, FlinkRunner, DataflowRunner, ..."),
    _BEAM: dict(action="append", metavar="NAME=VALUE", help="an option of the runner; may be repeated"),
  }.items()
}
VERBS: Mapping = {
  train: _CONFIG
  | {
    "--workdir": dict(metavar="DIR", help="for checkpoints, metrics and plots; runs/CONFIG if not given"),
    "--resume": dict(
      action=argparse.BooleanOptionalAction,
      default=True,
      help="go on with the run that is in the work directory, if there is one; or refuse to",
    ),
    "--distributed": dict(
      nargs="?",
      const="auto",
      metavar="HOST:PORT,I,N",
      help="join the other processes of the run: found by themselves on a TPU pod or under Slurm, else process I of N, "
      "which meet at process 0's HOST:PORT",
    ),
    "--override-config": dict(action="store_true", help="go on even if the run was made with another config"),
  }
  | _JSON,
  eval: _SOURCE | {"evaluations": dict(nargs="*", metavar="NAME", help="of config.evals; all if none")} | _JSON,
  plot: _SOURCE
  | {
    "what": dict(
      nargs="*",
      metavar="PLOT",
      help="loss_curve, position_similarity; of images reconstructions, attention_maps, attention_rollout; of masks "
      "segmentations; of points regression_curve, attention_heat_map, kernel_widths; of translations alignment, "
      "attention_heads; of BERT attention_heads",
    ),
    "--image": dict(metavar="FILE", help="a picture of one's own"),
    "--out": dict(metavar="DIR", help="where to write; the work directory if not given"),
  },
  translate: {
    "run": dict(metavar="WORKDIR|CONFIG", help=_SOURCE["source"]["help"]),
    "text": dict(nargs="*", metavar="TEXT", help="to translate"),
    "--file": dict(metavar="FILE", help="translate its lines"),
    "--split": dict(metavar="SPLIT", help="translate a split of the run's data, in the order on disk"),
    "--out": dict(metavar="FILE", help="write the translations there, a line each"),
    "--beam-size": dict(type=int, default=4, help="sequences followed at once; 1 is greedy"),
    "--length-penalty": dict(type=float, default=0.6, help="of the length penalty"),
    "--plot": dict(metavar="PNG", help="draw which words of the first text each word of its translation looked at"),
  }
  | _JSON,
  fill_mask: {
    "run": dict(metavar="WORKDIR|CONFIG", help=_SOURCE["source"]["help"]),
    "text": dict(nargs="+", metavar="TEXT", help="with [MASK] in it"),
    "--top-k": dict(type=int, default=5, metavar="N", help="how many words"),
  }
  | _JSON,
  average: {
    "run": dict(metavar="WORKDIR", help="a run's work directory, with checkpoint.max_to_keep checkpoints"),
    "--last": dict(type=int, default=5, metavar="N", help="how many of the last checkpoints to average"),
    "--out": dict(required=True, metavar="FILE.safetensors", help="where to write the weights"),
  },
  models: {"pattern": dict(nargs="?", default="*", help="such as 'vit/*16'")} | _JSON,
  configs: _JSON,
  plan: _CONFIG
  | {"--tpu": dict(default="v5e:2x4", metavar="TYPE:SHAPE", help="such as v5e:2x4, v5p:2x2x2, v6e:4x4")}
  | _JSON,
  prepare: {
    "name": dict(help="such as cifar10, fashion_mnist, wmt14_translate/de-en, parallel_text/en-es, corpus/NAME"),
    "--data-dir": dict(required=True, metavar="DIR", help="where the data set goes, DIR/NAME/..."),
    "--source": dict(
      metavar="DIR",
      help="where local files are, for sets that are made of them; of a corpus a file too, or a TFDS name",
    ),
    "--vocab-size": dict(
      type=int, metavar="N", help="tokens of a tokenizer; if not given 32000 for translations, 30522 for a corpus"
    ),
    "--tokenizer": dict(
      metavar="KIND", help="for translations bpe (if not given), unigram or word; for a corpus wordpiece or bpe"
    ),
  }
  | _CORPUS,
  doctor: _JSON,
}


def _join(distributed: str | None) -> None:
  """Makes this process one of several; before anything touches a device."""
  if distributed is None:
    return
  import jax

  if distributed == "auto":
    jax.distributed.initialize()
    return
  try:
    coordinator, process, processes = distributed.split(",")
    process, processes = int(process), int(processes)
  except ValueError as error:
    raise ValueError(f"--distributed is {distributed!r}; wanted HOST:PORT,I,N such as 10.0.0.1:1234,0,4") from error
  jax.distributed.initialize(coordinator, processes, process)


def _print_results(result: dict, workdir: Path) -> None:
  from train.metrics import number

  table = Table(box=None, show_header=False)
  for name, values in result.items():
    if isinstance(values, dict) and name != "plots":
      table.add_row(name, "  ".join(f"{key} {number(value)}" for key, value in values.items()))
  table.add_row("checkpoint", str(workdir / "checkpoints" / str(result["step"])))
  table.add_row("metrics", f"{workdir / 'metrics.jsonl'}, {workdir / 'tensorboard'}")
  for name, path in result.get("plots", {}).items():
    table.add_row(name, path)
  _console().print(table)


def _console() -> Console:
  console = Console(highlight=False, soft_wrap=True)
  if not console.is_terminal:  # a file has no width to cut at
    console = Console(highlight=False, soft_wrap=True, width=200)
  return console


def _check_writable(path: str) -> None:
  """Before hours of work whose result could not be written."""
  if not os.access(Path(path).parent, os.W_OK) or Path(path).is_dir():
    raise ValueError(f"cannot write {path}: no such directory, or not a file that may be written")


def _write(path: str | None, value) -> None:
  if path:
    Path(path).write_text(json_module.dumps(value, indent=2, default=str) + "\n")


def _quiet() -> None:
  """Keeps libraries' chatter off the screen: what a user needs to know, `zoo` says."""
  from train.doctor import accelerators

  if importlib.util.find_spec("libtpu") and not accelerators():
    # libtpu is here for `zoo plan`; looking for a TPU would take time and tell of errors that are none.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
  # Grain warns with every jaxlib before 0.11 that it cannot profile its workers, which nobody has asked for.
  logging.getLogger("absl").addFilter(lambda record: "worker profiling requires jaxlib" not in record.getMessage())
  # Where Orbax cannot write an array, the others' failures are not asked for: one error tells of all.
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)
