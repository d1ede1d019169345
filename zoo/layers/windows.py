"""Regular and shifted windows of a map, and the cost of attention within them (Liu et al. 2021)."""

from dataclasses import dataclass
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from zoo.layers import attention_masks

Array = TypeVar("Array", jax.Array, np.ndarray)


@dataclass(frozen=True)
class WindowLayout:
  """A partition of a map of tokens into windows. All of it is static, so that masks are constants.

  Windows that are shifted begin `shift` rows and columns later, and those at the borders are smaller (figure 2). With
  "roll" the map is rolled instead, so that smaller windows share one of the full size, and are kept apart by the mask
  (figure 4): no more windows than without a shift. With "pad" each is filled up: (Y / M + 1) (X / M + 1) windows. What
  the tokens get is the same.

  Attributes:
    size: rows and columns of the map. window_size: of a window. shift: of the first window; below `window_size`.
    method: "roll" or "pad".
    mask_padding: whether what fills the map up to whole windows is never attended to; else it is, as zeros.
  """

  size: tuple[int, int]
  window_size: tuple[int, int]
  shift: tuple[int, int] = (0, 0)
  method: str = "roll"
  mask_padding: bool = True

  @property
  def whole(self) -> tuple[int, int]:
    """Rows and columns of the map, filled up to whole windows."""
    rows, columns = (-(-n // side) * side for n, side in zip(self.size, self.window_size, strict=True))
    return rows, columns

  @property
  def margins(self) -> tuple[tuple[int, int], tuple[int, int]]:
    """What is added before and after the rows, and the columns."""
    more = [side if s and self.method == "pad" else 0 for side, s in zip(self.window_size, self.shift, strict=True)]
    before = [m - s if m else 0 for m, s in zip(more, self.shift, strict=True)]
    rows, columns = ((b, n + m - b - own) for b, n, m, own in zip(before, self.whole, more, self.size, strict=True))
    return rows, columns

  @property
  def padded(self) -> tuple[int, int]:
    """Rows and columns of what is cut."""
    rows, columns = (n + sum(margin) for n, margin in zip(self.size, self.margins, strict=True))
    return rows, columns

  @property
  def count(self) -> int:
    """W, the number of windows."""
    return int(np.prod([n // side for n, side in zip(self.padded, self.window_size, strict=True)]))

  @property
  def rolled(self) -> tuple[int, int]:
    """By how many rows and columns the map is rolled back."""
    return self.shift if self.method == "roll" else (0, 0)

  def segments(self) -> tuple[np.ndarray, np.ndarray]:
    """Numbers [W, T] of queries and of keys: those who may attend to each other have the same; no query has -1."""
    along = zip(self.size, self.whole, self.window_size, self.shift, self.margins, self.padded, strict=True)
    groups, reals = [], []
    for own, whole, side, shift, (before, _), padded in along:
      position = np.arange(padded) - before
      groups.append((position - shift) // side + 1)  # number of the window, from 0 on
      reals.append((position >= 0) & (position < (own if self.mask_padding else whole)))
    group_YX = groups[0][:, None] * (groups[1].max() + 1) + groups[1]
    key_YX = np.where(reals[0][:, None] & reals[1], group_YX, -1)
    both = np.roll([group_YX, key_YX], [-s for s in self.rolled], (1, 2))
    query_WT, key_WT = partition(both[..., None].astype(np.int32), self.window_size).reshape(2, self.count, -1)
    return query_WT, key_WT

  def mask(self, batch: int) -> jax.Array | None:
    """Who may attend to whom, [B W, 1, T, T]; None for all."""
    query_WT, key_WT = self.segments()
    if (key_WT == query_WT[:, :1]).all():
      return None
    # Numbers are T times fewer than pairs: the compiler makes the mask where it is used, instead of reading it.
    every = (jnp.broadcast_to(n_WT, (batch, *n_WT.shape)).reshape(-1, n_WT.shape[1]) for n_WT in (query_WT, key_WT))
    return attention_masks.same_segment(*every)

  def static_mask(self) -> np.ndarray | None:
    """Who may attend to whom in each window of a map, [W, T, T]; None for all."""
    query_WT, key_WT = self.segments()
    mask_WTT = query_WT[:, :, None] == key_WT[:, None]
    return None if mask_WTT.all() else mask_WTT

  def pad(self, x_BYXD: jax.Array) -> jax.Array:
    """The map with its margins, zeros."""
    return jnp.pad(x_BYXD, ((0, 0), *self.margins, (0, 0)))

  def crop(self, x_BYXD: jax.Array) -> jax.Array:
    """The map without its margins."""
    first_Y, first_X = (before for before, _ in self.margins)
    return x_BYXD[:, first_Y : first_Y + self.size[0], first_X : first_X + self.size[1]]

  def cut(self, x_BYXD: jax.Array) -> jax.Array:
    """The windows of a map with margins: [B W, T, D]."""
    if any(self.rolled):
      x_BYXD = jnp.roll(x_BYXD, [-s for s in self.rolled], (1, 2))
    return partition(x_BYXD, self.window_size)

  def window_partition(self, x_BYXD: jax.Array) -> jax.Array:
    """The windows of each map, one after another: [B W, T, D], T tokens row by row."""
    return self.cut(self.pad(x_BYXD))

  def window_reverse(self, x_BTD: jax.Array) -> jax.Array:
    """The inverse of `window_partition`: [B W, T, D] to [B, Y, X, D]."""
    (rows, columns), (Y, X) = self.window_size, self.padded
    x_BYXD = x_BTD.reshape(-1, Y // rows, X // columns, rows, columns, x_BTD.shape[-1])
    x_BYXD = x_BYXD.swapaxes(2, 3).reshape(-1, Y, X, x_BTD.shape[-1])
    if any(self.rolled):
      x_BYXD = jnp.roll(x_BYXD, self.rolled, (1, 2))
    return self.crop(x_BYXD)


def partition(x_BYXD: Array, window: tuple[int, int]) -> Array:
  """Cuts maps into windows that fill them exactly: [B, Y, X, D] to [B W, T, D]."""
  B, Y, X, D = x_BYXD.shape
  rows, columns = window
  x = x_BYXD.reshape(B, Y // rows, rows, X // columns, columns, D)
  return x.swapaxes(2, 3).reshape(-1, rows * columns, D)


def shift_ratio(size: tuple[int, int], window: int) -> float:
  """How many times as many windows padding a shift needs as rolling: 9 for 4 in figure 4, a map of 2 x 2 windows.

  Args:
    size: rows and columns of the map. window: side of a window, of at least 2; shifted by half of it.
  """
  padded, rolled = (
    WindowLayout(size, (window, window), (window // 2, window // 2), method) for method in ("pad", "roll")
  )
  return padded.count / rolled.count


def msa_macs(rows: int, columns: int, width: int) -> int:
  """Multiply-adds of attention among all tokens of a map, eq. 1: 4 h w C^2 + 2 (h w)^2 C."""
  tokens = rows * columns
  return 4 * tokens * width**2 + 2 * tokens**2 * width


def wmsa_macs(rows: int, columns: int, width: int, window: int) -> int:
  """Multiply-adds of attention within windows of side M, eq. 2: 4 h w C^2 + 2 M^2 h w C; M divides h and w."""
  tokens = rows * columns
  return 4 * tokens * width**2 + 2 * window**2 * tokens * width
