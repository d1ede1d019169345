"""The command `zoo VERB`: a function a verb, thin over the library. Every verb that reports takes `--json FILE`."""

import argparse
import functools
import importlib.util
import inspect
import json as json_module
import logging
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from train.cli_arguments import ARGUMENTS, BEAM_OPTION, OVERRIDE

# The verbs import jax and the modules that import it, so that `zoo --help` does not wait for them.


def main(argv: list[str] | None = None) -> int:
  """Runs `zoo VERB ...` and returns the exit code; errors of the user are printed without a traceback."""
  argv = sys.argv[1:] if argv is None else argv
  # Overrides may stand anywhere, also between and after the options.
  previous = ["", *argv]
  overrides = [word for word, before in zip(argv, previous, strict=False) if _is_override(word, before)]
  words = [word for word in argv if word not in overrides]
  parser, verbs = _parsers()
  # So may positional arguments, which argparse supports within a verb, but not across the choice of one.
  verb = words[0] if words and words[0] in verbs else None
  options = vars(verbs[verb].parse_intermixed_args(words[1:]) if verb else parser.parse_args(words))
  verb = options.pop("verb", verb)
  function = VERBS[verb]
  if "overrides" in inspect.signature(function).parameters:
    options["overrides"] = overrides
  elif overrides:
    parser.error(f"zoo {verb} takes no {overrides[0]!r}")
  try:
    _logging()
    if options.get("json"):
      _check_writable(options["json"])
    return function(**options) or 0
  except ValueError as error:
    from zoo.errors import Unwritable

    print(f"zoo: {error}", file=sys.stderr, flush=True)
    if isinstance(error, Unwritable):
      os._exit(2)  # libraries would try again to write what is left, and print a traceback each time
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


def _is_override(word: str, before: str) -> bool:
  return bool(OVERRIDE.match(word)) and before not in (BEAM_OPTION, "--compare")


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
  """The parser of the command, and that of each verb."""
  parser = argparse.ArgumentParser(prog="zoo", description=(__doc__ or "").partition("\n")[0])
  subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
  verbs = {}
  for verb, function in VERBS.items():
    doc = function.__doc__ or ""
    verbs[verb] = subparsers.add_parser(verb, help=doc.partition("\n")[0], description=doc)
    for names, options in ARGUMENTS[verb].items():
      verbs[verb].add_argument(*names.split(), **options)
  return parser, verbs


def train(
  config: str,
  overrides: Sequence[str],
  workdir: str | None,
  resume: bool,
  override_config: bool,
  distributed: str | None,
  json: str | None,
) -> None:
  """Train, or resume the run in the work directory."""
  _init_distributed(distributed)
  import jax

  from train import config as configuration
  from train import loop

  loaded = configuration.load(config, overrides)
  folder = Path(workdir or Path("runs") / configuration.run_name(config))
  result = loop.train(loaded, folder, resume=resume, override_config=override_config)
  if jax.process_index():  # only process 0 prints
    return
  if result["stopped"]:
    words = ["zoo", "train", config, *overrides, *([f"--distributed={distributed}"] if distributed else [])]
    print(f"Stopped by {result['stopped']} after step {result['step']}; the checkpoint is written. To resume:")
    print(" ", shlex.join([*words, "--workdir", str(folder)]))
  else:
    _print_results(result, folder)
  _write(json, result)


def eval(run: str, evaluations: Sequence[str], overrides: Sequence[str], json: str | None) -> None:
  """Evaluate a run (its work directory) or a config with init.path=WEIGHTS, on every example exactly once."""
  from train import experiment
  from train.evaluation import registry
  from zoo.errors import nearest

  opened, variables, step = experiment.open_run(run, overrides)
  made = registry.make(opened)
  if unknown := [name for name in evaluations if name not in made]:
    raise ValueError(f"{run} has no evaluation {unknown[0]!r}{nearest(unknown[0], made)}")
  result = {name: made[name].function(variables) for name in evaluations or made}
  table = Table("evaluation", "metric", "value", box=None)
  for name, values in result.items():
    for key, value in values.items():
      table.add_row(name, key, f"{value:.5g}")
  _console().print(table)
  _write(json, {"step": step, **result})


def translate(
  run: str,
  text: Sequence[str],
  file: str | None,
  split: str | None,
  out: str | None,
  beam_size: int,
  length_penalty: float,
  plot: str | None,
  json: str | None,
  overrides: Sequence[str],
) -> None:
  """Translate texts, the lines of a file or a split with a trained run."""
  from train import experiment, plots
  from train.data.text.seq2seq import Seq2Seq
  from train.inference.translate import Translator, align, translate_lines

  if sum(map(bool, (text, file, split))) != 1:
    raise ValueError("wanted one of TEXT, --file FILE and --split SPLIT")
  for path in filter(None, (out, plot)):
    _check_writable(path)
  if file:
    text = _read_lines(file)
  opened, variables, _ = experiment.open_run(run, overrides)
  data = opened.data
  if not isinstance(data, Seq2Seq):
    raise ValueError(f"{run} does not translate: it was trained on {opened.config.data.name}")
  if split:
    text = [source for source, _ in data.texts(split)]
  translator = Translator(opened, data.target_length, beam_size, length_penalty)
  translations = translate_lines(translator, variables, text, strict=not split)
  if split and (empty := sum(not line for line in translations)):
    print(
      f"{empty} of {len(translations)} translations are empty: those of sources that are empty or too long, and others "
      "that the model ends at once",
      file=sys.stderr,
    )
  if out:
    # One line for each translation, which may contain line feeds.
    Path(out).write_text("".join(line.replace("\n", " ") + "\n" for line in translations), encoding="utf-8")
  else:
    print(*translations, sep="\n")
  if plot:
    host = opened.parallel.host(variables)
    plots.alignment(*align(opened, host, text[0], translations[0]), path=plot)
    print(plot, file=sys.stderr)
  _write(json, [dict(source=source, translation=line) for source, line in zip(text, translations, strict=True)])


def fill_mask(run: str, text: Sequence[str], top_k: int, json: str | None, overrides: Sequence[str]) -> None:
  """Predict the most probable tokens for every [MASK] of a text, with a run pretrained on masked tokens."""
  from train import experiment
  from train.data.text.labelled import LabelledText
  from train.data.text.masked_lm import TokenRows
  from train.inference.fill_mask import fill_mask

  opened, variables, _ = experiment.open_run(run, overrides)
  if not isinstance(opened.data, TokenRows | LabelledText):
    raise ValueError(f"{run} does not predict masked tokens: it was trained on {opened.config.data.name}")
  predictions = fill_mask(opened.model, variables, opened.data.vocabulary, text, top_k)
  table = Table("text", "token", "probability", box=None)
  for given, masks in zip(text, predictions, strict=True):
    for number, tokens in enumerate(masks, 1):
      label = given if len(masks) == 1 else f"{given} ({number} of {len(masks)})"
      for rank, prediction in enumerate(tokens):
        table.add_row("" if rank else label, prediction.token, f"{prediction.probability:.1%}")
  _console().print(table)
  dicts = [[[prediction._asdict() for prediction in tokens] for tokens in masks] for masks in predictions]
  _write(json, [dict(text=given, masks=masks) for given, masks in zip(text, dicts, strict=True)])


def average(run: str, last: int, out: str) -> None:
  """Write the mean of a run's last checkpoints as one file of weights, for init.path and `zoo.load`."""
  from zoo import weights

  steps = weights.average(run, out, last=last)
  print(f"{out}: the mean of the checkpoints of steps {', '.join(map(str, steps))}")


def plot(run: str, names: Sequence[str], image: str | None, out: str | None, overrides: Sequence[str]) -> None:
  """Plot a run as PNG files: reconstructions, attention, positions, loss curves."""
  from train import experiment
  from train.plots import registry

  opened, variables, _ = experiment.open_run(run, overrides)
  variables = opened.parallel.host(variables)
  names = names or opened.config.plots
  for name in names:
    registry.check(name, opened)
  if image is not None and not set(names) <= {*registry.OF_IMAGES}:
    raise ValueError(f"--image is for {', '.join(registry.OF_IMAGES)}; wanted are {', '.join(names)}")
  images = None if image is None else registry.read_image(image, opened.data)
  folder = Path(run) if Path(run).is_dir() else Path(".")
  for name in names:
    # A plot of the user's image does not overwrite the run's.
    path = Path(out or folder) / (f"{name}.png" if image is None else f"{name}_{Path(image).stem}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    registry.draw(name, opened, variables, folder, path, images)
    print(path)


def models(pattern: str, json: str | None) -> None:
  """List every model with its parameters, multiply-adds and input."""
  from train.plan.models import describe_models

  # Each takes seconds; the bar disappears at the end and is not part of the output.
  screen = Console(stderr=True)
  progress = functools.partial(
    track, description="counting", console=screen, transient=True, disable=not screen.is_terminal
  )
  facts = describe_models(pattern, progress)
  table = Table("model", box=None)
  for title in ("parameters", "GMACs", "input"):
    table.add_column(title, justify="right")
  for fact in facts:
    inputs = ", ".join(" x ".join(map(str, shape)) for shape in fact.inputs)
    table.add_row(fact.name, f"{fact.parameters:,}", f"{fact.macs / 1e9:,.2f}", inputs)
  _console().print(table)
  _write(json, [vars(fact) for fact in facts])


def plan(config: str | None, overrides: Sequence[str], tpu: str, json: str | None, **options: Any) -> int:
  """Compile a step for a TPU that need not be here: predicted time and memory (exit 1 if it does not fit)."""
  os.environ["JAX_PLATFORMS"] = "cpu"  # libtpu can compile for a described TPU or drive a real one, not both
  from train.plan import command

  if options["html"]:
    _check_writable(options["html"])
  status, result = command.run(config, overrides, tpu, _console(), **options)
  _write(json, result)
  return status


def prepare(
  name: str, data_dir: str, source: str | None, vocab_size: int | None, tokenizer: str | None, **corpus: Any
) -> None:
  """Build a data set as ArrayRecord files: any TFDS name, a local one, or a text to pretrain on as corpus/NAME."""
  from train.data import prepare

  print(prepare.prepare(name, data_dir, source, vocab_size, tokenizer, **corpus))


def configs(json: str | None) -> None:
  """List the installed configs with the first line of their documentation."""
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


def doctor(json: str | None) -> int:
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


VERBS: Mapping[str, Callable[..., int | None]] = {
  "train": train,
  "eval": eval,
  "plot": plot,
  "translate": translate,
  "fill-mask": fill_mask,
  "average": average,
  "models": models,
  "configs": configs,
  "plan": plan,
  "prepare": prepare,
  "doctor": doctor,
}


def _init_distributed(distributed: str | None) -> None:
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


def _read_lines(file: str) -> list[str]:
  from train.data.text import files

  try:
    lines = [*files.lines(Path(file))]
  except OSError as error:
    raise ValueError(f"cannot read {file}: {error.strerror}") from error
  if not lines:
    raise ValueError(f"{file} is empty")
  return lines


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
  if not console.is_terminal:  # a file has no width to truncate at
    console = Console(highlight=False, soft_wrap=True, width=200)
  return console


def _check_writable(path: str) -> None:
  """Raises ValueError before hours of work whose result could not be written."""
  if not os.access(Path(path).parent, os.W_OK) or Path(path).is_dir():
    raise ValueError(f"cannot write {path}: no such directory, or not a file that may be written")


def _write(path: str | None, value) -> None:
  if path:
    Path(path).write_text(json_module.dumps(value, indent=2, default=str) + "\n")


def _logging() -> None:
  """Silences log messages of libraries that do not concern the user; shows those of the zoo on accelerators."""
  from train.doctor import accelerators

  if accelerators():  # elsewhere nothing is chosen, such as what computes attention
    logging.getLogger("zoo").setLevel(logging.INFO)
    logging.getLogger("zoo").addHandler(logging.StreamHandler())
  elif importlib.util.find_spec("libtpu"):  # for `zoo plan`; JAX would look for a TPU and log errors
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
  # Grain warns with every jaxlib before 0.11 that it cannot profile its workers, which is not used.
  logging.getLogger("absl").addFilter(lambda record: "worker profiling requires jaxlib" not in record.getMessage())
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # one failure of Orbax, for every other array
