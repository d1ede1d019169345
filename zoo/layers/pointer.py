"""Pointer networks: attention to the source as a distribution over tokens (Vinyals et al. 2015, eq. 3), alone or mixed
with one over the vocabulary (See et al. 2017, 2.2).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.layers import initializers
from zoo.shapes import expect


def copy_log_probs(weights_BTS: jax.Array, source_BS: jax.Array, size: int) -> jax.Array:
  """A distribution over source positions, summed over each token's positions (Kadlec et al. 2016, eq. 3).

  Args:
    weights_BTS: attention to the source; a row of them sums to 1.
    source_BS: tokens, below `size`.
    size: how many tokens there are.

  Returns:
    [B, T, size] float32, log-probabilities; -87 for a token that is not in the source.
  """
  expect(weights_BTS=weights_BTS, source_BS=source_BS)
  # A matrix product, which is faster on a TPU than a scatter-add.
  one_hot_BSV = jax.nn.one_hot(source_BS, size, dtype=jnp.float32)
  sums_BTV = jnp.einsum("BTS,BSV->BTV", weights_BTS.astype(jnp.float32), one_hot_BSV)
  # A floor, so that the gradient of a token that is not in the source is 0 instead of nan.
  return jnp.log(jnp.maximum(sums_BTV, jnp.finfo(jnp.float32).tiny))


class PointerGenerator(nn.Module):
  """Lets a decoder copy tokens of the source, also those outside its vocabulary.

  Attributes:
    slots: number of source words outside the vocabulary that a batch may contain; they are the tokens V, V + 1, ... of
      the source, and the output is as much wider.
  """

  slots: int = 0

  @nn.compact
  def __call__(
    self, logits_BTV: jax.Array, weights_BTS: jax.Array, source_BS: jax.Array, state_BTD: jax.Array
  ) -> jax.Array:
    """Mixes the two distributions (eq. 9): p_gen softmax(logits) + (1 - p_gen) (attention summed by token).

    Args:
      logits_BTV: logits of the vocabulary.
      weights_BTS: attention to the source; a row of them sums to 1.
      source_BS: tokens, below V + slots.
      state_BTD: input of the gate (eq. 8; a Transformer's state depends on context and input).

    Returns:
      [B, T, V + slots] float32, log-probabilities of the mixture.
    """
    sizes = expect(logits_BTV=logits_BTV, weights_BTS=weights_BTS, source_BS=source_BS, state_BTD=state_BTD)
    gate = nn.Dense(1, kernel_init=initializers.dense, name="gate")(state_BTD.astype(jnp.float32))
    generated = jax.nn.log_softmax(logits_BTV.astype(jnp.float32)) + jax.nn.log_sigmoid(gate)
    generated = jnp.pad(generated, ((0, 0), (0, 0), (0, self.slots)), constant_values=-jnp.inf)
    copied = copy_log_probs(weights_BTS, source_BS, sizes["V"] + self.slots) + jax.nn.log_sigmoid(-gate)
    return jnp.logaddexp(generated, copied)


# Logical axes of the parameters (`zoo.partitioning`).
COPY_AXES = {"gate/kernel": ("embed", "gate"), "gate/bias": ("gate",)}
