"""Batches that are loaded and put on the devices while the step before them runs."""

import threading
from collections.abc import Callable, Generator, Iterable
from queue import Full, Queue


def prefetch(batches: Iterable[dict], put: Callable[[dict], dict], ahead: int = 2) -> Generator[dict]:
  """Loads batches and starts their transfer in a thread, up to `ahead` batches before they are used.

  So the step waits neither for the pipeline nor for copies. An error in the thread is raised here.
  """
  queue: Queue = Queue(ahead)
  stopped = threading.Event()

  def hand_over(kind: str, value) -> None:
    while not stopped.is_set():
      try:
        return queue.put((kind, value), timeout=0.1)
      except Full:
        continue

  def work() -> None:
    try:
      for batch in batches:
        hand_over("batch", put(batch))
        if stopped.is_set():
          return
      hand_over("end", None)
    except BaseException as error:
      hand_over("error", error)

  thread = threading.Thread(target=work, daemon=True)
  thread.start()
  try:
    while True:
      kind, value = queue.get()
      if kind == "error":
        raise value
      if kind == "end":
        return
      yield value
  finally:
    stopped.set()
    thread.join()
