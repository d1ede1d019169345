"""Batches that are loaded ahead."""

import threading
import time

import pytest

from train.prefetch import prefetch


def test_prefetch_keeps_the_order_and_stays_ahead():
  yielded = []

  def batches():
    for i in range(9):
      yielded.append(i)
      yield i

  out = prefetch(batches(), lambda i: 10 * i, ahead=2)
  assert next(out) == 0
  deadline = time.monotonic() + 10
  while len(yielded) < 4 and time.monotonic() < deadline:  # two wait, one is being put
    time.sleep(0.01)
  time.sleep(0.3)
  assert len(yielded) == 4
  assert list(out) == [10 * i for i in range(1, 9)]


def test_prefetch_raises_errors_of_its_thread_and_can_be_closed():
  def batches():
    yield 1
    raise ValueError("a corrupt image")

  out = prefetch(batches(), lambda i: i)
  assert next(out) == 1
  with pytest.raises(ValueError, match="a corrupt image"):
    next(out)
  before = threading.active_count()
  endless = prefetch(iter(int, 1), lambda i: i)
  next(endless)
  endless.close()
  assert threading.active_count() == before
