"""`zoo translate`: texts and files to translations; invalid inputs are errors."""

import json

import pytest
from support import TINY_CONFIG, raises

from train import cli, experiment, loop, plots
from train import config as configuration
from train.inference import translate
from train.plots import registry

pytestmark = pytest.mark.usefixtures("one_device")

CONFIG = """
from configs import sort

def get_config():
  config = sort.get_config()
  config.model.update(width=16, depth=1, decoder_depth=1, mlp_dim=16, scan=False, remat="none", {model})
  config.data.update({data})
  return config
"""


def config(path, model="", data=""):
  path.write_text(CONFIG.format(model=model, data=data))
  return str(path)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
  """An untrained model: its translations do not matter here."""
  return experiment.open_run(config(tmp_path_factory.mktemp("run") / "tiny.py"))


@pytest.fixture
def run(opened, monkeypatch):
  """Calls `zoo translate` on it; returns the exit code."""
  monkeypatch.setattr(experiment, "open_run", lambda source, overrides: opened)
  return lambda *arguments: cli.main(["translate", "run", *map(str, arguments)])


def test_every_line_is_translated(run, tmp_path, capsys):
  """Of a file as of texts: only a line feed ends a line, and a byte-order mark is not part of the text."""
  # U+2028 and U+0085 end lines for `str.splitlines`.
  texts = ["c a b", "a", "b\u2028c", "c\u0085a", "x y ñ 日本語 👍", "a=3 is b"]  # the last changes no config
  (tmp_path / "texts").write_bytes("\ufeff".encode() + "\r\n".join(texts).encode())
  assert (
    run("--beam-size", 1, "--file", tmp_path / "texts", "--json", tmp_path / "out.json", "--out", tmp_path / "out") == 0
  )
  rows = json.loads((tmp_path / "out.json").read_text())
  assert [row["source"] for row in rows] == texts
  assert (tmp_path / "out").read_text().split("\n")[:-1] == [row["translation"] for row in rows]
  assert run(*texts, "--beam-size", 1) == 0
  assert capsys.readouterr().out == (tmp_path / "out").read_text()


@pytest.mark.parametrize(
  ("arguments", "named"),
  [
    (["a b", "--file", "{good}"], ("TEXT", "--file FILE", "--split SPLIT")),
    ([], ("TEXT", "--file FILE", "--split SPLIT")),
    (["a b", "--beam-size", 0], ("beam_size=0",)),
    (["a b", "--beam-size", 25], ("beam", 25, 24)),
    (["a b", "--out", "{missing}/x"], ("{missing}/x",)),
    (["a b", "--plot", "{missing}/x"], ("{missing}/x",)),
    (["--file", "{missing}"], ("{missing}",)),
    (["--file", "{empty}"], ("{empty}",)),
    (["--file", "{latin}"], ("{latin}, line 3", "UTF-8")),
    (["a", " ", "b", ""], ("line 2", "line 4")),
    (["a", "a" + " b" * 11, "b"], ("line 2", 13, 11)),
  ],
  ids=lambda value: str(value)[:40],
)
def test_invalid_inputs_are_errors(run, tmp_path, capsys, arguments, named):
  files = {name: tmp_path / name for name in ("good", "missing", "empty", "latin")}
  files["good"].write_text("a b\n")
  files["empty"].write_text("")
  files["latin"].write_bytes(b"a\nb\ncaf\xe9\n")
  arguments = [str(argument).format(**files) for argument in arguments]
  assert run(*arguments) == 2
  error = capsys.readouterr().err
  assert all(str(name).format(**files) in error for name in named) and "Traceback" not in error, error


def test_a_translation_without_eos_has_an_alignment(opened):
  trained, variables, _ = opened
  limit = trained.model.config.max_length
  weights_TS, target, source = translate.align(trained, variables, "a b", " ".join("abcdefghijklm"[:limit]))
  assert weights_TS.shape == (limit, 3) == (len(target), len(source))


def test_an_invalid_evaluation_is_an_error_before_the_first_step(tmp_path):
  for change, named in (
    ("beam_size=500", ("beam", 500, 24)),
    ("length_penalty=-1.0", ("length_penalty=-1.0", "length_penalty >= 0")),
    ("max_length=12", ("max_length", 12, 11)),
  ):
    config = configuration.load("sort", ["steps=2", "data.train_size=600", "data.eval_size=8", f"evals.eval.{change}"])
    with raises(ValueError, *named):
      loop.train(config, tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_model_that_is_no_translator_is_an_error(capsys):
  assert cli.main(["translate", TINY_CONFIG, "a b"]) == 2
  assert "image_classification" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["alignment", "attention_heads"])
def test_plots_of_a_translation(opened, tmp_path, monkeypatch, name):
  drawn = []
  monkeypatch.setattr(plots, name, lambda *arguments, path: drawn.append(arguments))
  registry.draw(name, opened[0], opened[1], tmp_path)
  ((weights, target, source),) = drawn
  pair = next(pair for pair in opened[0].data.references() if 6 <= len(pair[0].split()) <= 10)
  assert [" ".join(words) for words in (source, target)] == [f"{text} </s>" for text in pair]
  assert weights.shape[-2:] == (len(target), len(source)) and (weights.sum(-1) > 0.999).all()
