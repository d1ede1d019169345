"""Non-autoregressive Transformer (Gu et al. 2018): a Transformer that says all tokens of a translation at once.

The encoder is the Transformer's. The decoder reads no target but tokens of the source, copied to the places of the
target, and every place sees every other; so tokens are independent of each other, given source and length (eq. 3).
Left out are the fertilities (3.3), the attention to positions and the mask of a token from itself (3.2).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.errors import field_faults
from zoo.layers import initializers
from zoo.models import transformer
from zoo.models.transformer import ROW, Encoded, Row
from zoo.shapes import expect

VARIANTS = {
  "base": transformer.VARIANTS["base"],
  "nano": transformer.VARIANTS["nano"],
  "test": transformer.VARIANTS["test"] | dict(length_difference=3),
}
inputs = transformer.inputs  # the shapes that `Model` is called with


@dataclass(frozen=True)
class Config(transformer.Config):
  """Hyperparameters: those of a Transformer, and how long its targets are.

  Attributes:
    length: who says how long the target is. "classifier" reads the mean of the encoder's output and tells the
      difference from the source's length. With "cut" there are always `max_length` places, and the target ends with
      the first `eos`; so `max_length` is better no larger than it must be.
    length_difference: the largest difference that the classifier knows, in tokens.
  """

  length: str = "classifier"
  length_difference: int = 20

  def __post_init__(self):
    faults = field_faults(self, dict(length=("classifier", "cut")), {0: ("length_difference",)}, ())
    if faults:
      raise ValueError("\n".join(faults))
    super().__post_init__()


class Model(transformer.Model):
  """Source tokens [B, S] to the logits [B, T, V] of all target tokens; a row holds one sequence.

  `propose` and `emit` are for decoding (`zoo.decoding.parallel`).
  """

  config: Config
  causal = False

  def setup(self) -> None:
    super().setup()
    if self.config.length == "classifier":
      classes = 2 * self.config.length_difference + 1
      self.length = nn.Dense(classes, kernel_init=initializers.head, name="length")

  def __call__(
    self, source_BS: jax.Array, target_BT: jax.Array, source: Row = ROW, target: Row = ROW
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Logits of every target token; rng `dropout` turns dropout on.

    Args:
      source_BS: tokens, with `eos` at the end.
      target_BT: tokens, of which only the number that is not padding is read; with length="cut" not even that.
      source, target: where sequences are, if padding is not `pad`.

    Returns:
      logits [B, T, V] in float32, T = `max_length` with length="cut"; and aux, as of `transformer.Model`, with
      "length" [B, V], the logits of the lengths (`length_class`), if there is a classifier.
    """
    expect(source_BS=source_BS, target_BT=target_BT)
    encoded, aux = self.encode(source_BS, source)
    real_BT = target_BT != self.config.pad if target.segment_BT is None else target.segment_BT > 0
    logits_BTV, decoder_aux = self.emit(encoded, real_BT.sum(1), target_BT.shape[1])
    return logits_BTV, aux | {f"decoder/{k}": v for k, v in decoder_aux.items()}

  def encode(self, source_BS: jax.Array, row: Row = ROW) -> tuple[Encoded, dict[str, jax.Array]]:
    """What the decoder reads; aux with "length" [B, V]."""
    encoded, aux = super().encode(source_BS, row)
    if self.config.length == "classifier":
      real_BS1 = (encoded.segment_BS > 0)[..., None]
      sum_BD = jnp.where(real_BS1, aux["tokens"].astype(jnp.float32), 0).sum(1)
      aux["length"] = self.length(sum_BD / jnp.maximum(real_BS1.sum(1), 1))
    return encoded, aux

  def emit(self, encoded: Encoded, length_B: jax.Array, places: int) -> tuple[jax.Array, dict[str, jax.Array]]:
    """All tokens of targets of known lengths.

    Args:
      encoded: from `encode` or `propose`.
      length_B: of the targets, in tokens, with `eos`.
      places: T, at least the greatest length. With length="cut" neither matters.

    Returns:
      logits [B, T, V], of which those beyond the length mean nothing; and the decoder's part of aux.
    """
    source_length_B = (encoded.segment_BS > 0).sum(1)
    if self.config.length == "cut":
      # A length that is not known cannot stretch the source: place t reads token t, and beyond its end its `eos`.
      places = self.config.max_length
      length_B = jnp.full_like(source_length_B, places)
      index_BT = jnp.minimum(jnp.arange(places), source_length_B[:, None] - 1)
    else:
      index_BT = uniform_copy(source_length_B, length_B, places)
    copied_BT = jnp.take_along_axis(encoded.source_BS, jnp.maximum(index_BT, 0), 1)
    segment_BT = (jnp.arange(places) < length_B[:, None]).astype(jnp.int32)
    return self.decode(copied_BT, encoded, Row(segment_BT))

  def propose(self, source_BS: jax.Array, max_length: int, count: int = 1) -> tuple[Encoded, jax.Array]:
    """The source, encoded, and how long its target may be.

    Args:
      source_BS: tokens, filled up with `pad`.
      max_length: no length is greater.
      count: n, how many lengths to tell; with length="cut" there is but one.

    Returns:
      what `emit` reads, and the lengths [B, n] in tokens, the most probable first.

    Raises:
      ValueError: the classifier does not know so many lengths.
    """
    encoded, aux = self.encode(source_BS)
    source_length_B = (encoded.segment_BS > 0).sum(1)
    if self.config.length == "cut":
      return encoded, jnp.full((len(source_BS), 1), self.config.max_length)
    classes = aux["length"].shape[1]
    if count > classes:
      raise ValueError(f"{count} lengths are to be tried; the model tells {classes} apart")
    class_BN = jax.lax.top_k(aux["length"], count)[1]
    length_BN = source_length_B[:, None] + class_BN - self.config.length_difference
    return encoded, jnp.clip(length_BN, 1, max_length)

  def start(self, *_):
    """A Transformer's way to decode."""
    raise ValueError(
      "this model says all tokens at once and none from those before it: zoo.decoding.parallel decodes it"
    )


def length_class(source_length_B: jax.Array, target_length_B: jax.Array, difference: int) -> jax.Array:
  """[B] int, the classifier's class of a length: how much longer the target is, + `difference`, the most there is."""
  return jnp.clip(target_length_B - source_length_B, -difference, difference) + difference


def uniform_copy(source_length_B: jax.Array, target_length_B: jax.Array, places: int) -> jax.Array:
  """Which source token each place reads: the Round(S t / T)-th, t = 1, ..., T (Gu et al. 2018, 3.2).

  Returns:
    [B, places] int, from 0; beyond the target's length it means nothing, but is a token of the source.
  """
  S_B1, T_B1 = source_length_B[:, None], jnp.maximum(target_length_B[:, None], 1)
  t_T = jnp.arange(1, places + 1)
  rounded_BT = (2 * S_B1 * t_T + T_B1) // (2 * T_B1)  # in whole numbers, so the same on every device
  return jnp.clip(rounded_BT, 1, jnp.maximum(S_B1, 1)) - 1
