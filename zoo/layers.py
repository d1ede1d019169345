"""The parts every family is built of. Training or evaluation is told by the rngs: no `dropout` key, no dropout."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zoo import compat, init, norms, positions
from zoo.attention import attend, cosine
from zoo.axes import by_batch
from zoo.dense import Dense, dot_general
from zoo.dropout import drop
from zoo.norms import LayerNorm
from zoo.shapes import expect


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
  """The normal distribution function of x, times x, exactly (Hendrycks & Gimpel 2016, sec. 2), as PyTorch has it.

  By `erf`: `jax.nn.gelu` goes by `erfc`, whose digits far below 0 nobody needs, and which takes several times as long.
  The backward pass keeps x alone.
  """
  return (x * _normal_cdf(x)).astype(x.dtype)


def _normal_cdf(x: jax.Array) -> jax.Array:
  return 0.5 + 0.5 * jax.lax.erf(x.astype(jnp.float32) * np.float32(0.5**0.5))


def _gelu_backward(x: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
  # Without the barrier the compiler recognises the forward pass's distribution function, and keeps that, too.
  x, dy = jax.lax.optimization_barrier((x, dy))
  density = jnp.exp(-0.5 * jnp.square(x.astype(jnp.float32))) * np.float32((2 * np.pi) ** -0.5)
  return ((dy * (_normal_cdf(x) + x * density)).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)

ACTIVATIONS = {
  "gelu": gelu,
  "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),  # JAX's default, and GPT-2's
  "relu": jax.nn.relu,
  "swish": jax.nn.silu,  # x sigmoid(x) (Ramachandran et al. 2017)
}


class Dropout(nn.Module):
  """Sets a share `rate` of the values to 0, in training only (Srivastava et al. 2014)."""

  rate: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return drop(x, self.rate, self.make_rng("dropout") if self.rate and self.has_rng("dropout") else None)


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


class Cache(NamedTuple):
  """Keys and values [B, K, S, H] that later queries attend to: in the order in which a head reads them.

  Kept token by token, [B, S, K, H], they would all be reordered for each new token.
  """

  k_BKSH: jax.Array
  v_BKSH: jax.Array


class Attention(nn.Module):
  """Multi-head attention: queries from x [B, T, D], keys and values from y [B, S, D], to [B, T, D].

  Attributes:
    heads: N; divides D.
    dropout: share of attention weights dropped in training.
    relative_length: T for which to hold relative position keys (`positions.relative_scores`); 0 for none.
    dtype: compute type.
    kv_heads: K; divides N, and each key and value head serves N / K query heads (Ainslie et al. 2023); 0 for N.
    rotary: turn queries and keys by their positions (`positions.rotary`).
    kernel_init: of the projections.
    cosine: score by cosines (`attention.cosine`); keys then have no bias.
  """

  heads: int
  dropout: float = 0.0
  relative_length: int = 0
  dtype: jnp.dtype = jnp.float32
  kv_heads: int = 0
  rotary: bool = False
  kernel_init: Callable = init.dense
  cosine: bool = False

  @nn.compact
  def __call__(
    self,
    x_BTD: jax.Array,
    y_BSD: jax.Array | None = None,
    *,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    position_BT: jax.Array | None = None,
    cache: Cache | None = None,
    index: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array, Cache]:
    """Attends; `y_BSD=None` is self-attention.

    Args:
      x_BTD: what asks.
      y_BSD: what is looked at.
      mask, bias: see `attention.attend`.
      position_BT: of the tokens of `x_BTD`, for `rotary`, which is for self-attention.
      cache: keys and values from before, in place of those of `y_BSD`.
      index: where in the cache to put the keys and values of `x_BTD` first, for decoding token by token.

    Returns:
      the output [B, T, D], the weights [B, N, T, S], and the keys and values attended to.
    """
    width = expect(x_BTD=x_BTD, y_BSD=y_BSD)["D"]
    check_heads(width, self.heads)
    kv_heads = self.kv_heads or self.heads

    def project(name: str, heads: int, tokens: jax.Array) -> jax.Array:
      features, bias = (heads, width // self.heads), name != "k" or not self.cosine
      dense = Dense(features, use_bias=bias, kernel_init=self.kernel_init, dtype=self.dtype, name=name)
      return dense(tokens)

    q_BTNH = project("q", self.heads, x_BTD)
    if self.rotary:
      q_BTNH = positions.rotary(q_BTNH, position_BT)
    if cache is None or index is not None:
      y_BSD = x_BTD if y_BSD is None else y_BSD
      k_BSKH, v_BSKH = project("k", kv_heads, y_BSD), project("v", kv_heads, y_BSD)
      if self.rotary:
        k_BSKH = positions.rotary(k_BSKH, position_BT)
      new = Cache(k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2))
      if cache is None:
        cache = new
      else:
        cache = jax.tree.map(lambda old, n: jax.lax.dynamic_update_slice_in_dim(old, n, index, 2), cache, new)
    if self.relative_length:
      table = self.param("relative", init.position, (2 * self.relative_length - 1, width // self.heads))
      scores = positions.relative_scores(q_BTNH, table)
      bias = scores if bias is None else bias + scores
    key = self.make_rng("dropout") if self.dropout and self.has_rng("dropout") else None
    k_BSKH, v_BSKH = (a.swapaxes(1, 2) for a in cache)
    if self.cosine:
      log_scale_N = self.param("log_scale", nn.initializers.constant(np.log(10.0)), (self.heads,))
      q_BTNH, k_BSKH = cosine(q_BTNH, k_BSKH, log_scale_N)
    out_BTNH, weights = attend(q_BTNH, k_BSKH, v_BSKH, mask=mask, bias=bias, dropout_rate=self.dropout, dropout_key=key)
    out = Dense(width, axes=2, kernel_init=self.kernel_init, dtype=self.dtype, name="out")
    return out(out_BTNH), weights, cache


class Mlp(nn.Module):
  """Two dense layers with an activation between, at each token: [..., D] to [..., D]."""

  hidden: int
  activation: str = "gelu"
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32
  kernel_init: Callable = init.dense

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dense = functools.partial(Dense, kernel_init=self.kernel_init, bias_init=init.mlp_bias, dtype=self.dtype)
    hidden = ACTIVATIONS[self.activation](dense(self.hidden, name="up")(x))
    hidden = Dropout(self.dropout, name="hidden_dropout")(hidden)
    return dense(x.shape[-1], name="down")(hidden)


class Context(NamedTuple):
  """What a block may look at beside its input; each may be missing.

  Attributes:
    mask: who may attend to whom, as in `attention.attend`. bias: added to the scores.
    memory: [B, S, D] for cross-attention. memory_mask: which of it is real.
    cache: (`Cache` of the block's own tokens, `Cache` of the memory). index: of the new tokens in the first of them.
    position: [B, T], for rotary attention. real: [B, T] bool, False for padding, for norms over all tokens.
  """

  mask: jax.Array | None = None
  bias: jax.Array | None = None
  memory: jax.Array | None = None
  memory_mask: jax.Array | None = None
  cache: tuple[Cache, Cache] | None = None
  index: jax.Array | None = None
  position: jax.Array | None = None
  real: jax.Array | None = None


class Block(nn.Module):
  """A Transformer block: [B, T, D] to [B, T, D]. Every sublayer's output is added to its input.

  A "pre"-norm block normalises what goes into a sublayer (ViT, Dosovitskiy et al. 2021, eq. 2 and 3), a "post"-norm
  block the sum (Vaswani et al. 2017, 3.1). With `cross` it also attends to a memory, between the two. `dropout` is of
  the sublayers' outputs and, if `hidden_dropout`, within the MLP.
  """

  heads: int
  mlp_dim: int
  activation: str = "gelu"
  epsilon: float = 1e-6
  dropout: float = 0.0
  attention_dropout: float = 0.0
  relative_length: int = 0
  dtype: jnp.dtype = jnp.float32
  order: str = "pre"
  cross: bool = False
  kv_heads: int = 0
  rotary: bool = False
  norm: str = "layer"
  hidden_dropout: bool = True
  kernel_init: Callable = init.dense

  @nn.compact
  def __call__(
    self,
    x_BTD: jax.Array,
    drop_path: float | jax.Array | None = None,
    shared: Context | None = None,
    own: Context | None = None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the output and, in a dict, the attention weights [B, N, T, S] and the caches.

    Args:
      x_BTD: the input.
      drop_path: rate of stochastic depth.
      shared, own: what all blocks look at, and what only this one does.
    """
    given = Context(*(a if b is None else b for a, b in zip(shared or Context(), own or Context(), strict=True)))
    own_cache, memory_cache = given.cache or (None, None)

    def attention(name: str) -> Attention:
      of_itself = name == "attn"
      relative, rotary = self.relative_length if of_itself else 0, self.rotary and of_itself
      sizes = self.heads, self.attention_dropout, relative, self.dtype, self.kv_heads, rotary
      return Attention(*sizes, kernel_init=self.kernel_init, name=name)

    def add(x: jax.Array, sublayer: Callable, name: str, norm: str) -> tuple[jax.Array, tuple]:
      """Residual, norm, dropout and stochastic depth around a sublayer; also what else that returns."""
      norm = functools.partial(norms.norm(self.norm, self.epsilon, self.dtype, norm), real=given.real)
      y, *rest = sublayer(norm(x) if self.order == "pre" else x)
      y = Dropout(self.dropout, name=f"{name}_dropout")(y)
      x = x + DropPath(name=f"{name}_drop_path")(y, drop_path)
      return (x if self.order == "pre" else norm(x)), rest

    def attend_self(x):
      where = dict(position_BT=given.position, cache=own_cache, index=given.index)
      return attention("attn")(x, mask=given.mask, bias=given.bias, **where)

    def attend_memory(x):
      return attention("cross")(x, given.memory, mask=given.memory_mask, cache=memory_cache)

    def transform(x):
      dropout = self.dropout if self.hidden_dropout else 0.0
      return (Mlp(self.mlp_dim, self.activation, dropout, self.dtype, self.kernel_init, name="mlp")(x),)

    x_BTD, (weights, own_cache) = add(by_batch(x_BTD), attend_self, "attn", "norm1")
    aux = {"weights": weights}
    if self.cross:
      x_BTD, (aux["cross_weights"], memory_cache) = add(x_BTD, attend_memory, "cross", "cross_norm")
      aux["cache"] = (own_cache, memory_cache)
    x_BTD, _ = add(x_BTD, transform, "mlp", "norm2")
    x_BTD = by_batch(x_BTD)
    return x_BTD, {"": x_BTD, **aux}


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
    x_B1D, *_ = Attention(self.heads, dtype=self.dtype, name="attn")(probe_B1D, x_BTD)
    y_B1D = LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(x_B1D)
    return (x_B1D + Mlp(self.mlp_dim, self.activation, dtype=self.dtype, name="mlp")(y_B1D))[:, 0]


def choose_tokens(x_BPD: jax.Array, index_BT: jax.Array) -> jax.Array:
  """Picks tokens of each example by their index: [B, P, D] and [B, T] to [B, T, D]."""
  expect(x_BPD=x_BPD, index_BT=index_BT)
  return jnp.take_along_axis(x_BPD, index_BT[..., None], axis=1)


def patch_noise(module: nn.Module, batch: int, patches: int, purpose: str) -> jax.Array:
  """Uniform noise [B, P] that decides which patches are hidden, from the module's rng `mask`.

  Raises:
    ValueError: there is no such rng; `purpose` says what it is for.
  """
  if not module.has_rng("mask"):
    raise ValueError(f'{purpose}: rngs={{"mask": key}}, or noise_BP')
  return jax.random.uniform(module.make_rng("mask"), (batch, patches))


def tied_logits(x_BTD: jax.Array, table_VD: jax.Array) -> jax.Array:
  """How well each word's embedding fits: [B, T, V], summed in float32 (Press & Wolf 2017, 2)."""
  expect(x_BTD=x_BTD, table_VD=table_VD)
  table_DV = table_VD.astype(x_BTD.dtype).T

  def product(x, w):
    return dot_general(x, w, (((x.ndim - 1,), (0,)), ((), ())), preferred_element_type=jnp.float32)

  return compat.float32_product(product, x_BTD, table_DV)


def drop_path_rates(maximum: float, depth: int) -> np.ndarray:
  """[L]: the rate grows linearly from 0 at the first block to `maximum` at the last (Huang et al. 2016, eq. 4)."""
  return np.linspace(0, maximum, depth)
