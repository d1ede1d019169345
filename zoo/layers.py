"""The parts every family is built of. Training or evaluation is told by the rngs: no `dropout` key, no dropout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zoo import init, positions
from zoo.attention import attend
from zoo.axes import by_batch
from zoo.norms import LayerNorm
from zoo.shapes import expect

# GELU (Hendrycks & Gimpel 2016) exactly, as PyTorch and BERT have it, and as approximated by JAX's default.
ACTIVATIONS = {
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
  "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
  "relu": jax.nn.relu,
}


class Dropout(nn.Module):
  """Sets a share `rate` of the values to 0, in training only (Srivastava et al. 2014)."""

  rate: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    if not self.rate or not self.has_rng("dropout"):
      return x
    keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, x.shape)
    return jnp.where(keep, x / (1 - self.rate), 0)


class DropPath(nn.Module):
  """Drops a whole residual branch for some examples: stochastic depth (Huang et al. 2016, eq. 2 and 5)."""

  @nn.compact
  def __call__(self, x: jax.Array, rate: float | jax.Array | None) -> jax.Array:
    """`rate` is a number or a scalar array; None leaves the branch as it is."""
    if rate is None or not self.has_rng("dropout"):
      return x
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def check_heads(width: int, heads: int) -> None:
  """Raises ValueError where the heads do not divide the width; it names numbers that do."""
  if width % heads:
    fitting = [n for n in range(1, width + 1) if width % n == 0 and n <= 4 * heads]
    raise ValueError(f"{heads} heads do not divide the width {width}; try one of {fitting}")


class Attention(nn.Module):
  """Multi-head attention: queries from x [B, T, D], keys and values from y [B, S, D], to [B, T, D].

  Attributes:
    heads: N; divides D.
    dropout: share of attention weights dropped in training.
    relative_length: T for which to hold relative position keys (`positions.relative_scores`); 0 for none.
    dtype: compute type.
  """

  heads: int
  dropout: float = 0.0
  relative_length: int = 0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, x_BTD: jax.Array, y_BSD: jax.Array | None = None, *, mask: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """Returns the output [B, T, D] and the weights [B, N, T, S]; `y_BSD=None` is self-attention."""
    width = expect(x_BTD=x_BTD, y_BSD=y_BSD)["D"]
    check_heads(width, self.heads)
    y_BSD = x_BTD if y_BSD is None else y_BSD
    project = functools.partial(
      nn.DenseGeneral,
      (self.heads, width // self.heads),
      kernel_init=init.dense,
      dtype=self.dtype,
    )
    q_BTNH, k_BSNH, v_BSNH = (
      project(name="q")(x_BTD),
      project(name="k")(y_BSD),
      project(name="v")(y_BSD),
    )
    bias = None
    if self.relative_length:
      table = self.param("relative", init.position, (2 * self.relative_length - 1, width // self.heads))
      bias = positions.relative_scores(q_BTNH, table)
    key = self.make_rng("dropout") if self.dropout and self.has_rng("dropout") else None
    out_BTNH, weights = attend(
      q_BTNH,
      k_BSNH,
      v_BSNH,
      mask=mask,
      bias=bias,
      dropout_rate=self.dropout,
      dropout_key=key,
    )
    out = nn.DenseGeneral(width, axis=(-2, -1), kernel_init=init.dense, dtype=self.dtype, name="out")
    return out(out_BTNH), weights


class Mlp(nn.Module):
  """Two dense layers with an activation between, at each token: [..., D] to [..., D]."""

  hidden: int
  activation: str = "gelu"
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dense = functools.partial(nn.Dense, kernel_init=init.dense, bias_init=init.mlp_bias, dtype=self.dtype)
    hidden = ACTIVATIONS[self.activation](dense(self.hidden, name="up")(x))
    hidden = Dropout(self.dropout, name="hidden_dropout")(hidden)
    return dense(x.shape[-1], name="down")(hidden)


class Block(nn.Module):
  """A pre-norm Transformer encoder block (ViT, Dosovitskiy et al. 2021, eq. 2 and 3): [B, T, D] to [B, T, D]."""

  heads: int
  mlp_dim: int
  activation: str = "gelu"
  epsilon: float = 1e-6
  dropout: float = 0.0
  attention_dropout: float = 0.0
  relative_length: int = 0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, x_BTD: jax.Array, drop_path: float | jax.Array | None = None
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the output and, in a dict, the attention weights [B, N, T, T]."""
    x_BTD = by_batch(x_BTD)
    norm = functools.partial(LayerNorm, epsilon=self.epsilon, dtype=self.dtype)
    attention = Attention(self.heads, self.attention_dropout, self.relative_length, self.dtype, name="attn")
    mlp = Mlp(self.mlp_dim, self.activation, self.dropout, self.dtype, name="mlp")
    y, weights = attention(norm(name="norm1")(x_BTD))
    y = Dropout(self.dropout, name="attn_dropout")(y)
    x_BTD = x_BTD + DropPath(name="attn_drop_path")(y, drop_path)
    y = mlp(norm(name="norm2")(x_BTD))
    y = Dropout(self.dropout, name="mlp_dropout")(y)
    x_BTD = by_batch(x_BTD + DropPath(name="mlp_drop_path")(y, drop_path))
    return x_BTD, {"": x_BTD, "weights": weights}


def check_patches(size_YX: tuple[int, int], patch: int) -> None:
  """Raises ValueError where the patch does not divide the image; it names the nearest size."""
  for side in size_YX:
    if side % patch:
      near = max(round(side / patch), 1) * patch
      raise ValueError(
        f"an image of {size_YX[0]} x {size_YX[1]} pixels cannot be cut into {patch} x {patch} patches: "
        f"{side} is no multiple of {patch}, the nearest is {near}"
      )


def patchify(image_BYXC: jax.Array, patch: int) -> jax.Array:
  """Cuts images into patches, each flattened row by row with the channels innermost.

  Args:
    image_BYXC: rows and columns are multiples of `patch`.
    patch: side of a patch in pixels.

  Returns:
    [B, Y / patch, X / patch, patch * patch * C]

  Raises:
    ValueError: the patch does not divide the image.
  """
  sizes = expect(image_BYXC=image_BYXC)
  check_patches((sizes["Y"], sizes["X"]), patch)
  rows, columns = sizes["Y"] // patch, sizes["X"] // patch
  x = image_BYXC.reshape(sizes["B"], rows, patch, columns, patch, sizes["C"])
  return x.swapaxes(2, 3).reshape(sizes["B"], rows, columns, patch * patch * sizes["C"])


def unpatchify(patches: jax.Array, patch: int) -> jax.Array:
  """Patches [B, rows, columns, patch * patch * C] back to images [B, rows * patch, columns * patch, C]."""
  B, rows, columns, values = patches.shape
  x = patches.reshape(B, rows, columns, patch, patch, values // patch**2)
  return x.swapaxes(2, 3).reshape(B, rows * patch, columns * patch, -1)


class AttentionPool(nn.Module):
  """Multi-head attention pooling by one learned query: tokens [B, T, D] to [B, D] (MAP; Zhai et al. 2022, 3.2)."""

  heads: int
  mlp_dim: int
  activation: str = "gelu"
  epsilon: float = 1e-6
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    sizes = expect(x_BTD=x_BTD)
    probe_D = self.param("probe", init.token, (sizes["D"],))
    probe_B1D = jnp.broadcast_to(probe_D, (sizes["B"], 1, sizes["D"])).astype(x_BTD.dtype)
    x_B1D, _ = Attention(self.heads, dtype=self.dtype, name="attn")(probe_B1D, x_BTD)
    y_B1D = LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(x_B1D)
    return (x_B1D + Mlp(self.mlp_dim, self.activation, dtype=self.dtype, name="mlp")(y_B1D))[:, 0]


def choose_tokens(x_BPD: jax.Array, index_BT: jax.Array) -> jax.Array:
  """Picks tokens of each example by their index: [B, P, D] and [B, T] to [B, T, D]."""
  expect(x_BPD=x_BPD, index_BT=index_BT)
  return jnp.take_along_axis(x_BPD, index_BT[..., None], axis=1)


def drop_path_rates(maximum: float, depth: int) -> np.ndarray:
  """[L]: the rate grows linearly from 0 at the first block to `maximum` at the last (Huang et al. 2016, eq. 4)."""
  return np.linspace(0, maximum, depth)
