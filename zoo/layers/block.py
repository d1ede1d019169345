"""A Transformer block: attention, cross-attention and MLP, each with a norm and a residual connection."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from zoo.layers import initializers, norms
from zoo.layers.attention import ATTENTION_AXES, Attention, Cache
from zoo.layers.dropout import Dropout, DropPath
from zoo.layers.mlp import MLP_AXES, Mlp
from zoo.partitioning import shard_batch, under


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

  num_heads: int
  mlp_dim: int
  activation: str = "gelu"
  norm_eps: float = 1e-6
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  relative_length: int = 0
  dtype: DTypeLike = jnp.float32
  norm_position: str = "pre"
  cross: bool = False
  num_kv_heads: int = 0
  rotary: bool = False
  norm: str = "layer"
  hidden_dropout: bool = True
  kernel_init: Callable = initializers.dense

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
      sizes = self.num_heads, self.attention_dropout_rate, relative, self.dtype, self.num_kv_heads, rotary
      return Attention(*sizes, kernel_init=self.kernel_init, name=name)

    def add(x: jax.Array, sublayer: Callable, name: str, norm: str) -> tuple[jax.Array, tuple]:
      """Residual, norm, dropout and stochastic depth around a sublayer; also what else that returns."""
      norm = functools.partial(norms.norm(self.norm, self.norm_eps, self.dtype, norm), real=given.real)
      y, *rest = sublayer(norm(x) if self.norm_position == "pre" else x)
      y = Dropout(self.dropout_rate, name=f"{name}_dropout")(y)
      x = x + DropPath(name=f"{name}_drop_path")(y, drop_path)
      return (x if self.norm_position == "pre" else norm(x)), rest

    def attend_self(x):
      where = dict(position_BT=given.position, cache=own_cache, index=given.index)
      return attention("attn")(x, mask=given.mask, bias=given.bias, **where)

    def attend_memory(x):
      return attention("cross")(x, given.memory, mask=given.memory_mask, cache=memory_cache)

    def transform(x):
      dropout = self.dropout_rate if self.hidden_dropout else 0.0
      return (Mlp(self.mlp_dim, self.activation, dropout, self.dtype, self.kernel_init, name="mlp")(x),)

    x_BTD, (weights, own_cache) = add(shard_batch(x_BTD), attend_self, "attn", "norm1")
    aux = {"weights": weights}
    if self.cross:
      x_BTD, (aux["cross_weights"], memory_cache) = add(x_BTD, attend_memory, "cross", "cross_norm")
      aux["cache"] = (own_cache, memory_cache)
    x_BTD, _ = add(x_BTD, transform, "mlp", "norm2")
    x_BTD = shard_batch(x_BTD)
    return x_BTD, {"": x_BTD, **aux}


# Logical axes of the parameters (`zoo.partitioning`).
BLOCK_AXES = (
  under("(attn|cross)", ATTENTION_AXES) | under("mlp", MLP_AXES) | under("(norm1|norm2|cross_norm)", norms.NORM_AXES)
)
