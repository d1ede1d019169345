"""Iterators over batches that threads or worker processes make ahead of time."""

import multiprocessing
import os
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from multiprocessing import connection, resource_tracker

import grain
import numpy as np
from absl import flags

Batch = dict[str, np.ndarray]


def check_share(batch_size: int, process_index: int, process_count: int) -> None:
  """Raises ValueError where the processes cannot share a batch evenly."""
  if batch_size < 1 or batch_size % process_count:
    wanted = f"wanted a multiple of {process_count}"
    raise ValueError(f"batch_size={batch_size} cannot be shared by {process_count} processes: {wanted}")
  if not 0 <= process_index < process_count:
    raise ValueError(f"process_index={process_index} of {process_count} processes")


class Batches(Iterator[Batch]):
  """An iterator over batches; `close()`, its deletion, or the end of the program ends its threads and workers."""

  def __init__(self, work: grain.IterDataset, chunks: int) -> None:
    # In a list, so that `close` can drop it: Grain complains of iterators that outlive their modules.
    self._iterator = [iter(work.batch(chunks, batch_fn=_concatenate) if chunks > 1 else work)]
    self._finalize = weakref.finalize(self, _close, self._iterator)

  def __next__(self) -> Batch:
    if not self._iterator:
      raise StopIteration
    return next(self._iterator[0])

  def close(self) -> None:
    """Ends the iteration."""
    self._finalize()


def _close(iterator: list[grain.DatasetIterator]) -> None:
  iterator.pop().close()


def start_workers(work: grain.IterDataset, count: int) -> grain.IterDataset:
  """Lets worker processes do the work, which ends with this process even if that is killed."""
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # Grain reads its flags, which only programs run by absl have parsed
  # Images that a worker had ready when it was ended are freed by a process of Python's, which would warn of them.
  sys.warnoptions.append("ignore:resource_tracker:UserWarning")
  resource_tracker.ensure_running()
  sys.warnoptions.pop()
  options = grain.MultiprocessingOptions(count, per_worker_buffer_size=2)
  return work.mp_prefetch(options, worker_init_fn=_end_with_parent)


def _end_with_parent(index: int, count: int) -> None:
  """In a worker: a thread that waits for the parent's end, which a worker that waits for orders would not notice."""
  del index, count

  def watch():
    if parent := multiprocessing.parent_process():
      connection.wait([parent.sentinel])
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


def _concatenate(chunks: Sequence[Batch]) -> Batch:
  return {key: np.concatenate([chunk[key] for chunk in chunks]) for key in chunks[0]}
