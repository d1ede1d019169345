"""Position embeddings: absolute tables, rotations, biases by relative position, and resampling to another grid."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zoo.layers import initializers
from zoo.shapes import ShapeError, expect

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

  Raises:
    ValueError: an odd width.
  """
  if width % 2:
    raise ValueError(f"sin-cos positions are pairs; a width of {width} is odd")
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


def resample(table_YXD: jax.Array | np.ndarray, grid: tuple[int, int], method: str = "bicubic") -> jax.Array:
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
    return jnp.asarray(table_YXD)
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
        cls_D = self.param("cls", initializers.position, (self.width,))
      table_YXD = self.param("table", initializers.position, (*self.grid, self.width))
      return resample(table_YXD, grid, self.resampling), cls_D
    if self.kind == "learned_2d":
      half = self.width // 2
      row = self.param("row", initializers.position, (self.grid[0], self.width - half))
      column = self.param("column", initializers.position, (self.grid[1], half))
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
    [B, N, T, T] in the type of q, scaled by 1 / sqrt(H)

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
  return jnp.einsum("BTNH,TSH->BNTS", q_BTNH * sizes["H"] ** -0.5, keys_TTH)


def relative_coordinates(window: tuple[int, int]) -> np.ndarray:
  """Row and column offsets from key to query, for all pairs of positions in a window, row by row.

  Returns:
    [T, T, 2] int, T = rows x columns of the window
  """
  place_T2 = np.stack(np.meshgrid(*map(np.arange, window), indexing="ij"), -1).reshape(-1, 2)
  return place_T2[:, None] - place_T2


def _spread(table_YXN: jax.Array, window: tuple[int, int]) -> jax.Array:
  """A score for each offset, [2 rows - 1, 2 columns - 1, N], as one for each query and key, [N, T, T]."""
  rows, columns = np.moveaxis(relative_coordinates(window) + np.array(window) - 1, -1, 0)
  return jnp.moveaxis(table_YXN[rows, columns], -1, 0)


class WindowRelativePositionBias(nn.Module):
  """A learned score for every offset within a window and every head (Swin, Liu et al. 2021, 3.2, eq. 4).

  Attributes:
    heads: N.
    window: side of the largest window. A smaller one reads the middle of the table: an offset keeps its score.
  """

  num_heads: int
  window: int

  @nn.compact
  def __call__(self, window: tuple[int, int]) -> jax.Array:
    """The bias [N, T, T] of `zoo.layers.attention.dot_product_attention` for a window of `window` rows and columns.

    Raises:
      ValueError: the window is larger than the table is made for.
    """
    if max(window) > self.window:
      raise ValueError(f"a window of {window[0]} x {window[1]} has offsets beyond a table made for {self.window}")
    table_YXN = self.param("table", initializers.swin, (2 * self.window - 1, 2 * self.window - 1, self.num_heads))
    middle = tuple(slice(self.window - side, self.window + side - 1) for side in window)
    return _spread(table_YXN[middle], window)


class ContinuousRelativePositionBias(nn.Module):
  """Scores for offsets by a small network of their logarithms: at any window (Swin V2, Liu et al. 2022, 3.3, eq. 3, 4).

  As in the released code: offsets go from -8 to 8 in the window trained with, their logarithms are divided by log(8),
  and a score is 16 times a sigmoid.

  Attributes:
    heads: N.
    trained: rows and columns of the window that the weights were, or will be, trained with.
    hidden: units of the network.
  """

  num_heads: int
  trained: tuple[int, int]
  hidden: int = 512

  @nn.compact
  def __call__(self, window: tuple[int, int]) -> jax.Array:
    """The bias [N, T, T] of `dot_product_attention` for a window of `window` rows and columns, float32."""
    sides = (np.arange(1 - side, side) * 8 / max(of - 1, 1) for side, of in zip(window, self.trained, strict=True))
    offset_YX2 = np.stack(np.meshgrid(*sides, indexing="ij"), -1)
    offset_YX2 = (np.sign(offset_YX2) * np.log2(1 + np.abs(offset_YX2)) / np.log2(8)).astype(np.float32)
    hidden = jax.nn.relu(nn.Dense(self.hidden, kernel_init=initializers.swin, name="up")(offset_YX2))
    table_YXN = nn.Dense(self.num_heads, use_bias=False, kernel_init=initializers.swin, name="down")(hidden)
    return _spread(16 * jax.nn.sigmoid(table_YXN), window)


def apply_rotary(x_BTNH: jax.Array, positions_BT: jax.Array, base: float = 10000.0) -> jax.Array:
  """Rotates queries or keys by angles proportional to their position (RoPE; Su et al. 2021, eq. 34).

  The dot product of a rotated query and key depends on the difference of their positions alone. Positions are an
  argument, so packed rows and decoding with a cache need nothing special.

  Features i and i + H/2 are a pair, rotated by position * base^(-2i / H), as in GPT-NeoX and Llama; the paper pairs
  2i and 2i + 1. The two are one after a permutation of the features of q and k, which weights have to be given when
  they come from the other.

  Args:
    x_BTNH: queries, or keys with their own lengths and heads; H is even.
    positions_BT: int, in tokens; B may be 1.
    base: of the geometric series of frequencies, 1 to nearly 1 / base.

  Returns:
    [B, T, N, H] in the type of x; computed in float32

  Raises:
    ValueError: H is odd.
  """
  width = expect(x_BTNH=x_BTNH)["H"]
  if width % 2:
    raise ValueError(f"rotary positions rotate pairs of features: wanted an even head width, got {width}")
  if positions_BT.shape not in ((1, x_BTNH.shape[1]), x_BTNH.shape[:2]):
    raise ShapeError(f"positions_BT {positions_BT.shape} does not fit x_BTNH {x_BTNH.shape}; B may be 1")
  frequency = (base ** -(np.arange(width // 2, dtype=np.float64) / (width // 2))).astype(np.float32)
  angle = positions_BT[:, :, None, None].astype(jnp.float32) * frequency  # so the products are float32 too
  first, second = jnp.split(x_BTNH, 2, -1)
  rotated = (first * jnp.cos(angle) - second * jnp.sin(angle), second * jnp.cos(angle) + first * jnp.sin(angle))
  return jnp.concatenate(rotated, -1).astype(x_BTNH.dtype)


def alibi_slopes(num_heads: int) -> np.ndarray:
  """The slope of each head: 2^(-8/N), 2^(-16/N), ..., 2^-8 (ALiBi; Press et al. 2022, 3).

  Where N is no power of two: the slopes of the next lower power, then every second one of the next higher, from its
  first, as in the paper's released code.

  Returns:
    [N] float32
  """
  power = 2 ** int(np.log2(num_heads))

  def geometric(num_heads):
    return 2.0 ** (-8 / num_heads * np.arange(1, num_heads + 1))

  return np.concatenate([geometric(power), geometric(2 * power)[::2][: num_heads - power]]).astype(np.float32)


def alibi_bias(num_heads: int, query_BT: jax.Array, key_BS: jax.Array) -> jax.Array:
  """A bias that falls linearly with distance, -slope |t - s|, without positions in the input (Press et al. 2022, 3).

  Args:
    heads: N.
    query_BT, key_BS: int, positions in tokens; B may be 1. The paper's models are causal and never meet t < s.

  Returns:
    [B, N, T, S] float32, the `bias` of `zoo.layers.attention.dot_product_attention`
  """
  expect(query_BT=query_BT, key_BS=key_BS)
  distance_BTS = jnp.abs(query_BT[:, :, None] - key_BS[:, None]).astype(jnp.float32)
  return -jnp.asarray(alibi_slopes(num_heads))[:, None, None] * distance_BTS[:, None]


def relative_position_bucket(
  offset: jax.Array, buckets: int = 32, max_distance: int = 128, bidirectional: bool = True
) -> jax.Array:
  """The bucket of an offset: one for each small distance, then wider and wider ones (T5; Raffel et al. 2020, 2.1).

  Bidirectional, half of the buckets is for keys before the query and half for those after it; else all are for keys
  before it, and what comes after shares bucket 0 with the query itself. Of those for one direction the first half
  has a distance each, the other half is spaced logarithmically; the last takes `max_distance` and beyond.

  Args:
    offset: int, key position - query position, in tokens.
    buckets: how many there are.
    max_distance: in tokens.
    bidirectional: whether queries see what comes after them.

  Returns:
    int32 like `offset`, 0 to buckets - 1

  Raises:
    ValueError: fewer than two buckets for a direction, or a `max_distance` that is reached before the last begins.
  """
  ahead = buckets // 2 if bidirectional else buckets
  exact = ahead // 2
  if exact < 1 or max_distance <= exact:
    least = 4 if bidirectional else 2
    raise ValueError(
      f"{buckets} buckets up to distance {max_distance}: wanted at least {least} buckets, and a largest distance "
      f"above {exact}, the distances that have a bucket each"
    )
  # A constant table by distance, so that buckets do not depend on the rounding of a device's logarithm.
  distance = np.arange(max_distance + 1)
  logarithm = np.log(np.maximum(distance, exact) / exact) / np.log(max_distance / exact)
  spaced = exact + np.floor(logarithm * (ahead - exact) + 1e-9).astype(int)
  table = np.where(distance < exact, distance, np.minimum(spaced, ahead - 1)).astype(np.int32)
  steps = jnp.abs(offset) if bidirectional else jnp.maximum(-offset, 0)
  bucket = jnp.asarray(table)[jnp.minimum(steps, max_distance)]
  return bucket + jnp.where(offset > 0, ahead, 0) if bidirectional else bucket


class BucketedRelativePositionBias(nn.Module):
  """A learned score for every bucket of offsets and every head (T5; Raffel et al. 2020, 2.1): [B, N, T, S].

  Attributes:
    heads: N.
    buckets, max_distance, bidirectional: see `relative_position_bucket`.
  """

  num_heads: int
  buckets: int = 32
  max_distance: int = 128
  bidirectional: bool = True

  @nn.compact
  def __call__(self, query_BT: jax.Array, key_BS: jax.Array) -> jax.Array:
    """From positions in tokens, int (B may be 1), to the float32 `bias` of `dot_product_attention`."""
    expect(query_BT=query_BT, key_BS=key_BS)
    table = self.param("buckets", initializers.position, (self.buckets, self.num_heads))
    offset_BTS = key_BS[:, None] - query_BT[:, :, None]
    bucket_BTS = relative_position_bucket(offset_BTS, self.buckets, self.max_distance, self.bidirectional)
    return jnp.moveaxis(table[bucket_BTS], -1, 1)


# Logical axes of the parameters (`zoo.partitioning`).
POSITION_AXES = {
  "table": ("rows", "columns", "embed"),
  "row": ("rows", "half_embed"),
  "column": ("columns", "half_embed"),
  "cls": ("embed",),
}
WINDOW_BIAS_AXES = {
  "table": ("offset_rows", "offset_columns", "heads"),
  "up/kernel": ("coordinates", "offset_hidden"),
  "up/bias": ("offset_hidden",),
  "down/kernel": ("offset_hidden", "heads"),
}
BUCKET_BIAS_AXES = {"buckets": ("buckets", "heads")}
