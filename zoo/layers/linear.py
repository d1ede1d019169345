"""Output logits by the transposed embedding table."""

import jax
import jax.numpy as jnp

from zoo import compat
from zoo.shapes import expect


def tied_logits(x_BTD: jax.Array, table_VD: jax.Array) -> jax.Array:
  """Logits by the embedding table, x E^T (Press & Wolf 2017, 2).

  Args:
    x_BTD: hidden states.
    table_VD: embeddings, cast to the type of x.

  Returns:
    [B, T, V] float32, accumulated in float32
  """
  expect(x_BTD=x_BTD, table_VD=table_VD)

  def product(x, table_DV):
    return jnp.matmul(x, table_DV, preferred_element_type=jnp.float32)

  return compat.float32_product(product, x_BTD, table_VD.astype(x_BTD.dtype).T)
