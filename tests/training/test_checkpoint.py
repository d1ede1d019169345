"""Checkpoints: what is kept, and what readers leave unchanged. Runs that resume: tests/training/test_loop.py."""

import jax.numpy as jnp
import numpy as np
import pytest
from support import raises

from train.checkpoint import Checkpoints
from train.step import State


def state(step: int) -> State:
  return State(jnp.int32(step), {"w": jnp.full((3,), step, jnp.float32)}, {}, (), None, jnp.int32(0))


def save(checkpoints, accuracies: dict):
  for step, accuracy in accuracies.items():
    metrics = {} if accuracy is None else {"val/accuracy": accuracy}
    checkpoints.save(state(step), dict(step=step), metrics)
    checkpoints.wait()


@pytest.mark.parametrize(("mode", "best"), [("max", 2), ("min", 3)])
def test_the_last_and_the_best_are_kept(tmp_path, mode, best):
  """Also over a restart, and with checkpoints between that were not evaluated."""
  first = Checkpoints(tmp_path, max_to_keep=1, best_metric="val/accuracy", best_mode=mode)
  save(first, {1: 0.5, 2: 0.9, 3: 0.1, 4: None})
  first.close()
  second = Checkpoints(tmp_path, max_to_keep=1, best_metric="val/accuracy", best_mode=mode)
  save(second, {5: 0.6, 6: None, 7: 0.7, 8: None})
  second.close()
  kept = Checkpoints(tmp_path, read_only=True).steps
  assert best in kept and 8 in kept
  assert len(kept) <= 3  # the one before the last goes when the next is written
  assert Checkpoints(tmp_path, read_only=True).restore(state(0))[0].params["w"][0] == 8


def test_reading_changes_nothing(tmp_path):
  writer = Checkpoints(tmp_path, max_to_keep=2)
  save(writer, {1: None, 2: None})
  writer.close()
  half = tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp"
  half.mkdir()
  for path in (tmp_path / "checkpoints" / "2" / "state").rglob("d/*"):
    path.write_bytes(b"")
  before = sorted(tmp_path.rglob("*"))
  notes = []
  restored, meta = Checkpoints(tmp_path, read_only=True, note=notes.append).restore(state(0))
  np.testing.assert_array_equal(restored.params["w"], [1, 1, 1])
  assert meta["step"] == 1 and "step 2" in notes[0]
  assert sorted(tmp_path.rglob("*")) == before


def test_invalid_settings(tmp_path):
  with raises(ValueError, "mode", "'mac'", "'max'"):
    Checkpoints(tmp_path, best_mode="mac")
  with raises(ValueError, "max_to_keep", 0, 1):
    Checkpoints(tmp_path, max_to_keep=0)
