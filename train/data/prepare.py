"""Preparation of data sets: downloads or local files to ArrayRecord files, with a tokenizer where one is needed."""

import functools
import importlib
import re
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from train.data.array_record import CORPUS, bundled, check_name, local
from train.data.text import prepare_corpus, tokenizers, translation
from train.data.text.corpus_options import Preparation
from train.datasets._tensorflow import stand_in
from zoo.errors import check_call


def prepare(
  name: str,
  data_dir: str,
  source: str | None = None,
  vocab_size: int | None = None,
  tokenizer: str | None = None,
  **corpus: Any,
) -> str:
  """Builds a set as ArrayRecord in `data_dir`, downloading what is needed; returns the set's folder.

  A set of translations gets a tokenizer, trained on its split "train", once: all runs share it.

  Args:
    name: a builder in `train/datasets/`, or any name in TFDS; or "corpus/NAME", text to pretrain on.
    data_dir: where the set goes.
    source: the folder of files that must be downloaded by hand, by default `data_dir/downloads/manual`; or the text
      of a corpus.
    vocab_size: of the tokenizer; by default 32,000, of a corpus 30,522.
    tokenizer: its kind, "bpe" (the default), "unigram" or "word"; of a corpus "wordpiece" (the default) or "bpe".
    corpus: keyword arguments of `train.data.text.corpus_options.Preparation`; None is as if not given.

  Raises:
    ValueError: no such set (the nearest is named), or one that cannot be built here, and why; another tokenizer is
      there already; a tokenizer for a set without translations; an argument of a corpus for another set.
  """
  corpus = {key: value for key, value in corpus.items() if value is not None}
  if re.split("[/:]", name)[0] == CORPUS:
    check_call(Preparation, corpus, "a corpus", given=("name", "data_dir", "source"))
    if source is None:
      raise ValueError(f"{name!r} needs a text: --source FILE, FOLDER or a name in TFDS")
    return prepare_corpus.prepare_corpus(name, data_dir, source, vocab_size=vocab_size, tokenizer=tokenizer, **corpus)
  if corpus:
    raise ValueError(f"--{next(iter(corpus)).replace('_', '-')} is for {CORPUS}/NAME; this is {name!r}")
  tokenizers.check(vocab_size or translation.VOCABULARY, tokenizer or "bpe")
  builder = _build(name, Path(data_dir), source)
  translation.prepare_tokenizer(name, data_dir, builder, vocab_size, tokenizer)
  return str(builder.data_path)


def _build(name: str, data_dir: Path, source: str | None) -> tfds.core.DatasetBuilder:
  """Builds a set of TFDS or of `train/datasets/`; one that exists already is kept."""
  base = re.split("[/:]", name)[0]
  check_name(base)
  if base in bundled():
    raise ValueError(f"{name!r} is bundled and needs no preparation")
  downloads = data_dir / "downloads"
  manual = Path(source) if source else downloads / "manual"
  try:
    with stand_in():
      if base in local():
        make_builder = importlib.import_module(f"train.datasets.{base}").Builder
        if "/" in name:
          make_builder = functools.partial(make_builder, config=name.partition("/")[2])
      else:
        make_builder = functools.partial(tfds.builder, name)
      builder = make_builder(data_dir=data_dir, file_format="array_record")
      built = Path(builder.data_path).exists()
      if source and built and not translation.lacks_tokenizer(builder):
        raise ValueError(f"{builder.data_path} exists already; delete it to make another one")
      if (what := builder.MANUAL_DOWNLOAD_INSTRUCTIONS) and not built and not manual.is_dir():
        raise ValueError(f"{name!r} needs files in {manual}, which is no folder. {what.strip()}")
      builder.download_and_prepare(
        download_dir=downloads, download_config=tfds.download.DownloadConfig(manual_dir=manual)
      )
  except ImportError as error:
    raise ValueError(
      f"TFDS's builder of {name!r} needs a package that is not installed ({error}), to prepare the set, though not"
      " to read it. If it is TensorFlow: pip install tensorflow"
    ) from error
  except (AssertionError, OSError) as error:  # files that are missing, a download that failed, a full disk
    raise ValueError(f"cannot prepare {name!r}: {error}") from error
  return builder
