"""Text to rows of training: ours against a plain Python port of BERT's preparation; and the memory that it takes.

python tests/bench/bench_corpus.py [--rounds 3] [--gigabytes 0.05]

The port is of the description, with the tokenisation in Python that Hugging Face keeps (`BertTokenizerLegacy`), and it
does less: it neither masks nor writes. Ours reads the file, forgets all words before each round, and writes the shard.
Needs the extra [parity].
"""

import argparse
import functools
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import timing

from train.data.text import corpora as sources
from train.data.text import prepare_corpus, vocabulary
from train.data.text.corpora import TextFiles, TextRecords

LENGTH, SHORT = 128, 0.1


class Port:
  """The preparation as it is described, a token at a time: Devlin et al. 2019, A.2."""

  def __init__(self, vocab_size: str, seed: int):
    from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

    self.tokenizer, self.rng = BertTokenizerLegacy(vocab_size), random.Random(seed)

  def __call__(self, file: str) -> int:
    """Makes all examples of a file; returns how many."""
    documents = [[]]
    with open(file, encoding="utf-8") as lines:
      for line in lines:
        if not line.strip():
          documents.append([])
        elif tokens := self.tokenizer.tokenize(line.strip()):
          documents[-1].append(tokens)
    documents = [document for document in documents if document]
    self.rng.shuffle(documents)
    return sum(len(self.examples(documents, number)) for number in range(len(documents)))

  def examples(self, documents: list, number: int) -> list:
    """The examples of a document."""
    rng, document, room, found = self.rng, documents[number], LENGTH - 3, []
    wanted = rng.randint(2, room) if rng.random() < SHORT else room
    held, size, i = [], 0, 0
    while i < len(document):
      held.append(document[i])
      size += len(document[i])
      if i == len(document) - 1 or size >= wanted:
        middle = rng.randint(1, len(held) - 1) if len(held) > 1 else 1
        a = [token for sentence in held[:middle] for token in sentence]
        b, random_next = [], len(held) == 1 or rng.random() < 0.5
        if random_next:
          other = number
          for _ in range(10):
            if (other := rng.randint(0, len(documents) - 1)) != number:
              break
          for sentence in documents[other][rng.randint(0, len(documents[other]) - 1) :]:
            b.extend(sentence)
            if len(b) >= wanted - len(a):
              break
          i -= len(held) - middle
        else:
          b = [token for sentence in held[middle:] for token in sentence]
        while len(a) + len(b) > room:
          longer = a if len(a) > len(b) else b
          if rng.random() < 0.5:
            del longer[0]
          else:
            longer.pop()
        tokens = ["[CLS]", *a, "[SEP]", *b, "[SEP]"]
        kinds = [0] * (len(a) + 2) + [1] * (len(b) + 1)
        found.append((self.tokenizer.convert_tokens_to_ids(tokens), kinds, random_next))
        held, size = [], 0
      i += 1
    return found


def run_port(vocab_size: str, file: str) -> int:
  """In a process of its own."""
  return Port(vocab_size, 0)(file)


def run_ours(file: str, folder: str, words: vocabulary.Vocabulary, processes: int) -> int:
  """Makes a file's chunks into shards; returns the number of rows."""
  chunks = TextFiles(file).chunks()
  job = prepare_corpus.Job(TextFiles(file), folder, words.digest, len(chunks), dict(length=LENGTH))
  for number in range(len(chunks)):
    job.note(number).unlink(missing_ok=True)
  vars(prepare_corpus._HERE).clear()
  prepare_corpus._run_here(job, [*enumerate(chunks)], processes)
  return sum(json.loads(job.note(i).read_text())["train_rows"] for i in range(len(chunks)))


def memory(pid: int) -> int:
  """Bytes in memory of a process and of all that it began; what they share is counted in each."""
  parents, sizes = {}, {}
  for status in Path("/proc").glob("[0-9]*/status"):
    try:
      fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    except OSError:  # it ended
      continue
    if "VmRSS" in fields:
      parents[int(fields["Pid"])], sizes[int(fields["Pid"])] = int(fields["PPid"]), int(fields["VmRSS"].split()[0])
  family = {pid}
  while more := {child for child, parent in parents.items() if parent in family} - family:
    family |= more
  return 1024 * sum(sizes[one] for one in family if one in sizes)


def peak(command: list[str]) -> tuple[int, float]:
  """The most memory that a command takes, and its seconds."""
  start, most, process = time.perf_counter(), 0, subprocess.Popen(command, stdout=subprocess.DEVNULL)
  while process.poll() is None:
    most = max(most, memory(process.pid))
    threading.Event().wait(0.05)
  assert process.returncode == 0
  return most, time.perf_counter() - start


def main() -> None:
  """Prints rates and their ratios, and peaks of memory."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--gigabytes", type=float, default=0.05, help="of text, by which memory is measured; 0: none")
  options = parser.parse_args()
  cores = os.cpu_count()
  source = TextRecords("verses_en_es")
  documents = [document for chunk in source.chunks() for document in source.read(chunk)]
  text = "\n\n".join("\n".join(document) for document in documents) + "\n\n"
  with tempfile.TemporaryDirectory() as scratch:
    small, folder = Path(scratch) / "small.txt", Path(scratch) / "shards"
    small.write_text(text, encoding="utf-8")
    folder.mkdir()
    words = vocabulary.train_vocabulary([sentence for document in documents for sentence in document], 30_000)
    ids = words.tokenizer.get_vocab()
    (Path(scratch) / "vocab.txt").write_text("".join(f"{token}\n" for token in sorted(ids, key=ids.get)))
    words.save(folder)
    large = Path(scratch) / "large.txt"
    copies = 4 * cores
    large.write_text(text * copies, encoding="utf-8")
    counts = {}

    def count(name: str, function) -> None:
      counts[name] = function()

    with multiprocessing.get_context("spawn").Pool(cores) as pool:
      vocab_size = str(Path(scratch) / "vocab.txt")
      port = functools.partial(run_port, vocab_size)
      functions = {
        "port, one process": lambda: run_port(vocab_size, str(small)),
        "ours, one process": lambda: run_ours(str(small), str(folder), words, 1),
        f"port, {cores} processes": lambda: sum(pool.map(port, [str(small)] * cores, 1)),
        f"ours, {cores} processes": lambda: run_ours(str(large), str(folder), words, cores),
      }
      turns = {name: functools.partial(count, name, function) for name, function in functions.items()}
      seconds = timing.in_turns(turns, options.rounds)
    # Seconds for as much text: the larger text and the several files are parts of it.
    for name, times, parts in zip(seconds, seconds.values(), (1, 1, cores, copies), strict=True):
      seconds[name] = [second / parts for second in times]
      print(
        f"{name}: {counts[name] / statistics.median(times):,.0f} examples a second, "
        f"{parts * len(text.encode()) / statistics.median(times) / 1e6:.2f} MB of text a second"
      )
    one_port, one, all_port, every = seconds.values()
    print(f"one process against one: {timing.ratio(one_port, one)} times as fast")
    print(f"{cores} against {cores}: {timing.ratio(all_port, every)} times")
    print(f"{cores} against one of the port: {timing.ratio(one_port, every)} times")
    large.unlink()
    for gigabytes in (options.gigabytes / 10, options.gigabytes) if options.gigabytes else ():
      with large.open("w", encoding="utf-8") as file:
        for _ in range(max(1, round(gigabytes * 1e9 / len(text.encode())))):
          file.write(text)
      name = f"corpus/size{round(gigabytes * 1000)}"
      command = [sys.executable, "-m", "train", "prepare", name, "--data-dir", scratch, "--source", str(large)]
      most, took = peak(command)
      size, chunks = large.stat().st_size, len(TextFiles(str(large)).chunks())
      print(
        f"zoo prepare of {size / 1e9:.2f} GB in {chunks} chunks of {sources.CHUNK / 2**20:.0f} MB, vocabulary and all: "
        f"{took:.0f} s, {cores} processes take {most / 1e6:,.0f} MB of memory at most"
      )


if __name__ == "__main__":
  main()
