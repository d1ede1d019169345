"""Where a token stands: sin-cos and learned tables, relative offsets, and resampling to another grid."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zoo import init
from zoo.shapes import expect

# What `Positions.kind` may be; "relative" lives in the attention layers instead (`relative_scores`).
KINDS = ("none", "learned_1d", "learned_2d", "sincos_2d", "relative")
RESAMPLINGS = ("bilinear", "bicubic", "bicubic_antialias")


def sincos_1d(positions: np.ndarray, width: int) -> np.ndarray:
  """Sines and cosines at geometrically spaced frequencies, 1 to 1/10000.

  As in Vaswani et al. 2017, 3.5, with all sines before all cosines (the order MAE's weights need).

  Args:
    positions: any shape `[...]`, in units of tokens.
    width: D, even.

  Returns:
    [..., D] float32
  """
  frequency = 10000.0 ** -(np.arange(width // 2, dtype=np.float64) / (width // 2))
  angle = np.asarray(positions, np.float64)[..., None] * frequency
  return np.concatenate([np.sin(angle), np.cos(angle)], -1).astype(np.float32)


def sincos_2d(grid: tuple[int, int], width: int) -> np.ndarray:
  """Half of the width encodes the column, half the row (MAE, He et al. 2022, A.1).

  Returns:
    [Y, X, D] float32, a constant

  Raises:
    ValueError: the width is no multiple of 4 (sine and cosine of two coordinates).
  """
  if width % 4:
    raise ValueError(f"sincos_2d needs a width that is a multiple of 4, got {width}")
  rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
  return np.concatenate([sincos_1d(columns, width // 2), sincos_1d(rows, width // 2)], -1)


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
  """The cubic convolution kernel (Keys 1981, eq. 4); `a` is its slope at distance 1."""
  x = np.abs(distance)
  near = (a + 2) * x**3 - (a + 3) * x**2 + 1
  far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
  return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _resampling_matrix(size: int, new_size: int, method: str) -> np.ndarray:
  """[new_size, size]: row i holds the weights of the old samples in new sample i."""
  scale = size / new_size
  centre = (np.arange(new_size) + 0.5) * scale - 0.5  # half-pixel centres, align_corners=False
  if method == "bicubic_antialias":
    # As in Pillow: the kernel widens when shrinking and is cut, not clamped, at the border.
    stretch = max(scale, 1.0)
    weights = _cubic((centre[:, None] - np.arange(size)) / stretch, a=-0.5)
    return weights / weights.sum(1, keepdims=True)
  taps = np.floor(centre)[:, None].astype(int) + np.arange(-1, 3)  # wide enough for both kernels
  distance = centre[:, None] - taps
  tap_weights = _cubic(distance, a=-0.75) if method == "bicubic" else np.maximum(0, 1 - np.abs(distance))
  weights = np.zeros((new_size, size))
  np.add.at(weights, (np.arange(new_size)[:, None], np.clip(taps, 0, size - 1)), tap_weights)
  return weights


def resample(table_YXD: jax.Array, grid: tuple[int, int], method: str = "bicubic") -> jax.Array:
  """A position table, interpolated to another grid (ViT, Dosovitskiy et al. 2021, 3.2).

  Args:
    table_YXD: the table.
    grid: rows and columns wanted.
    method: "bicubic" is torch's (a = -0.75), which published PyTorch weights were resized with;
      "bicubic_antialias" is Pillow's, timm's and `jax.image`'s (a = -0.5); "bilinear" is the plain
      interpolation.

  Returns:
    [*grid, D]; the table itself where the grid is already right.
  """
  sizes = expect(table_YXD=table_YXD)
  if method not in RESAMPLINGS:
    raise ValueError(f"unknown resampling {method!r}; there are {', '.join(RESAMPLINGS)}")
  if (sizes["Y"], sizes["X"]) == tuple(grid):
    return table_YXD
  rows = _resampling_matrix(sizes["Y"], grid[0], method).astype(np.float32)
  columns = _resampling_matrix(sizes["X"], grid[1], method).astype(np.float32)
  return jnp.einsum("aY,YXD,bX->abD", rows, table_YXD, columns, precision="highest")


class Positions(nn.Module):
  """The absolute position table for a grid of patches: [Y, X, D], and [D] for the class token.

  Attributes:
    kind: "none", "learned_1d" (one vector a patch), "learned_2d" (half of the vector from the row, half
      from the column), "sincos_2d" (fixed); ViT, Dosovitskiy et al. 2021, D.4. "relative" adds nothing here.
    grid: the rows and columns the table is made (or was trained) for.
    width: D.
    class_token: whether there is a class token; with "learned_1d" it has a position too.
    resampling: how the table meets an image of another grid.
  """

  kind: str
  grid: tuple[int, int]
  width: int
  class_token: bool
  resampling: str = "bicubic"

  @nn.compact
  def __call__(self, grid: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    if self.kind not in KINDS:
      raise ValueError(f"unknown positions {self.kind!r}; there are {', '.join(KINDS)}")
    cls_D = jnp.zeros(self.width)
    if self.kind == "learned_1d":
      if self.class_token:
        cls_D = self.param("cls", init.position, (self.width,))
      table_YXD = self.param("table", init.position, (*self.grid, self.width))
      return resample(table_YXD, grid, self.resampling), cls_D
    if self.kind == "learned_2d":
      half = self.width // 2
      row = self.param("row", init.position, (self.grid[0], self.width - half))
      column = self.param("column", init.position, (self.grid[1], half))
      row = resample(row[:, None], (grid[0], 1), self.resampling)
      column = resample(column[None], (1, grid[1]), self.resampling)
      row, column = (jnp.broadcast_to(t, (*grid, t.shape[-1])) for t in (row, column))
      return jnp.concatenate([row, column], -1), cls_D
    if self.kind == "sincos_2d":
      return jnp.asarray(sincos_2d(grid, self.width)), cls_D
    return jnp.zeros((*grid, self.width)), cls_D


def relative_scores(q_BTNH: jax.Array, table_OH: jax.Array) -> jax.Array:
  """Scores of every query with the embedding of its offset to every key.

  ViT's relative attention (Dosovitskiy et al. 2021, D.4; after Shaw et al. 2018, eq. 5): added to the
  content scores before the softmax.

  Args:
    q_BTNH: queries.
    table_OH: one key for each offset -(T-1) .. T-1, so O = 2 T - 1.

  Returns:
    [B, N, T, T] float32, scaled by 1 / sqrt(H)

  Raises:
    ValueError: the table is for another length; offsets along a flattened grid have no resampling.
  """
  sizes = expect(q_BTNH=q_BTNH, table_OH=table_OH)
  length = sizes["T"]
  if sizes["O"] != 2 * length - 1:
    raise ValueError(
      f"relative positions were made for {(sizes['O'] + 1) // 2} tokens and got {length}: offsets in the flattened "
      "sequence cannot be resampled; use sincos_2d or a learned table for several image sizes"
    )
  offset_TT = np.arange(length) - np.arange(length)[:, None] + length - 1
  keys_TTH = table_OH[offset_TT].astype(q_BTNH.dtype)
  scores = jnp.einsum("BTNH,TSH->BNTS", q_BTNH, keys_TTH, preferred_element_type=jnp.float32)
  return scores * sizes["H"] ** -0.5
