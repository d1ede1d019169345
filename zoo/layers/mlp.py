"""The MLP of a Transformer block."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from zoo.layers import initializers
from zoo.layers.activations import ACTIVATIONS
from zoo.layers.dropout import Dropout


class Mlp(nn.Module):
  """Two dense layers with an activation between, at each token: [..., D] to [..., D]."""

  hidden: int
  activation: str = "gelu"
  dropout_rate: float = 0.0
  dtype: DTypeLike = jnp.float32
  kernel_init: Callable = initializers.dense

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dense = functools.partial(nn.Dense, kernel_init=self.kernel_init, bias_init=initializers.mlp_bias, dtype=self.dtype)
    hidden = ACTIVATIONS[self.activation](dense(self.hidden, name="up")(x))
    hidden = Dropout(self.dropout_rate, name="hidden_dropout")(hidden)
    return dense(x.shape[-1], name="down")(hidden)


# Logical axes of the parameters (`zoo.partitioning`).
MLP_AXES = {
  "up/kernel": ("embed", "mlp"),
  "up/bias": ("mlp",),
  "down/kernel": ("mlp", "embed"),
  "down/bias": ("embed",),
}
