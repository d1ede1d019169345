"""A corpus of text to rows of training on disk: `zoo prepare corpus/NAME --source SOURCE --data-dir DIR`.

Each chunk of the text (`train.data.text.corpora`) becomes a shard of its own, drawn from (seed, number of the chunk)
alone. So the processes, or the workers of Apache Beam, share nothing; however many they are, the files are
bit-identical; and a preparation that was killed goes on with the chunks that are missing.
"""

import functools
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module

from train.data.text import corpora as sources
from train.data.text import masked_lm_rows, vocabulary
from train.data.text.corpora import Chunk, Source
from train.data.text.corpus_options import Preparation
from train.data.text.documents import Encoder
from train.data.text.masked_lm_rows import Rows
from train.data.text.tokenizers import single_threaded

DATASET = "corpus"
VERSION = "1.0.0"
# A vocabulary is learned from at most so many chunks, evenly spread: 100 MB.
SAMPLE = 25
# Validation has whole chunks if it has so many, else documents of every chunk.
WHOLE = 4
ARGUMENTS = "preparation.json"
# Rows compressed together take half the room, and are read at random as fast.
OPTIONS = "group_size:16"


@dataclass(frozen=True)
class Job:
  """What becomes of each chunk, for a process that may be on another machine, but sees the same folders.

  Attributes:
    source: what the chunks are of.
    folder: where the shards go.
    vocabulary: digest of the one in `folder`.
    chunks: how many there are.
    rows: keyword arguments of `masked_lm_rows.make_rows`.
    validation: share of the documents that is for validation.
    seed: of all draws.
  """

  source: Source
  folder: str
  vocabulary: str
  chunks: int
  rows: Mapping = field(default_factory=dict)
  validation: float = 0.0
  seed: int = 0

  @functools.cached_property
  def held_out(self) -> list[int]:
    """The chunks that are for validation as a whole, evenly spread."""
    count = round(self.validation * self.chunks)
    return [(2 * i + 1) * self.chunks // (2 * count) for i in range(count)] if count >= WHOLE else []

  def shards(self, number: int) -> dict[str, Path]:
    """The files that a chunk becomes, by split."""
    if held := self.held_out:
      splits = {"val": (held.index(number), len(held))} if number in held else {}
      before = sum(other < number for other in held)
      splits = splits or {"train": (number - before, self.chunks - len(held))}
    else:
      splits = {split: (number, self.chunks) for split in ("train", *["val"] * (self.validation > 0))}
    return {s: Path(self.folder) / f"{DATASET}-{s}.array_record-{i:05}-of-{n:05}" for s, (i, n) in splits.items()}

  def note(self, number: int) -> Path:
    """The file that marks a chunk as done, with its counts."""
    return Path(self.folder) / f"chunk-{number:05}.json"


# A thread's own encoder: a runner of Beam may have several threads, and an encoder learns words as it goes.
_HERE = threading.local()


def _encoder(folder: str, digest: str) -> Encoder:
  if vars(_HERE).get("digest") != digest:
    found = vocabulary.load_vocabulary(Path(folder) / vocabulary.FILES[0])
    if found.digest != digest:
      raise ValueError(f"{folder} has the vocabulary {found.digest}, but {digest} is wanted: another run changed it")
    _HERE.digest, _HERE.encoder = digest, Encoder(found)
  return _HERE.encoder


def make_chunk(job: Job, number: int, chunk: Chunk) -> None:
  """Reads a chunk and writes its shards, each under another name first; then the note that it is done."""
  encoder = _encoder(job.folder, job.vocabulary)
  rng = np.random.default_rng((job.seed, number))
  found = encoder(job.source.read(chunk))
  counts = dict(documents=len(found), empty_documents=found.empty, text_tokens=len(found.tokens))
  counts["unknown_tokens"] = int((found.tokens == encoder.vocabulary.unk).sum())
  files = job.shards(number)
  parts = {split: found for split in files}
  if len(files) == 2:
    held = round(job.validation * len(found))
    held = np.isin(np.arange(len(found)), rng.permutation(len(found))[: max(held, 1) if len(found) > 1 else 0])
    parts = {split: found.part(np.flatnonzero(held == (split == "val"))) for split in files}
  for split, path in files.items():
    options = {**job.rows, "dupe_factor": 1} if split == "val" else job.rows
    rows = masked_lm_rows.make_rows(parts[split], encoder.vocabulary, rng, **options)
    _write_shard(path, rows)
    counts |= {
      f"{split}_rows": len(rows),
      f"{split}_sequences": len(rows.ends),
      f"{split}_tokens": len(rows.tokens),
    }
  _replace(job.note(number), json.dumps(counts))


def serialise(rows: Rows) -> Iterator[bytes]:
  """Each row as TFDS stores it."""
  from tensorflow_datasets.proto import tf_example_pb2

  for example in rows.examples():
    message = tf_example_pb2.Example()
    for name, values in example.items():
      message.features.feature[name].int64_list.value.extend(values.tolist())
    yield message.SerializeToString(deterministic=True)


def _write_shard(path: Path, rows: Rows) -> None:
  beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
  writer = array_record_module.ArrayRecordWriter(str(beside), OPTIONS)
  for record in serialise(rows):
    writer.write(record)
  writer.close()
  beside.replace(path)


def _replace(path: Path, text: str) -> None:
  """Writes a file that is whole or not there."""
  beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
  beside.write_text(text, encoding="utf-8")
  beside.replace(path)


def prepare_corpus(name: str, data_dir: str, source: str, **kwargs: Any) -> str:
  """Makes rows and a vocabulary of a text corpus; returns the folder. An interrupted preparation is continued.

  Args:
    name, data_dir, source, **kwargs: see `train.data.text.corpus_options.Preparation`.

  Raises:
    ValueError: an argument that makes no sense; text that is not UTF-8; no text; the corpus exists already; it was
      begun with other arguments.
  """
  options = Preparation(name, data_dir, source, **kwargs)
  final = Path(options.data_dir) / DATASET / options.config / VERSION
  if final.exists():
    raise ValueError(f"{final} exists already; delete it to make another one")
  text = sources.make_source(
    options.source, options.documents, options.sentences, options.feature, options.split, options.data_dir
  )
  given = vocabulary.load_vocabulary(options.vocab, options.lowercase) if options.vocab is not None else None
  chunks = text.chunks()
  if not chunks:
    raise ValueError(f"{options.source} has no text")
  folder = final.with_name(f"{VERSION}.incomplete")
  arguments = {
    "source": text.describe(),
    "chunks": len(chunks),
    "chunk_places": sources.fingerprint(chunks),
    "vocabulary": given.digest if given else dict(size=options.size, kind=options.kind, lowercase=options.lowercase),
    **options.rows,
    "validation": options.validation,
    "seed": options.seed,
  }
  _begin(folder, arguments)
  words = _vocabulary(folder, given, _Sentences(text, chunks), options.size, options.kind, options.lowercase)
  job = Job(text, str(folder.absolute()), words.digest, len(chunks), options.rows, options.validation, options.seed)
  missing = [(i, chunk) for i, chunk in enumerate(chunks) if not job.note(i).exists()]
  if options.runner == "local":
    _run_here(job, missing, min(options.processes or os.cpu_count() or 1, len(missing)))
  else:
    _run_beam(job, missing, options.runner, options.beam_option)
  _finish(job, options.config, arguments)
  folder.replace(final)
  return str(final)


def _begin(folder: Path, arguments: Mapping) -> None:
  """Notes the arguments; those of a preparation that goes on have to be the same."""
  path = folder / ARGUMENTS
  if not path.exists():
    folder.mkdir(parents=True, exist_ok=True)
    _replace(path, json.dumps(arguments, indent=2))
    return
  before = json.loads(path.read_text(encoding="utf-8"))
  after = json.loads(json.dumps(arguments))
  if changed := [key for key in after if key not in before or before[key] != after[key]]:
    was = "; ".join(f"{key} was {before.get(key)!r}, is {after[key]!r}" for key in changed)
    raise ValueError(f"{folder} was begun with other arguments: {was}. To begin again, delete it")


class _Sentences:
  """Sentences of some chunks, evenly spread, which can be gone through twice and are not held in memory."""

  def __init__(self, source: Source, chunks: Sequence[Chunk]) -> None:
    self._source, self._chunks = source, [chunks[i] for i in sources.sample(len(chunks), SAMPLE)]

  def __iter__(self) -> Iterator[str]:
    for chunk in self._chunks:
      for document in self._source.read(chunk):
        yield from document


def _vocabulary(folder, given, lines, size, kind, lowercase) -> vocabulary.Vocabulary:
  path = folder / vocabulary.FILES[0]
  if not path.exists():
    made = given or vocabulary.train_vocabulary(lines, size, kind, lowercase)
    _replace(path, made.tokenizer.to_str())
  return vocabulary.load_vocabulary(path)


def _run_here(job: Job, missing: Sequence[tuple[int, Chunk]], processes: int) -> None:
  if processes <= 1:
    with single_threaded():
      for done, (number, chunk) in enumerate(missing, 1):
        make_chunk(job, number, chunk)
        _report(job, len(missing) - done)
    return
  context = multiprocessing.get_context("spawn")
  with futures.ProcessPoolExecutor(processes, context, _start) as pool:
    left, running = iter(missing), set()
    try:
      # No more than a few are handed out, so that an error is soon known, and a queue does not grow with the corpus.
      for done in range(-2 * processes, len(missing)):
        if done >= 0:
          ready, running = futures.wait(running, return_when=futures.FIRST_COMPLETED)
          first = ready.pop()
          running |= ready
          first.result()
          _report(job, len(missing) - done - 1)
        if item := next(left, None):
          running.add(pool.submit(make_chunk, job, *item))
    except futures.process.BrokenProcessPool as error:
      raise ValueError("a process was killed, perhaps out of memory; the same command continues") from error
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise


def _start() -> None:
  """In a new process: one thread, as there is a process for each core; and it ends when the one that began it does."""
  os.environ["TOKENIZERS_PARALLELISM"] = "false"
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and reports it
  parent = multiprocessing.parent_process()
  assert parent is not None
  threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _report(job: Job, left: int) -> None:
  if sys.stderr.isatty():
    print(f"\r{job.chunks - left} of {job.chunks} chunks", end="" if left else "\n", file=sys.stderr, flush=True)


def _run_beam(job: Job, missing: Sequence[tuple[int, Chunk]], runner: str, options: Sequence[str]) -> None:
  try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
  except ImportError as error:
    raise ValueError(f"the runner {runner!r} needs Apache Beam: pip install 'transformer-zoo[beam]'") from error
  options = PipelineOptions([f"--{option}" for option in options])
  try:
    pipeline = beam.Pipeline(runner=runner, options=options)
  except ImportError as error:
    raise ValueError(f"the runner {runner!r} needs more than is installed: {error}") from error
  with pipeline:
    # Reshuffled, or a runner would make one piece of work of all that is created.
    items = pipeline | "Chunks" >> beam.Create(missing, reshuffle=False) | beam.Reshuffle()
    items | "Rows" >> beam.Map(functools.partial(_make_item, job))


def _make_item(job: Job, item: tuple[int, Chunk]) -> None:
  make_chunk(job, *item)


def _finish(job: Job, config: str, arguments: Mapping) -> None:
  """Writes the metadata of TFDS and the counts."""
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core.dataset_info import DatasetIdentity

  notes = [json.loads(job.note(i).read_text(encoding="utf-8")) for i in range(job.chunks)]
  counts = Counter()
  for note in notes:
    counts.update(note)
  ints = tfds.features.Tensor(shape=(None,), dtype=np.int32)
  info = tfds.core.DatasetInfo(
    builder=DatasetIdentity(
      name=DATASET, version=tfds.core.Version(VERSION), data_dir=job.folder, module_name="", config_name=config
    ),
    description="Rows of tokens to pretrain BERT on.",
    features=tfds.features.FeaturesDict(
      {key: ints for key in ("input_ids", "ends", "second_starts", "next_sentence_label")}
    ),
    disable_shuffling=True,
  )
  info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
  template = tfds.core.ShardedFileTemplate(
    dataset_name=DATASET, data_dir=job.folder, split=None, filetype_suffix="array_record"
  )
  splits = []
  for split in ("train", "val"):
    shards = [(job.shards(i)[split], notes[i][f"{split}_rows"]) for i in range(job.chunks) if split in job.shards(i)]
    if any(length for _, length in shards):
      splits.append(
        tfds.core.SplitInfo(
          name=split,
          shard_lengths=[length for _, length in shards],
          num_bytes=sum(path.stat().st_size for path, _ in shards),
          filename_template=template.replace(split=split),
        )
      )
  if not splits:
    raise ValueError(f"there is no text in {job.source.describe()}: all documents are empty")
  info.set_splits(tfds.core.splits.SplitDict(splits))
  info.write_to_directory(job.folder)
  _replace(Path(job.folder) / ARGUMENTS, json.dumps({**arguments, "counts": counts}, indent=2))
  leftover = Path(job.folder).glob("*.tmp")  # of processes that were killed
  for path in (*map(job.note, range(job.chunks)), *leftover):
    path.unlink()
