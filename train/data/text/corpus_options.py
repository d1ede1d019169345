"""The arguments of the preparation of a text corpus, and their checks."""

import re
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

from train.data.text import masked_lm_rows, vocabulary

VOCABULARY = 30_522  # as published


@dataclass(frozen=True)
class Preparation:
  """How a text becomes rows and a vocabulary: the arguments of `train.data.text.prepare_corpus.prepare_corpus`.

  Attributes:
    name: "corpus/NAME".
    data_dir: where it goes, and where a source of TFDS is; with a runner, a folder that all its workers see.
    source: a file, a folder or a data set of TFDS, see `train.data.text.corpora`; also `documents`, `sentences`,
      `feature` and `split`.
    vocab: an existing vocabulary, see `vocabulary.load_vocabulary`. None: one is trained on the text.
    vocab_size: of the one that is trained, in tokens; None: 30,522.
    tokenizer: its kind, "wordpiece" (None) or "bpe".
    lowercase: see `vocabulary`.
    length, pairs, short_seq_prob, pack, dupe_factor: see `masked_lm_rows.make_rows`.
    validation: share of the text for the split "val": whole chunks, if these are four or more, else documents of each
      chunk, at least one if there are two. Of it there is one copy.
    seed: of what is drawn.
    processes: how many; None: one for each core.
    runner: "local", or a runner of Apache Beam: "DirectRunner", "FlinkRunner", "SparkRunner", "DataflowRunner", ...
    beam_option: options of the runner, "NAME=VALUE" or "NAME".

  Raises:
    ValueError: an argument that makes no sense.
  """

  name: str
  data_dir: str
  source: str
  _: KW_ONLY
  vocab: str | None = None
  vocab_size: int | None = None
  tokenizer: str | None = None
  lowercase: bool | None = None
  documents: str | None = None
  sentences: str | None = None
  feature: str | None = None
  split: str | None = None
  length: int = 128
  pairs: bool = True
  short_seq_prob: float | None = None
  pack: bool = False
  dupe_factor: int = 1
  validation: float = 0.02
  seed: int = 0
  processes: int | None = None
  runner: str = "local"
  beam_option: Sequence[str] = ()

  def __post_init__(self) -> None:
    if not re.fullmatch(r"[A-Za-z][\w-]*", self.config):
      raise ValueError(f"{self.name!r} is no name for a corpus; wanted corpus/NAME, of letters, digits, - and _")
    if self.vocab is not None and (self.vocab_size, self.tokenizer) != (None, None):
      raise ValueError("vocab_size and tokenizer are for a vocabulary that is trained, but vocab names an existing one")
    if self.beam_option and self.runner == "local":
      given = [*self.beam_option]
      raise ValueError(f"beam_option is {given}, but the runner is 'local'; wanted a runner of Apache Beam")
    if not 0 <= self.validation < 1:
      raise ValueError(f"validation is {self.validation}; wanted a share, 0 <= validation < 1")
    if self.processes is not None and self.processes < 1:
      raise ValueError(f"processes is {self.processes}; wanted at least 1")
    vocabulary.check(self.size, self.kind)
    masked_lm_rows.check(**self.rows)

  @property
  def config(self) -> str:
    """NAME of "corpus/NAME"."""
    return self.name.partition("/")[2]

  @property
  def kind(self) -> str:
    """Of the tokenizer."""
    return self.tokenizer or "wordpiece"

  @property
  def size(self) -> int:
    """Of the vocabulary."""
    return self.vocab_size or VOCABULARY

  @property
  def rows(self) -> dict[str, Any]:
    """Keyword arguments of `masked_lm_rows.make_rows`."""
    return {key: getattr(self, key) for key in ("length", "pairs", "short_seq_prob", "pack", "dupe_factor")}
