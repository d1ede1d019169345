"""A Transformer block: self-attention, optional cross-attention and an MLP, each in a residual branch."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from zoo.layers import initializers, norms
from zoo.layers.dropout import Dropout, DropPath
from zoo.layers.mlp import MLP_AXES, Mlp
from zoo.layers.multi_head_attention import ATTENTION_AXES, Attention, Cache
from zoo.partitioning import shard_batch, under


class BlockInputs(NamedTuple):
  """The inputs of a block beside the tokens; each may be None.

  Attributes:
    mask: of self-attention, bool, broadcastable to [B, N, T, S], True = may attend.
    bias: added to the scores of self-attention, broadcastable to [B, N, T, S].
    memory: [B, S, D], keys and values of cross-attention.
    memory_mask: of cross-attention, like `mask`.
    cache: (`Cache` of self-attention, `Cache` of cross-attention).
    index: position of the new tokens in the first of them.
    position: [B, T] int, positions for rotary attention.
    padding_mask: [B, T] bool, False for padding; for norms with statistics over all tokens.
  """

  mask: jax.Array | None = None
  bias: jax.Array | None = None
  memory: jax.Array | None = None
  memory_mask: jax.Array | None = None
  cache: tuple[Cache, Cache] | None = None
  index: jax.Array | None = None
  position: jax.Array | None = None
  padding_mask: jax.Array | None = None

  def updated(self, other: "BlockInputs | None") -> "BlockInputs":
    """These inputs, with those of `other` that are not None in their place."""
    given = {} if other is None else other._asdict()
    return self._replace(**{name: value for name, value in given.items() if value is not None})


class Block(nn.Module):
  """A Transformer block: [B, T, D] to [B, T, D].

  A "pre"-norm block normalises the input of each branch (ViT, Dosovitskiy et al. 2021, eq. 2 and 3), a "post"-norm
  block the sum of input and branch (Vaswani et al. 2017, 3.1).

  Attributes:
    num_heads: N. mlp_dim: F. num_kv_heads: K, 0 for N.
    activation: of the MLP, one of `zoo.layers.activations.ACTIVATIONS`.
    norm: one of `zoo.layers.norms.KINDS`. norm_eps: its epsilon. norm_position: "pre" or "post".
    dropout_rate: of the branches' outputs and, with `hidden_dropout`, of the MLP's hidden units.
    attention_dropout_rate: of the attention weights.
    relative_length: T of learned relative positions in self-attention; 0 for none. rotary: rotary positions there.
    cross: attend to `BlockInputs.memory` between self-attention and MLP.
    kernel_init: of every dense kernel. dtype: compute type.
    attention: one of `zoo.layers.attention.IMPLEMENTATIONS`.
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
  attention: str = "auto"

  @nn.compact
  def __call__(
    self,
    x_BTD: jax.Array,
    drop_path_rate: float | jax.Array | None = None,
    shared_inputs: BlockInputs | None = None,
    block_inputs: BlockInputs | None = None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Runs the block.

    Args:
      x_BTD: the tokens.
      drop_path_rate: rate of stochastic depth; None for none.
      shared_inputs: what all blocks of a stack get. block_inputs: what this block alone gets.

    Returns:
      the output, and aux: "weights" of self-attention [B, N, T, S]; with `cross` also "cross_weights" [B, N, T, S] and
      "cache", a pair as in `BlockInputs`.
    """
    inputs = BlockInputs().updated(shared_inputs).updated(block_inputs)
    self_cache, memory_cache = inputs.cache or (None, None)
    pre = self.norm_position == "pre"
    make_norm = functools.partial(norms.norm, self.norm, self.norm_eps, self.dtype)
    attention = functools.partial(
      Attention,
      self.num_heads,
      self.attention_dropout_rate,
      num_kv_heads=self.num_kv_heads,
      kernel_init=self.kernel_init,
      dtype=self.dtype,
      implementation=self.attention,
    )
    x_BTD, aux = shard_batch(x_BTD), {}

    norm = functools.partial(make_norm(name="norm1"), padding_mask=inputs.padding_mask)
    y_BTD, aux["weights"], self_cache = attention(
      relative_length=self.relative_length, rotary=self.rotary, name="attn"
    )(
      norm(x_BTD) if pre else x_BTD,
      mask=inputs.mask,
      bias=inputs.bias,
      position_BT=inputs.position,
      cache=self_cache,
      index=inputs.index,
    )
    x_BTD = x_BTD + self._drop(y_BTD, "attn", drop_path_rate)
    x_BTD = x_BTD if pre else norm(x_BTD)

    if self.cross:
      norm = functools.partial(make_norm(name="cross_norm"), padding_mask=inputs.padding_mask)
      y_BTD, aux["cross_weights"], memory_cache = attention(name="cross")(
        norm(x_BTD) if pre else x_BTD, inputs.memory, mask=inputs.memory_mask, cache=memory_cache
      )
      x_BTD = x_BTD + self._drop(y_BTD, "cross", drop_path_rate)
      x_BTD = x_BTD if pre else norm(x_BTD)
      aux["cache"] = (self_cache, memory_cache)

    norm = functools.partial(make_norm(name="norm2"), padding_mask=inputs.padding_mask)
    hidden_dropout_rate = self.dropout_rate if self.hidden_dropout else 0.0
    mlp = Mlp(self.mlp_dim, self.activation, hidden_dropout_rate, self.dtype, self.kernel_init, name="mlp")
    y_BTD = mlp(norm(x_BTD) if pre else x_BTD)
    x_BTD = x_BTD + self._drop(y_BTD, "mlp", drop_path_rate)
    x_BTD = x_BTD if pre else norm(x_BTD)
    return shard_batch(x_BTD), aux

  def _drop(self, y_BTD: jax.Array, branch: str, drop_path_rate: float | jax.Array | None) -> jax.Array:
    """Dropout and stochastic depth of a branch's output."""
    y_BTD = Dropout(self.dropout_rate, name=f"{branch}_dropout")(y_BTD)
    return DropPath(name=f"{branch}_drop_path")(y_BTD, drop_path_rate)


# Logical axes of the parameters (`zoo.partitioning`).
BLOCK_AXES = (
  under("(attn|cross)", ATTENTION_AXES) | under("mlp", MLP_AXES) | under("(norm1|norm2|cross_norm)", norms.NORM_AXES)
)
