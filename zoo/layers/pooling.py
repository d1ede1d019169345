"""Attention of one head with parameters of its own, and what there was before attention.

Every kind has one call, `(q_BTQ, k_BSE, v_BSD, *, mask=None) -> (out [B, T, D], weights [B, 1, T, S])`, so a model
may choose by name. The scores are functions of `zoo/layers/attention.py`; what is here holds their parameters.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from zoo.errors import nearest
from zoo.layers import initializers
from zoo.layers.attention import (
  additive_scores,
  attention_pool,
  dot_scores,
  gaussian_scores,
  general_scores,
  uniform_scores,
)
from zoo.layers.mlp import MLP_AXES, Mlp
from zoo.layers.multi_head_attention import ATTENTION_AXES, Attention
from zoo.layers.norms import NORM_AXES, LayerNorm
from zoo.partitioning import under
from zoo.shapes import expect

KINDS = ("average", "gaussian", "dot", "scaled_dot", "general", "additive")


class Pooling(nn.Module):
  """Queries [B, T, Q], keys [B, S, E] and values [B, S, D] to [B, T, D], with the weights [B, 1, T, S].

  Attributes:
    kind: "average" (no attention), "gaussian" (kernel regression), "dot" and "scaled_dot"
      (without and with a division by sqrt(Q)), "general" (a learned bilinear form), "additive" (a learned layer);
      the first and the last two take queries and keys of different widths.
    hidden: A, of "additive".
    width: of the kernel of "gaussian": its standard deviation, in units of the queries and keys; at first, if learned.
    learn_width: whether the width of "gaussian" is learned, as a factor on its inverse, or stays.
    dropout: share of attention weights dropped in training.
    dtype: compute type.
    keys_ready: of "additive": the keys have gone through their matrix already, once for many calls, and are A wide.
  """

  kind: str
  hidden: int = 0
  width: float = 1.0
  learn_width: bool = True
  dropout_rate: float = 0.0
  dtype: DTypeLike = jnp.float32
  keys_ready: bool = False

  @nn.compact
  def __call__(
    self, q_BTQ: jax.Array, k_BSE: jax.Array, v_BSD: jax.Array, *, mask: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """`mask` is bool, broadcastable to [B, 1, T, S], True = may attend (`zoo.layers.attention_masks`)."""
    expect(q_BTQ=q_BTQ, k_BSE=k_BSE, v_BSD=v_BSD)
    v_BSD = v_BSD.astype(self.dtype)
    if self.kind != "gaussian":  # whose distances come before any rounding: near points are not to become one
      q_BTQ, k_BSE = q_BTQ.astype(self.dtype), k_BSE.astype(self.dtype)
    key = self.make_rng("dropout") if self.dropout_rate and self.has_rng("dropout") else None
    out_BT1D, weights = attention_pool(
      self._scores(q_BTQ, k_BSE), v_BSD[:, :, None], mask=mask, dropout_rate=self.dropout_rate, dropout_key=key
    )
    return out_BT1D[:, :, 0], weights

  def _scores(self, q_BTQ: jax.Array, k_BSE: jax.Array) -> jax.Array:
    query, key = q_BTQ.shape[-1], k_BSE.shape[-1]
    match self.kind:
      case "average":
        return uniform_scores(q_BTQ, k_BSE)
      case "gaussian":
        factor = self.param("inverse_width", nn.initializers.ones, ()) if self.learn_width else 1.0
        return gaussian_scores(q_BTQ, k_BSE, factor / self.width)
      case "dot":
        return dot_scores(q_BTQ, k_BSE)
      case "scaled_dot":
        return dot_scores(q_BTQ * query**-0.5, k_BSE)
      case "general":
        return general_scores(q_BTQ, k_BSE, self._matrix("bilinear", query, key))
      case "additive":
        if self.hidden < 1:
          raise ValueError(f"additive attention has {self.hidden} hidden units; wanted at least 1")
        # Glorot's uniform initialiser wants a matrix: v is one of a single column.
        score_A = self._matrix("score", self.hidden, 1)[:, 0]
        query_QA = self._matrix("query", query, self.hidden)
        key_EA = None if self.keys_ready else self._matrix("key", key, self.hidden)
        return additive_scores(q_BTQ, k_BSE, query_QA, key_EA, score_A)
    raise ValueError(f"unknown attention {self.kind!r}{nearest(self.kind, KINDS)}")

  def _matrix(self, name: str, *shape: int) -> jax.Array:
    return self.param(name, initializers.dense, shape).astype(self.dtype)


class WindowDense(nn.Module):
  """A fixed window of neighbours, concatenated, through a dense layer: tokens [B, T, D] to [B, T, features].

  The context of a token before attention (Bengio et al. 2003, eq. 1, with the words before it; Collobert et al. 2011,
  3.3.1, with those on both sides): each position in the window has its own weights, whatever token is there.

  Attributes:
    features: width of the output.
    window: a token sees those less than `window` away, on both sides, or with `causal` on the left alone: as many
      as `zoo.layers.attention_masks.window` shows it.
    causal: whether the tokens after it are left out.
    dtype: compute type.
  """

  features: int
  window: int
  causal: bool = False
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x_BTD: jax.Array, padding_mask_BT: jax.Array | None = None) -> jax.Array:
    """`padding_mask_BT` is bool, False for padding, which counts as 0, like what is beyond the ends."""
    sizes = expect(x_BTD=x_BTD, padding_mask_BT=padding_mask_BT)
    if self.window < 1:
      raise ValueError(f"a window of {self.window} tokens; wanted at least 1, the token itself")
    if padding_mask_BT is not None:
      x_BTD = jnp.where(padding_mask_BT[..., None], x_BTD, 0)
    before, after = self.window - 1, 0 if self.causal else self.window - 1
    padded = jnp.pad(x_BTD, ((0, 0), (before, after), (0, 0)))
    shifted = [padded[:, i : i + sizes["T"]] for i in range(before + 1 + after)]
    dense = nn.Dense(self.features, kernel_init=initializers.dense, dtype=self.dtype, name="window")
    return dense(jnp.concatenate(shifted, -1))


class AttentionPool(nn.Module):
  """Multi-head attention pooling by one learned query: tokens [B, T, D] to [B, D] (MAP; Zhai et al. 2022, 3.2)."""

  num_heads: int
  mlp_dim: int
  activation: str = "gelu"
  epsilon: float = 1e-6
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    sizes = expect(x_BTD=x_BTD)
    probe_D = self.param("probe", initializers.token, (sizes["D"],))
    probe_B1D = jnp.broadcast_to(probe_D, (sizes["B"], 1, sizes["D"])).astype(x_BTD.dtype)
    x_B1D, *_ = Attention(self.num_heads, dtype=self.dtype, name="attn")(probe_B1D, x_BTD)
    y_B1D = LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(x_B1D)
    return (x_B1D + Mlp(self.mlp_dim, self.activation, dtype=self.dtype, name="mlp")(y_B1D))[:, 0]


# Logical axes of the parameters (`zoo.partitioning`).
POOLING_AXES = {
  "bilinear": ("query_embed", "key_embed"),
  "query": ("query_embed", "attention_hidden"),
  "key": ("key_embed", "attention_hidden"),
  "score": ("attention_hidden", "one"),
  "inverse_width": (),
}
WINDOW_DENSE_AXES = {"window/kernel": ("window_embed", "window_features"), "window/bias": ("window_features",)}
ATTENTION_POOL_AXES = (
  {"probe": ("embed",)} | under("attn", ATTENTION_AXES) | under("norm", NORM_AXES) | under("mlp", MLP_AXES)
)
