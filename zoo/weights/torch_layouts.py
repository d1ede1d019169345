"""PyTorch's layouts of the layers that models share: transforms, and the rules of a layer.

A torch linear layer keeps [outputs, inputs] and a convolution [outputs, channels, rows, columns]; heads are not an
axis. Here a kernel is [inputs, outputs], and those of attention are [D, N, H] and back [N, H, D].
"""

import math
from collections.abc import Callable

import numpy as np

from zoo.layers.position_embeddings import resample as resample_table
from zoo.layers.position_embeddings import sincos_2d
from zoo.weights.rules import Rule, Transform

AS_IS = Transform(lambda t, shape: t, lambda a: a)
TRANSPOSED = Transform(lambda t, shape: t.T, lambda a: a.T)
TOKEN = Transform(lambda t, shape: t[0, 0], lambda a: a[None, None])  # [1, 1, D] to [D]
ROW = Transform(lambda t, shape: t[0], lambda a: a[None])  # [1, V] to [V]
# A table of positions that begins with two rows that nobody reads, [2 + T, D] to [T, D].
FROM_THIRD = Transform(lambda t, shape: t[2:], lambda a: np.concatenate([np.zeros_like(a, shape=(2, a.shape[1])), a]))
KERNEL = Transform(lambda t, shape: t.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1))  # to [Y, X, C, D]
POINT = Transform(lambda t, shape: t[..., 0, 0].T, lambda a: a.T[..., None, None])  # [D, C, 1, 1] to [C, D]
SCALE = Transform(lambda t, shape: t[:, 0, 0], lambda a: a[:, None, None])  # [N, 1, 1] to [N]
IGNORED = Transform(lambda t: (), lambda: None)  # with paths ()
HEADS = Transform(lambda t, shape: t.T.reshape(shape), lambda a: a.reshape(a.shape[0], -1).T)  # [N H, D] to [D, N, H]
HEADS_BIAS = Transform(lambda t, shape: t.reshape(shape), lambda a: a.reshape(-1))  # [N H] to [N, H]
HEADS_OUT = Transform(lambda t, shape: t.T.reshape(shape), lambda a: a.reshape(-1, a.shape[-1]).T)  # to [N, H, D]


def fused(part: Transform) -> Transform:
  """One tensor that holds several of `part` on its first axis, as q, k and v."""
  return Transform(
    lambda t, *shapes: tuple(map(part.forward, np.split(t, len(shapes)), shapes)),
    lambda *arrays: np.concatenate([part.inverse(a) for a in arrays]),
  )


def convolution(patch: int) -> Transform:
  """[D, C, patch, patch] to the projection of flattened patches, [patch * patch * C, D], channels innermost."""
  return Transform(
    lambda t, shape: t.transpose(2, 3, 1, 0).reshape(shape),
    lambda a: a.reshape(patch, patch, -1, a.shape[-1]).transpose(3, 2, 0, 1),
  )


def _square(patches: int) -> tuple[int, int]:
  side = math.isqrt(patches)
  if side**2 != patches:
    raise ValueError(
      f"has {patches} positions, which are no square, so their rows are unknown: load them at their own image size, "
      "write them with zoo.save, and resample that file"
    )
  return side, side


def _positions_forward(t: np.ndarray, table: tuple, cls: tuple = ()):
  return (t[0, 1:].reshape(table), t[0, 0]) if cls else t[0].reshape(table)


def _positions_inverse(table: np.ndarray, *cls: np.ndarray) -> np.ndarray:
  return np.concatenate([*(c[None] for c in cls), table.reshape(-1, table.shape[-1])])[None]


def _positions_refit(t: np.ndarray, *shapes_and_method) -> np.ndarray:
  (table, *cls), method = shapes_and_method[:-1], shapes_and_method[-1]
  old = np.asarray(t[0, len(cls) :], np.float32)
  new = resample_table(old.reshape(*_square(len(old)), -1), table[:2], method)
  return _positions_inverse(np.asarray(new), *np.asarray(t[0, : len(cls)], np.float32))


# [1, 1 + P, D] to the table [Y, X, D] and the class token's [D]; [1, P, D] to the table alone.
POSITIONS = Transform(_positions_forward, _positions_inverse, _positions_refit)


def _offsets_refit(t: np.ndarray, shape: tuple, method: str) -> np.ndarray:
  """As published code resizes them: a square window's table, to another."""
  old = np.asarray(t, np.float32).reshape(*_square(len(t)), -1)
  return np.asarray(resample_table(old, shape[:2], method)).reshape(-1, shape[2])


# A score for each offset within a window: [(2 W - 1)^2, N] to [2 W - 1, 2 W - 1, N].
OFFSETS = Transform(lambda t, shape: t.reshape(shape), lambda a: a.reshape(-1, a.shape[-1]), _offsets_refit)


def merged(kernel: bool) -> Transform:
  """Parameters on 2 x 2 merged patches, which published Swins order column by column, ours row by row.

  Args:
    kernel: of a linear layer [2 D, 4 D] to [4 D, 2 D]; or else a vector [4 D].
  """

  def turn(a):
    return a.reshape(2, 2, -1, *a.shape[1:]).swapaxes(0, 1).reshape(a.shape)

  if kernel:
    return Transform(lambda t, shape: turn(t.T), lambda a: turn(a).T)
  return Transform(lambda t, shape: turn(t), turn)


def shuffled(channels: int, kernel: bool) -> Transform:
  """A projection to the pixels of a square: torch's PixelShuffle has channels outermost, ours innermost.

  Args:
    channels: C of the image.
    kernel: of a convolution [C * side * side, D, 1, 1] to [D, side * side * C]; or else a vector [C * side * side].
  """

  def forward(t, shape):
    t = t.reshape(channels, shape[-1] // channels, *t.shape[1:2]).swapaxes(0, 1).reshape(t.shape[:2])
    return t.T if kernel else t

  def inverse(a):
    a = a.T.reshape(-1, channels, *a.shape[:-1]).swapaxes(0, 1).reshape(a.T.shape)
    return a[..., None, None] if kernel else a

  return Transform(forward, inverse)


def fixed_table(make: Callable[[], np.ndarray], instead: str) -> Transform:
  """A table that our models compute: compared with it and dropped, or written for those who keep it.

  Args:
    make: computes it.
    instead: the `positions` that keep any table.
  """

  def check(t):
    # bfloat16 has too few digits for equality; numpy has no finfo for it, so it is recognised by its itemsize.
    tolerance = 1e-5 if t.dtype.itemsize > 2 else 5e-3
    if not np.allclose(np.asarray(t, np.float32), make(), rtol=0, atol=tolerance):
      raise ValueError(f"is not the fixed sin-cos table of this model; one with positions={instead!r} keeps any table")
    return ()

  return Transform(check, make)


def sincos_positions(grid: tuple[int, int], width: int, class_token: bool) -> Transform:
  """The fixed table of a grid of patches, with the class token's zeros."""

  def table(grid):
    made = sincos_2d(grid, width), *np.zeros((int(class_token), width), np.float32)
    return fixed_table(lambda: _positions_inverse(*made), "learned_1d")

  def refit(t, method):
    table(_square(t.shape[1] - class_token)).forward(t)
    return table(grid).inverse()

  return table(grid)._replace(refit=refit)


def dense(key: str, path: str) -> tuple[Rule, ...]:
  """A linear layer."""
  return Rule(rf"{key}\.weight", f"{path}/kernel", TRANSPOSED), Rule(rf"{key}\.bias", f"{path}/bias", AS_IS)


def kernel(key: str, path: str) -> tuple[Rule, ...]:
  """A convolution; where it is depthwise, of one channel for each feature."""
  return Rule(rf"{key}\.weight", f"{path}/kernel", KERNEL), Rule(rf"{key}\.bias", f"{path}/bias", AS_IS)


def norm(key: str, path: str) -> tuple[Rule, ...]:
  """A layer or group normalisation."""
  return Rule(rf"{key}\.weight", f"{path}/scale", AS_IS), Rule(rf"{key}\.bias", f"{path}/bias", AS_IS)


def heads(key: str, *paths: str) -> tuple[Rule, ...]:
  """The projection to q, k or v; several paths for a fused one."""
  kernel, bias = (HEADS, HEADS_BIAS) if len(paths) == 1 else (fused(HEADS), fused(HEADS_BIAS))
  return (
    Rule(rf"{key}\.weight", tuple(f"{p}/kernel" for p in paths), kernel),
    Rule(rf"{key}\.bias", tuple(f"{p}/bias" for p in paths), bias),
  )


def heads_packed(key: str, *paths: str) -> tuple[Rule, ...]:
  """The projections to q, k and v of torch.nn.MultiheadAttention, whose parameters are its own."""
  return tuple(
    Rule(rf"{key}\.in_proj_{theirs}", tuple(f"{p}/{ours}" for p in paths), fused(part))
    for theirs, ours, part in (("weight", "kernel", HEADS), ("bias", "bias", HEADS_BIAS))
  )


def heads_out(key: str, path: str) -> tuple[Rule, ...]:
  """The projection of all heads' outputs."""
  return Rule(rf"{key}\.weight", f"{path}/kernel", HEADS_OUT), Rule(rf"{key}\.bias", f"{path}/bias", AS_IS)


def patches(key: str, path: str, patch: int) -> tuple[Rule, ...]:
  """The convolution that embeds patches."""
  return Rule(rf"{key}\.weight", f"{path}/kernel", convolution(patch)), Rule(rf"{key}\.bias", f"{path}/bias", AS_IS)
