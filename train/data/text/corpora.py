"""Sources of text: files, folders and data sets of TFDS, to documents, each a list of sentences; chunk by chunk.

A chunk is what one process reads at a time, about 4 MB: pieces of files that begin and end where documents do, or
records of a data set. Which chunks there are is found without reading the text, and is the same every time.
"""

import abc
import functools
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

CHUNK = 4 * 2**20
DOCUMENTS = ("blank", "file")
SENTENCES = ("line", "split")
# Where in a data set that comes with the code the text is, and the feature that begins alike in all of a document.
KNOWN = {"verses_en_es": dict(feature="translation/en", document="reference", sentences="line")}

_BLANK = re.compile(r"\n\s*\n")
_BLANK_BYTES = re.compile(rb"\n[ \t\r\f\v]*\n")
# A full stop, what may follow it, and the space; or a full stop of Chinese and Japanese, which has no space.
_STOP = re.compile(r"[.!?…][\"'”’»)\]]*\s+|[。！？][」』”’）]*\s*")
_OPENING = "\"'“‘«¿¡([—- "
_ABBREVIATIONS = r"Mr|Mrs|Ms|Dr|St|Prof|Gen|Rev|Col|Capt|Lt|cf|vs|e\.g|i\.e|vol|pp"
_NO_STOP = re.compile(rf"(?:^|[\s(\[\"“‘])(?:[^\W\d_a-z]|{_ABBREVIATIONS})\.$")


class Part(NamedTuple):
  """From a byte of a file up to another; or from a record of a split."""

  name: str
  begin: int
  end: int


Chunk = tuple[Part, ...]


def split_sentences(text: str) -> list[str]:
  """Running text to sentences.

  One ends at . ! ? or …, with quotes and brackets that close behind it, if space follows and then no lower-case
  letter; but not at the full stop of an initial or of a few English abbreviations. And it ends at 。！？. What is
  between words becomes one space.
  """
  text, found, begin = " ".join(text.split()), [], 0
  for stop in _STOP.finditer(text):
    rest = text[stop.end() : stop.end() + 4].lstrip(_OPENING)
    if rest[:1].islower() and stop[0][0] not in "。！？":
      continue
    if stop[0][0] == "." and _NO_STOP.search(text[max(begin, stop.start() - 8) : stop.start() + 1]):
      continue
    found.append(text[begin : stop.end()].rstrip())
    begin = stop.end()
  return [*found, *([text[begin:]] if begin < len(text) else [])]


def _sentences(text: str, how: str | None) -> list[str]:
  """Of one document. A blank line ends a sentence in any case."""
  if how == "line":
    return [words for line in text.split("\n") if (words := " ".join(line.split()))]
  return [*itertools.chain.from_iterable(map(split_sentences, _BLANK.split(text)))]


@dataclass(frozen=True)
class Source(abc.ABC):
  """What there is to read. `chunks` plans, `read` gives the documents of a chunk; an empty document has no sentence."""

  @abc.abstractmethod
  def chunks(self) -> list[Chunk]:
    """All of the text, in order."""

  @abc.abstractmethod
  def read(self, chunk: Chunk) -> list[list[str]]:
    """The documents of a chunk; words are separated by single spaces."""

  def describe(self) -> dict:
    """What it is, as JSON has it."""
    return asdict(self)

  def __getstate__(self) -> dict:
    # What was opened stays here: another process opens its own.
    return asdict(self)


@dataclass(frozen=True)
class TextFiles(Source):
  """A text file, or all files of a folder and of those in it, in the order of their paths; without dot files.

  Attributes:
    path: of the file or folder.
    documents: "blank": a blank line ends a document. "file": a file is one.
    sentences: "line": each line is one. "split": see `split_sentences`.

  A document that would make a chunk of more than twice the size is split at a line's end, or where there is none at a
  space.

  Raises:
    ValueError: no such file or folder, or no file in it; one of the words is unknown.
  """

  path: str
  documents: str = "blank"
  sentences: str = "line"

  def __post_init__(self) -> None:
    _check_word("documents", self.documents, DOCUMENTS)
    _check_word("sentences", self.sentences, SENTENCES)
    if not self._files:
      raise ValueError(f"{self.path} is no text file, and no folder with files in it")

  @functools.cached_property
  def _files(self) -> list[Path]:
    path = Path(self.path)
    if path.is_file():
      return [path]
    inside = (file.relative_to(path) for file in path.rglob("*") if file.is_file())
    return [path / file for file in sorted(inside) if not any(part.startswith(".") for part in file.parts)]

  def chunks(self) -> list[Chunk]:
    found, parts, held = [], [], 0

    def close() -> None:
      nonlocal parts, held
      if parts:
        found.append(tuple(parts))
      parts, held = [], 0

    for file in self._files:
      size, begin = file.stat().st_size, 0
      if self.documents == "file" and held + size > CHUNK:
        close()
      while True:
        end = size
        # A file that is a document is split only if it has to be.
        if size - begin > (CHUNK - held if self.documents == "blank" else 2 * CHUNK):
          end = self._split_at(file, begin + CHUNK - held)
        parts.append(Part(str(file), begin, end))
        held, begin = held + end - begin, end
        if held >= CHUNK:
          close()
        if begin == size:
          break
    close()
    return found

  def _split_at(self, file: Path, at: int) -> int:
    """The first position from this one on where the file can be split."""
    with file.open("rb") as raw:
      raw.seek(at)
      text, more = b"", 2**16
      while len(text) < CHUNK and (read := raw.read(more)):
        text, more = text + read, 2 * more
        if self.documents == "blank" and (blank := _BLANK_BYTES.search(text)):
          return at + blank.end()
        if self.documents == "file" and b"\n" in text:
          break
      if len(text) < CHUNK and not raw.read(1) and self.documents == "blank":
        return at + len(text)  # the last document
    for end in (b"\n", b" "):
      if end in text:
        return at + text.index(end) + 1
    return at + next((i for i, byte in enumerate(text) if byte & 0xC0 != 0x80), len(text))

  def read(self, chunk: Chunk) -> list[list[str]]:
    """Raises ValueError for text that is not UTF-8; the file and the byte are named, from 0."""
    documents = []
    for file, begin, end in chunk:
      with open(file, "rb") as raw:
        raw.seek(begin)
        encoded = raw.read(end - begin)
      try:
        text = encoded.decode("utf-8")
      except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8: byte {begin + error.start:,} is {encoded[error.start]:#x}") from error
      text = text.removeprefix("\ufeff") if not begin else text
      texts = _BLANK.split(text) if self.documents == "blank" else [text]
      found = [_sentences(one, self.sentences) for one in texts]
      # An empty text between blank lines is no document, but an empty file is an empty document.
      documents += [one for one in found if one] or ([] if begin else [[]])
    return documents


@dataclass(frozen=True)
class TextRecords(Source):
  """A split of a data set of TFDS, prepared or bundled; an example is a document.

  Attributes:
    dataset: its name, such as "wikipedia/20230601.en" or "lm1b".
    split: of it; "train[:10%]" too.
    data_dir: where prepared sets are; by default where TFDS keeps them.
    feature: the text, such as "translation/en". None: "text", or the only text there is.
    sentences: see `TextFiles`. None: "split".
    document: a feature whose value, up to a colon, is the same in all examples of a document, which are neighbours and
      of which each is then a part of it. None: an example is one.

  Raises:
    ValueError: no such set or split, it is not prepared, no such feature.
  """

  dataset: str
  split: str = "train"
  data_dir: str | None = None
  feature: str | None = None
  sentences: str | None = None
  document: str | None = None

  def __post_init__(self) -> None:
    if self.dataset in KNOWN:
      for name, value in KNOWN[self.dataset].items():
        if getattr(self, name) is None:
          object.__setattr__(self, name, value)
    if self.sentences is None:
      object.__setattr__(self, "sentences", "split")
    _check_word("sentences", self.sentences, SENTENCES)
    texts = [*_text_features(self._builder.info.features)]
    if self.feature is None:
      if "text" not in texts and len(texts) != 1:
        raise ValueError(f"{self.dataset!r} has not one text; wanted a feature of {', '.join(texts) or 'another set'}")
      object.__setattr__(self, "feature", "text" if "text" in texts else texts[0])
    for name in filter(None, (self.feature, self.document)):
      _check_word(f"the text of {self.dataset!r}", name, texts)

  @functools.cached_property
  def _builder(self):
    from train.data import array_record  # slow to import, and not needed for files

    return array_record.open_builder(self.dataset, self.data_dir)

  @functools.cached_property
  def _records(self):
    from train.data import array_record

    names = [*filter(None, (self.feature, self.document))]

    class Texts(array_record.Records):
      """The texts of an example."""

      def parse(self, values: Mapping) -> tuple[bytes, ...]:
        return tuple(values[name].bytes_list.value[0] for name in names)

    return Texts(self.dataset, self.split, self.data_dir, self._builder)

  def chunks(self) -> list[Chunk]:
    count = len(self._records)
    info = self._builder.info.splits[re.split(r"\W", self.split)[0]]
    each = max(1, CHUNK * info.num_examples // max(info.num_bytes, 1))
    firsts = [*range(0, count, each), count]
    return [(Part(self.split, *ends),) for ends in itertools.pairwise(firsts)]

  def read(self, chunk: Chunk) -> list[list[str]]:
    """Raises ValueError for text that is not UTF-8; the example is named, and its file."""
    ((_, begin, end),) = chunk
    if not self.document:
      return [self._decoded(i, record[0]) for i, record in enumerate(self._records.span(begin, end), begin)]
    # A document belongs to the chunk in which it begins.
    documents, last = [], next(map(self._name, self._records.span(begin - 1, begin)), None) if begin else None
    for i, record in enumerate(self._records.span(begin, len(self._records)), begin):
      if (name := self._name(record)) != last:
        if i >= end:
          break
        documents.append([])
      if documents:
        documents[-1] += self._decoded(i, record[0])
      elif i >= end:
        break
      last = name
    return documents

  def _decoded(self, index: int, text: bytes) -> list[str]:
    try:
      return _sentences(text.decode(), self.sentences)
    except UnicodeDecodeError as error:
      raise ValueError(f"a text that is not UTF-8: {self._records.where(index)}: {error}") from error

  @staticmethod
  def _name(record: Sequence[bytes]) -> bytes:
    return record[1].rpartition(b":")[0]


def _text_features(features, prefix: str = "") -> Iterator[str]:
  import tensorflow_datasets as tfds

  if isinstance(features, tfds.features.Text):
    yield prefix
  elif isinstance(features, tfds.features.FeaturesDict):
    for name, feature in features.items():
      yield from _text_features(feature, f"{prefix}/{name}" if prefix else name)


def _check_word(what: str, word: str | None, known: Sequence[str]) -> None:
  if word not in known:
    from zoo.errors import nearest  # imports JAX, which worker processes do not need

    raise ValueError(f"{what} is {word!r}{nearest(str(word), known)}")


def make_source(
  source: str,
  documents: str | None = None,
  sentences: str | None = None,
  feature: str | None = None,
  split: str | None = None,
  data_dir: str | None = None,
) -> Source:
  """A file or folder if there is one of this name, else a data set; for the arguments see the two.

  Raises:
    ValueError: there is neither; an argument that is for the other.
  """
  options = dict(documents=documents, sentences=sentences, feature=feature, split=split)
  given = {name: value for name, value in options.items() if value is not None}
  files = Path(source).exists()
  if wrong := [name for name in (("feature", "split") if files else ("documents",)) if name in given]:
    what = "a data set, but this is a file or folder" if files else "text files, but there is none of this name"
    raise ValueError(f"--{wrong[0]} is for {what}: {source}")
  if files:
    return TextFiles(str(Path(source).absolute()), **given)
  if re.search(r"\.\w+$|^[./~]|/$", source) and not re.match(r"[a-z]\w*/", source):
    raise ValueError(f"there is no file or folder {source!r}")
  try:
    return TextRecords(source, data_dir=data_dir, **given)
  except ValueError as error:
    raise ValueError(f"{source!r} is neither a file or folder nor a data set to read: {error}") from error


def fingerprint(chunks: Sequence[Chunk]) -> str:
  """Of the positions of all chunks, in 16 hexadecimal digits: files of other sizes have others."""
  return hashlib.sha256(json.dumps(chunks).encode()).hexdigest()[:16]


def sample(count: int, most: int) -> list[int]:
  """At most so many of the numbers below `count`, evenly spread."""
  return [i * count // most for i in range(most)] if count > most else [*range(count)]
