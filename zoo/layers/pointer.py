"""Copying: a distribution over the places of the source, as one over words (Vinyals et al. 2015, eq. 3), or mixed with
one over all words (See et al. 2017, 2.2).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.layers import initializers
from zoo.shapes import expect


def copied(weights_BTS: jax.Array, source_BS: jax.Array, size: int) -> jax.Array:
  """A distribution over places as one over tokens: all places of a token count together (Kadlec et al. 2016, eq. 3).

  Args:
    weights_BTS: attention to the source; a row of them sums to 1.
    source_BS: tokens, below `size`.
    size: how many tokens there are.

  Returns:
    [B, T, size] float32, the logarithms of the probabilities; -87 for a token that is nowhere.
  """
  expect(weights_BTS=weights_BTS, source_BS=source_BS)
  # Scattered by a matrix product, which a TPU does faster than adding into places.
  places_BSV = jax.nn.one_hot(source_BS, size, dtype=jnp.float32)
  sums_BTV = jnp.einsum("BTS,BSV->BTV", weights_BTS.astype(jnp.float32), places_BSV)
  # A floor, so that the gradient of a token that is nowhere is 0 and no nan.
  return jnp.log(jnp.maximum(sums_BTV, jnp.finfo(jnp.float32).tiny))


class Copies(nn.Module):
  """Lets a decoder copy tokens of the source, also such as its vocabulary does not have.

  Attributes:
    slots: how many source words outside the vocabulary a batch may tell apart; the source has them as tokens V,
      V + 1, ..., and the output gets as many places more.
  """

  slots: int = 0

  @nn.compact
  def __call__(
    self, logits_BTV: jax.Array, weights_BTS: jax.Array, source_BS: jax.Array, state_BTD: jax.Array
  ) -> jax.Array:
    """Mixes the two distributions (eq. 9): p_gen softmax(logits) + (1 - p_gen) (attention on each token's places).

    Args:
      logits_BTV: of the words.
      weights_BTS: attention to the source; a row of them sums to 1.
      source_BS: tokens, below V + slots.
      state_BTD: what decides between the two (eq. 8; a Transformer's state has seen context and input).

    Returns:
      [B, T, V + slots] float32, the logarithms of the mixed probabilities.
    """
    sizes = expect(logits_BTV=logits_BTV, weights_BTS=weights_BTS, source_BS=source_BS, state_BTD=state_BTD)
    gate = nn.Dense(1, kernel_init=initializers.dense, name="gate")(state_BTD.astype(jnp.float32))
    words = jax.nn.log_softmax(logits_BTV.astype(jnp.float32)) + jax.nn.log_sigmoid(gate)
    words = jnp.pad(words, ((0, 0), (0, 0), (0, self.slots)), constant_values=-jnp.inf)
    places = copied(weights_BTS, source_BS, sizes["V"] + self.slots) + jax.nn.log_sigmoid(-gate)
    return jnp.logaddexp(words, places)


# Logical axes of the parameters (`zoo.partitioning`).
COPY_AXES = {"gate/kernel": ("embed", "gate"), "gate/bias": ("gate",)}
