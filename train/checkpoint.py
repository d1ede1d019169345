"""Checkpoints of a run by Orbax: asynchronous and atomic; keeps the last N and the best; skips damaged ones."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from train.step import State
from zoo.errors import Unwritable, nearest
from zoo.partitioning import flatten

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax logs every file it writes


class Checkpoints:
  """`WORKDIR/checkpoints/STEP/{state,meta}`.

  `state` is the training state; `meta` is a JSON with the step, the config, the position in the data and metrics.

  Args:
    workdir: of the run.
    every_steps: steps between two checkpoints; 0 for only the last.
    max_to_keep: how many of the last to keep.
    best_metric: an evaluation metric such as "val/accuracy"; the checkpoint where it is best is kept too.
    best_mode: whether the best is the "max" or the "min".
    note: called with a message when a damaged checkpoint is skipped.
    read_only: change nothing, to read a run that may still be training.
  """

  def __init__(
    self,
    workdir: Path,
    *,
    every_steps: int = 0,
    max_to_keep: int = 2,
    best_metric: str = "",
    best_mode: str = "max",
    note: Callable[[str], None] = print,
    read_only: bool = False,
  ) -> None:
    if best_mode not in ("max", "min"):
      raise ValueError(f"config.checkpoint.best_mode is {best_mode!r}{nearest(best_mode, ('max', 'min'))}")
    for key, value, least in (("max_to_keep", max_to_keep, 1), ("every_steps", every_steps, 0)):
      if value < least:
        raise ValueError(f"config.checkpoint.{key} is {value}; wanted at least {least}")
    self.workdir, self.every_steps, self.note = Path(workdir), every_steps, note
    self.max_to_keep, self.best_metric = max_to_keep, best_metric
    self.read_only = read_only
    self.directory = self.workdir / "checkpoints"
    sign = 1 if best_mode == "max" else -1
    best_fn: Any = (lambda metrics: sign * metrics[best_metric]) if best_metric else None
    kept: list = [policies.LatestN(max_to_keep)]
    if best_metric:
      kept.append(policies.BestN(get_metric_fn=best_fn, n=1, keep_checkpoints_without_metrics=False))
    self._manager = ocp.CheckpointManager(
      self.directory.resolve(),
      options=ocp.CheckpointManagerOptions(
        best_fn=best_fn,
        preservation_policy=policies.AnyPreservationPolicy(kept),
        cleanup_tmp_directories=not read_only,
        read_only=read_only,
      ),
      item_names=("state", "meta"),
    )

  def check_room(self, state: State) -> None:
    """Raises ValueError if the disk cannot hold the checkpoints that are kept and the one being written."""
    # An old one is deleted only when the new one is complete. Existing ones need no more space.
    number = max(1, self.max_to_keep + bool(self.best_metric) + 1 - len(self.steps))
    size = number * sum(np.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    free = shutil.disk_usage(self.workdir).free
    if free < size:
      raise ValueError(
        f"{self.workdir} has {free / 1e9:.2f} GB free, {number} checkpoints of this run need {size / 1e9:.2f} GB; "
        "free some space, lower checkpoint.max_to_keep or give another --workdir"
      )

  @property
  def steps(self) -> list[int]:
    """The steps of all checkpoints, including those being written."""
    # Not read from disk, where a checkpoint that is being deleted in a thread would be a missing file.
    return sorted(self._manager.all_steps())

  def save(self, state: State, meta: dict, metrics: dict | None = None) -> None:
    """Starts to write the state; training may continue at once.

    Args:
      state: whole arrays (`parallel.gather`).
      meta: anything JSON can hold.
      metrics: the evaluation metrics of this step, if there are any.

    Raises:
      ValueError: this or an earlier checkpoint could not be written.
    """
    step = int(meta["step"])
    if step in self.steps:
      return
    known = metrics if self.best_metric and metrics and self.best_metric in metrics else None
    items = ocp.args.Composite(state=ocp.args.StandardSave(_as_dict(state)), meta=ocp.args.JsonSave(meta))
    try:
      self._manager.save(step, args=items, metrics=known)
    except (OSError, ValueError, RuntimeError) as error:
      raise self._unwritten(error) from error

  def wait(self) -> None:
    """Returns when all checkpoints are on disk; raises ValueError if one could not be written."""
    try:
      self._manager.wait_until_finished()
      self._manager.check_for_errors()
    except (OSError, ValueError, RuntimeError) as error:
      raise self._unwritten(error) from error

  def _unwritten(self, error: Exception) -> Unwritable:
    self._manager.reload()  # forgets the one that failed
    complete = self.steps
    return Unwritable(
      f"a checkpoint could not be written to {self.directory}: {error}. "
      + (f"The last complete one is of step {complete[-1]}." if complete else "There is none before it.")
    )

  def newest_meta(self) -> dict | None:
    """The newest meta that can be read; None if there is no checkpoint."""
    for step in reversed(self.steps):
      try:
        return json.loads((self.directory / str(step) / "meta" / "metadata").read_text())
      except (OSError, ValueError):
        continue
    return None

  def restore(self, target: State) -> tuple[State, dict] | None:
    """The newest intact checkpoint; damaged ones are reported and moved to `WORKDIR/damaged`.

    Args:
      target: the state as `ShapeDtypeStruct`s with shardings for the current devices.

    Returns:
      state and meta, or None if the run has no checkpoint.

    Raises:
      ValueError: there are checkpoints, but none can be read; or one that can is of another model or optimiser.
    """
    wanted = ocp.args.Composite(state=ocp.args.StandardRestore(_as_dict(target)), meta=ocp.args.JsonRestore())
    damaged = []
    for step in reversed(self.steps):
      self._check_same_state(step, target)
      try:
        items = self._manager.restore(step, args=wanted)
        restored = type(target)(**items["state"])
      except Exception as error:  # Orbax and its stores raise all kinds
        damaged.append(step)
        reason = str(error).strip().partition("\n")[0][:200]
        self.note(f"the checkpoint of step {step} is damaged ({type(error).__name__}: {reason})")
        continue
      for bad in () if self.read_only else damaged:
        self._move_away(bad)
      if damaged:
        self.note(f"resuming from the checkpoint of step {step}")
      return restored, items["meta"]
    if damaged:
      raise ValueError(
        f"none of the checkpoints in {self.directory} can be read (steps {sorted(damaged)}); nothing was changed. "
        "Start again in another --workdir, or restore them from a backup"
      )
    return None

  def _check_same_state(self, step: int, target: State) -> None:
    """Raises ValueError where a checkpoint has other arrays than `target`: a wrong config, not damage."""
    try:
      metadata: Any = ocp.StandardCheckpointer().metadata(self._manager.directory / str(step) / "state")
      stored = metadata.item_metadata.tree
    except Exception:  # damaged: restoring it reports how
      return
    there, here = ({k: tuple(v.shape) for k, v in flatten(tree).items()} for tree in (stored, _as_dict(target)))
    faults = [
      f"{path}: {there.get(path, 'missing')} stored, {here.get(path, 'none')} wanted"
      for path in sorted(there | here, key=lambda path: (not path.startswith("params/"), path))
      if there.get(path) != here.get(path)
    ]
    if faults:
      shown = faults[:10] + [f"and {len(faults) - 10} more"] * (len(faults) > 10)
      raise ValueError(
        f"the checkpoint of step {step} in {self.directory} has another model or optimizer than the config:\n  "
        + "\n  ".join(shown)
        + "\nNothing was changed. Use the config it was made with, or another --workdir (init.path loads weights)."
      )

  def _move_away(self, step: int) -> None:
    if jax.process_index() == 0:
      target = self.workdir / "damaged" / str(step)
      target.parent.mkdir(exist_ok=True)
      if target.exists():
        shutil.rmtree(target)
      os.replace(self.directory / str(step), target)
      self.note(f"moved it to {target}")
    self._manager.reload()

  def close(self) -> None:
    """Waits until all checkpoints are on disk."""
    self.wait()
    self._manager.close()


def _as_dict(state: State) -> dict:
  return dict(state._asdict())
