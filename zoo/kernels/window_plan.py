"""How window attention goes through a map: blocks of maps, steps of windows, and where a window's tokens are.

All of it is static: Python numbers, except the rows of a window where a step takes a part of a map.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from zoo.kernels.common import LANES, SUBLANES

# Windows that one grid step unrolls, so that the scheduler has independent work to overlap.
WINDOWS_A_STEP = 16


@dataclasses.dataclass(frozen=True)
class Plan:
  """All that is static. Sizes are those of the padded batch; `kinds` [W] says which mask a window of a map has."""

  batch: int
  size: tuple[int, int]
  width: int
  num_heads: int
  window: tuple[int, int]
  shift: tuple[int, int]
  kinds: tuple[int, ...]
  images: int  # a block
  bands: int  # of windows, a grid step
  itemsize: int
  interpret: bool

  @property
  def head_width(self) -> int:
    return self.width // self.num_heads

  @property
  def pitch(self) -> int:
    """Slots that a row of a window takes: as many as fit most tightly into whole registers, multiples of 8 first."""
    rows, columns = self.window
    return min(range(columns, columns + SUBLANES), key=lambda p: (up(rows * p), p % SUBLANES != 0, p))

  @property
  def slots(self) -> int:
    """Rows of a window in registers."""
    return up(self.window[0] * self.pitch)

  @property
  def lanes(self) -> int:
    """Of a block: 128, or all where 128 do not divide them."""
    return LANES if self.width % LANES == 0 else self.width

  @property
  def parts(self) -> tuple[tuple[int, int], ...]:
    """First lane and number of heads of each part of a block whose heads are computed together."""
    width = min(LANES, self.lanes)
    first = range(0, self.lanes, width)
    return tuple((lane, min(width, self.lanes - lane) // self.head_width) for lane in first)

  @property
  def most_heads(self) -> int:
    return self.parts[0][1]

  @property
  def groups(self) -> int:
    return self.width // self.lanes

  @property
  def rows(self) -> int:
    """Tokens of a block."""
    return self.images * self.size[0] * self.size[1]

  @property
  def grid_windows(self) -> tuple[int, int]:
    return self.size[0] // self.window[0], self.size[1] // self.window[1]

  @property
  def grid(self) -> tuple[int, int, int, int]:
    """Groups of heads, parts of the batch with a bias gradient each, blocks of images, steps of a block."""
    blocks, steps = self.batch // self.images, self.grid_windows[0] // self.bands
    halves = 2 if blocks % 2 == 0 else 1
    return self.groups, halves, blocks // halves, steps

  @property
  def kind_count(self) -> int:
    return max(self.kinds) + 1


def up(n: int, to: int = SUBLANES) -> int:
  """The next multiple of `to`."""
  return -(-n // to) * to


def _pieces(plan: Plan, column: int) -> list[list[tuple[int, int, int, int]]]:
  """Of each register of a window: (first sublane, end, row of the window, column of the map) of what lies together.

  `column` is that of the window. Columns behind the last of the map continue with the first.
  """
  (rows, columns), X = plan.window, plan.size[1]
  tokens = [
    (y * plan.pitch + x, y, (column * columns + plan.shift[1] + x) % X) for y in range(rows) for x in range(columns)
  ]
  registers = [[] for _ in range(plan.slots // SUBLANES)]
  for slot, y, x in tokens:
    pieces, sublane = registers[slot // SUBLANES], slot % SUBLANES
    if pieces and pieces[-1][1] == sublane and pieces[-1][2] == y and pieces[-1][3] + sublane - pieces[-1][0] == x:
      pieces[-1] = (*pieces[-1][:1], sublane + 1, *pieces[-1][2:])
    else:
      pieces.append((sublane, sublane + 1, y, x))
  return registers


@dataclasses.dataclass(frozen=True)
class Window:
  """A window of a grid step: the registers' pieces, each (first sublane, end, row of the scratch), and its mask."""

  registers: list
  kind: int | jax.Array


def windows(plan: Plan, kinds: jax.Array) -> list[Window]:
  """The windows of this grid step; rows are numbers where a step takes whole images, else traced."""
  (Y, X), (rows, _), (down, across) = plan.size, plan.window, plan.grid_windows
  first = 0 if down == plan.bands else pl.program_id(3) * plan.bands
  found = []
  for image in range(plan.images):
    for band in range(plan.bands):
      starts = []
      for y in range(rows):
        row = (first + band) * rows + plan.shift[0] + y
        if isinstance(row, int):
          starts.append(SUBLANES + (image * Y + row % Y) * X)
        else:
          row = jnp.where(row >= Y, row - Y, row) if plan.shift[0] else row
          start = SUBLANES + row * X
          starts.append(pl.multiple_of(start, SUBLANES) if X % SUBLANES == 0 else start)
      for column in range(across):
        registers = [[(a, b, starts[y] + x) for a, b, y, x in pieces] for pieces in _pieces(plan, column)]
        number = (first + band) * across + column
        same = plan.kind_count == 1 or isinstance(number, int)
        found.append(Window(registers, plan.kinds[0 if plan.kind_count == 1 else number] if same else kinds[number]))
  return found


def block(batch: int, size: tuple[int, int], window: tuple[int, int], rows: int) -> tuple[int, int, int]:
  """The padded batch, images a block, and bands of windows a step; `rows` are those of a tile."""
  tokens, (down, across) = math.prod(size), (n // w for n, w in zip(size, window, strict=True))
  if down * across > WINDOWS_A_STEP:
    fitting = [b for b in range(1, down + 1) if down % b == 0 and b * across <= WINDOWS_A_STEP]
    bands = max(fitting, default=1)
  else:
    bands = down
  least = rows // math.gcd(tokens, rows)
  if bands < down:
    if least == 1 or batch == 1:
      return batch, 1, bands
    bands = down  # several images a block, all of whose windows are one step
  if batch <= least:
    return batch, batch, bands
  whole = up(batch, least)
  most = max(least, WINDOWS_A_STEP // (down * across))
  return whole, max(n for n in range(least, most + 1, least) if whole % n == 0), bands
