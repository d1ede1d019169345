"""Kernel regression as attention pooling (Nadaraya 1964, Watson 1964): the value at a point, from those around it.

The training points are keys and values, the query points queries. The prediction is the mean of the training values
weighted by a kernel: f(x) = sum_i K(x - x_i) y_i / sum_j K(x - x_j), which is attention with the logarithm of the
kernel K as its score (`zoo.layers.attention.gaussian_scores`).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.errors import field_faults
from zoo.layers.pooling import POOLING_AXES, Pooling
from zoo.partitioning import BIASES_AND_SCALES, under
from zoo.shapes import expect

# The first two have no parameters: the data are the model.
VARIANTS = {
  "average": dict(kind="average"),
  "gaussian": dict(kind="gaussian"),
  "learned": dict(kind="gaussian", learn_bandwidth=True),
  "test": dict(kind="gaussian", learn_bandwidth=True, bandwidth=0.7),
}


@dataclass(frozen=True)
class Config:
  """Hyperparameters.

  Attributes:
    kind: "average", the mean of all values, or "gaussian", a mean weighted by a Gaussian kernel.
    bandwidth: standard deviation of the kernel, in the units of x; its initial value, if it is learned.
    learn_bandwidth: whether it is a parameter.
    dtype: of the weighted sum, "float32" or "bfloat16"; coordinates, weights and predictions stay float32.
  """

  kind: str
  bandwidth: float = 1.0
  learn_bandwidth: bool = False
  dtype: str = "float32"

  def __post_init__(self):
    faults = field_faults(self, dict(kind=("average", "gaussian"), dtype=("float32", "bfloat16")), {}, ())
    if not self.bandwidth > 0:
      faults.append(f"bandwidth is {self.bandwidth}; wanted more than 0")
    if self.learn_bandwidth and self.kind == "average":
      faults.append("learn_bandwidth=True needs kind='gaussian': an average has no bandwidth")
    if faults:
      raise ValueError("\n".join(faults))


def inputs(config: Config, batch: int) -> tuple[jax.ShapeDtypeStruct, ...]:
  """Shapes of the arguments of `Model`: queries, keys and values; parameters do not depend on their number."""
  del config
  return tuple(jax.ShapeDtypeStruct((batch, size), jnp.float32) for size in (3, 5, 5))


def learned_bandwidth(config: Config, variables: dict) -> float:
  """The bandwidth, learned or of the config; infinite for an average."""
  if config.kind == "average":
    return float("inf")
  factor = variables["params"]["pool"]["inverse_width"] if config.learn_bandwidth else 1.0
  return abs(config.bandwidth / float(factor))


class Model(nn.Module):
  """Predictions [B, T] in float32, and aux: "weights" [B, T, S], each row of which sums to 1."""

  config: Config

  @nn.compact
  def __call__(
    self, x_BT: jax.Array, key_BS: jax.Array, value_BS: jax.Array, mask_BTS: jax.Array | None = None
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Predicts the values at `x_BT` from `value_BS` at `key_BS`; `mask_BTS` is bool, True = may be used."""
    expect(x_BT=x_BT, key_BS=key_BS, value_BS=value_BS, mask_BTS=mask_BTS)
    c = self.config
    pool = Pooling(c.kind, width=c.bandwidth, learn_width=c.learn_bandwidth, dtype=c.dtype, name="pool")
    points = (array[..., None] for array in (x_BT, key_BS, value_BS))  # of one coordinate
    y_BT1, weights_B1TS = pool(*points, mask=None if mask_BTS is None else mask_BTS[:, None])
    return y_BT1[..., 0].astype(jnp.float32), {"weights": weights_B1TS[:, 0]}


# Logical axes of the parameters, those without weight decay, and their layers (`zoo.partitioning`).
LOGICAL_AXES = under("pool", POOLING_AXES)
NO_DECAY = (*BIASES_AND_SCALES, r"(^|/)inverse_width$")
