"""Checkpoints: what is kept, and what those who only look may not touch. Runs that resume: tests/test_loop.py."""

import jax.numpy as jnp
import numpy as np
import pytest

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
  first = Checkpoints(tmp_path, keep=1, best="val/accuracy", mode=mode)
  save(first, {1: 0.5, 2: 0.9, 3: 0.1, 4: None})
  first.close()
  second = Checkpoints(tmp_path, keep=1, best="val/accuracy", mode=mode)
  save(second, {5: 0.6, 6: None, 7: 0.7, 8: None})
  second.close()
  kept = Checkpoints(tmp_path, read_only=True).steps
  assert best in kept and 8 in kept
  assert len(kept) <= 3  # the one before the last goes when the next is written
  assert Checkpoints(tmp_path, read_only=True).restore(state(0))[0].params["w"][0] == 8


def test_who_only_looks_changes_nothing(tmp_path):
  writer = Checkpoints(tmp_path, keep=2)
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
  assert meta["step"] == 1 and "step 2 is damaged" in notes[0]
  assert sorted(tmp_path.rglob("*")) == before


def test_the_mean_of_the_last(tmp_path):
  writer = Checkpoints(tmp_path, keep=3)
  save(writer, {2: None, 3: None, 7: None, 9: None})
  writer.close()
  reader = Checkpoints(tmp_path, read_only=True)
  np.testing.assert_allclose(reader.mean_params(state(0), 3)["w"], (3 + 7 + 9) / 3, rtol=1e-6)
  np.testing.assert_array_equal(reader.mean_params(state(0), 1)["w"], 9)
  for count in (20, -1):
    with pytest.raises(
      ValueError, match=rf"the mean of {count} checkpoints is wanted; .* has those of steps \[.*7, 9\]"
    ):
      reader.mean_params(state(0), count)
  for path in (tmp_path / "checkpoints" / "7" / "state").rglob("d/*"):
    path.write_bytes(b"")
  with pytest.raises(ValueError, match=r"checkpoint of step 7 in .* cannot be read"):
    reader.mean_params(state(0), 2)


def test_settings_that_cannot_be(tmp_path):
  with pytest.raises(ValueError, match="mode is 'mac'; did you mean 'max'"):
    Checkpoints(tmp_path, mode="mac")
  with pytest.raises(ValueError, match="keep is 0; wanted at least 1"):
    Checkpoints(tmp_path, keep=0)
