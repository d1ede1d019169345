"""Parallel text on disk: its languages, its tokenizer, and its pairs, for `train.data.text.seq2seq`."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import tensorflow_datasets as tfds
from tokenizers import Tokenizer

from train.data import array_record
from train.data.text import files
from train.data.text import tokenizers as tokenizers
from train.data.text.seq2seq import Seq2Seq
from zoo.errors import nearest

# A tokenizer learns from at most so many pairs, evenly spread over the training split: more change it little.
SAMPLE = 1_000_000
VOCABULARY = 32_000


def languages(features: tfds.features.FeatureConnector) -> dict[str, str]:
  """The languages that a set has its texts in, and the names under which TFDS stores them; none, if it has none."""
  if isinstance(features, tfds.features.Translation):
    return {language: language for language in features}
  if isinstance(features, tfds.features.FeaturesDict):
    for name, feature in features.items():
      if isinstance(feature, tfds.features.Translation):
        return {language: f"{name}/{language}" for language in feature}
  return {}


class Lines(array_record.Records):
  """A split of a translation set: `lines[i]` is the text in each of the wanted languages, as UTF-8."""

  def __init__(
    self, dataset: str, split: str, data_dir: str | None, builder: tfds.core.DatasetBuilder, wanted: Sequence[str]
  ) -> None:
    known = languages(builder.info.features)
    if not known:
      raise ValueError(f"{dataset!r} has no translations: its features are {builder.info.features}")
    if unknown := [language for language in wanted if language not in known]:
      raise ValueError(f"{dataset!r} has no language {unknown[0]!r}{nearest(unknown[0], known)}")
    self._names = [known[language] for language in wanted]
    super().__init__(dataset, split, data_dir, builder)

  def parse(self, values: Mapping) -> tuple[bytes, ...]:
    """The texts of an example."""
    return tuple(values[name].bytes_list.value[0] for name in self._names)

  def texts(self, step: int = 1) -> Iterator[tuple[str, ...]]:
    """The texts of every `step`-th example, in order.

    Raises:
      ValueError: a text that is not UTF-8; the file is named.
    """
    for i, raw in enumerate(itertools.islice(self, 0, None, step)):
      try:
        yield tuple(text.decode().strip() for text in raw)
      except UnicodeDecodeError as error:
        raise ValueError(f"a text that is not UTF-8: {self.where(i * step)}: {error}") from error


def lacks_tokenizer(builder: tfds.core.DatasetBuilder) -> bool:
  """Whether a set on disk has translations and no tokenizer yet, as if its preparation had been interrupted."""
  return bool(languages(builder.info.features)) and not (Path(builder.data_path) / tokenizers.FILE).exists()


def prepare_tokenizer(
  dataset: str, data_dir: str | None, builder: tfds.core.DatasetBuilder, vocab_size: int | None, kind: str | None
) -> None:
  """Trains the tokenizer of a translation set on all its languages; an existing one is kept.

  Args:
    dataset: its name. data_dir: where it is. builder: of it; a set without translations needs no tokenizer.
    vocab_size: None: 32,000. kind: None: "bpe".

  Raises:
    ValueError: a size or kind is given, and the set has no translations or has a tokenizer already.
  """
  given, known = (vocab_size, kind) != (None, None), languages(builder.info.features)
  path = Path(builder.data_path) / tokenizers.FILE
  if not known:
    if given:
      raise ValueError(f"{dataset!r} has no translations, so it has no tokenizer")
    return
  if path.exists():
    if given:
      raise ValueError(f"{path} exists already; delete it to make another one")
    return
  lines = Lines(dataset, "train", data_dir, builder, list(known))
  texts = itertools.chain.from_iterable(lines.texts(max(1, -(-len(lines) // SAMPLE))))
  tokenizers.save(tokenizers.train_tokenizer(texts, vocab_size or VOCABULARY, kind or "bpe"), path.parent)


@dataclasses.dataclass(frozen=True)
class Translation(Seq2Seq):
  """Pairs of texts that translate each other: what `config.data = dict(name="translation", ...)` makes.

  A pair with no text on one side is left out, in training and in evaluation; see `counts`.

  Attributes:
    dataset: "verses_en_es" (bundled), "parallel_text/en-es" (local files), or any translation set of TFDS.
    source: language to translate from.
    target: language to translate to.
    train_split: what to train on.
    eval_split: what to evaluate on.
    data_dir: where prepared sets are; by default where TFDS keeps them.
    source_length: tokens in a row of sources, at most, </s> included.
    target_length: the same of targets.
    batching: what is in a row in training. "pad": one pair and padding. "bucket": the same, but pairs of similar
      length are together in a batch, whose length is one of a few. "pack": as many pairs as there is room for.
    buckets: how many lengths there are; each is a program to compile.
    too_long: "drop" leaves training pairs above the limits out, "truncate" truncates them. In evaluation they are
      truncated.
    lowercase: make all text lower-case, references too.
    word_vocab_size: tokens of a word-level tokenizer, trained on the training split, in place of the set's own; 0 for
      that.
    copy_slots: how many words of a source that are none of a word-level tokenizer's get a token of their own, from V
      on, by their first occurrence; in the target too. For a model that copies them (`zoo.layers.pointer`).
    train_targets: a file with a line for each example of the training split, in the order on disk, to be learned in
      the place of its own target, such as a teacher's translations (sequence-level distillation; Kim & Rush 2016,
      3.2). A pair whose line is empty is left out.

  Raises:
    ValueError: any of the above is not what it should be, before anything is read.
  """

  dataset: str
  source: str = "en"
  target: str = "es"
  train_split: str = "train"
  eval_split: str = "val"
  data_dir: str | None = None
  source_length: int = 128
  target_length: int = 128
  batching: str = "bucket"
  buckets: int = 4
  too_long: str = "drop"
  lowercase: bool = False
  word_vocab_size: int = 0
  copy_slots: int = 0
  train_targets: str = ""

  def __post_init__(self) -> None:
    super().__post_init__()
    self._check_numbers(dict(word_vocab_size=0))
    if self.source == self.target:
      raise ValueError(f"data.source and data.target are both {self.source!r}; wanted two languages")

  @functools.cached_property
  def _builder(self) -> tfds.core.DatasetBuilder:
    return array_record.open_builder(self.dataset, self.data_dir)

  @functools.cached_property
  def tokenizer(self) -> Tokenizer:
    """The tokenizer of the set, which `zoo prepare` trained, or a word-level one, where `word_vocab_size` is set."""
    if self.word_vocab_size:
      return tokenizers.train_tokenizer(
        itertools.chain.from_iterable(self.texts(self.train_split)), self.word_vocab_size, "word"
      )
    wanted = Lines(self.dataset, self.train_split, self.data_dir, self._builder, (self.source, self.target))
    path = Path(self._builder.data_path) / tokenizers.FILE
    if not path.exists():
      raise ValueError(
        f"{path.parent} has no {path.name}. To train it: zoo prepare {wanted.dataset} --data-dir "
        f"{self.data_dir or tfds.core.constants.DATA_DIR}"
      )
    return tokenizers.load(path)

  def clean(self, text: str) -> str:
    """A text as the model has learned to read it."""
    return text.lower() if self.lowercase else text

  def texts(self, split: str) -> Iterator[tuple[str, str]]:
    """(source, target) of every example of a split, in the order on disk."""
    lines = Lines(self.dataset, split, self.data_dir, self._builder, (self.source, self.target))
    for pair in lines.texts():
      yield tuple(map(self.clean, pair))

  def train_texts(self) -> Iterator[tuple[str, str]]:
    """(source, target) of every training example, in the order on disk, with the targets of `train_targets`.

    Raises:
      ValueError: the file cannot be read, or has not a line for each example; both numbers are named.
    """
    pairs = self.texts(self.train_split)
    if not self.train_targets:
      return pairs
    try:
      given = [self.clean(line.strip()) for line in files.lines(Path(self.train_targets))]
    except OSError as error:
      raise ValueError(f"cannot read data.train_targets: {error}") from error
    sources = [source for source, _ in pairs]
    if len(given) != len(sources):
      raise ValueError(
        f"{self.train_targets} has {len(given):,} lines, {self.dataset!r} {self.train_split!r} {len(sources):,} "
        "examples; wanted equally many in data.train_targets, since each line is the target of the example of that "
        "number"
      )
    return zip(sources, given, strict=True)
