"""Non-autoregressive Transformer (Gu et al. 2018): predicts all tokens of a translation at once.

The encoder is the Transformer's. The decoder's inputs are source tokens, copied to the positions of the target, and its
self-attention is not causal; so given source and length the tokens are independent of each other (eq. 3). Not
implemented: fertilities (3.3), positional attention and the mask of each position from itself (3.2).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.errors import field_faults
from zoo.layers import initializers
from zoo.layers.sequence_info import SINGLE_SEQUENCE, SequenceInfo
from zoo.models import transformer
from zoo.models.transformer import EncoderOutput
from zoo.shapes import expect

VARIANTS = {
  "base": transformer.VARIANTS["base"],
  "nano": transformer.VARIANTS["nano"],
  "test": transformer.VARIANTS["test"] | dict(max_length_difference=3),
}
inputs = transformer.inputs  # shapes of the arguments of `Model`


@dataclass(frozen=True)
class Config(transformer.Config):
  """Hyperparameters: those of a Transformer, and of the length prediction.

  Attributes:
    length_prediction: "classifier" predicts the difference from the source's length from the mean of the encoder's
      output. "none": there are always `max_length` positions, and the target ends with the first `eos_token_id`; so
      `max_length` should be no larger than needed.
    max_length_difference: the largest difference that the classifier can predict, in tokens.
  """

  length_prediction: str = "classifier"
  max_length_difference: int = 20

  def __post_init__(self):
    faults = field_faults(self, dict(length_prediction=("classifier", "none")), {0: ("max_length_difference",)}, ())
    if faults:
      raise ValueError("\n".join(faults))
    super().__post_init__()


class Model(transformer.Model):
  """Source tokens [B, S] to the logits [B, T, V] of all target tokens; a row holds one sequence.

  `predict_lengths` and `decode_lengths` are for decoding (`zoo.decoding.non_autoregressive`).
  """

  config: Config
  causal = False

  def setup(self) -> None:
    super().setup()
    if self.config.length_prediction == "classifier":
      classes = 2 * self.config.max_length_difference + 1
      self.length = nn.Dense(classes, kernel_init=initializers.head, name="length")

  def __call__(
    self,
    source_BS: jax.Array,
    target_BT: jax.Array,
    source_info: SequenceInfo = SINGLE_SEQUENCE,
    target_info: SequenceInfo = SINGLE_SEQUENCE,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Logits of every target token; rng `dropout` enables dropout.

    Args:
      source_BS: token ids, with `eos_token_id` at the end.
      target_BT: token ids, of which only the length is used; with length_prediction="none" nothing.
      source_info, target_info: segment ids, if padding is not `pad_token_id`.

    Returns:
      logits [B, T, V] in float32, T = `max_length` with length_prediction="none"; and aux as of `transformer.Model`,
      with "length" [B, V], the logits of the lengths (`length_class`), if there is a classifier.
    """
    expect(source_BS=source_BS, target_BT=target_BT)
    encoded, aux = self.encode(source_BS, source_info)
    length_B = (target_info.segments(target_BT, self.config.pad_token_id) > 0).sum(1)
    logits_BTV, decoder_aux = self.decode_lengths(encoded, length_B, target_BT.shape[1])
    return logits_BTV, aux | {f"decoder/{k}": v for k, v in decoder_aux.items()}

  def encode(
    self, source_BS: jax.Array, info: SequenceInfo = SINGLE_SEQUENCE
  ) -> tuple[EncoderOutput, dict[str, jax.Array]]:
    """The encoder's output and aux, with "length" [B, V]."""
    encoded, aux = super().encode(source_BS, info)
    if self.config.length_prediction == "classifier":
      mask_BS1 = (encoded.segment_ids_BS > 0)[..., None]
      sum_BD = jnp.where(mask_BS1, aux["tokens"].astype(jnp.float32), 0).sum(1)
      aux["length"] = self.length(sum_BD / jnp.maximum(mask_BS1.sum(1), 1))
    return encoded, aux

  def decode_lengths(
    self, encoded: EncoderOutput, length_B: jax.Array, max_length: int
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """All tokens of targets of given lengths.

    Args:
      encoded: from `encode` or `predict_lengths`.
      length_B: of the targets, in tokens, with `eos_token_id`.
      max_length: T, at least the greatest length. With length_prediction="none" neither is used.

    Returns:
      logits [B, T, V], those beyond the length undefined; and the decoder's aux.
    """
    source_length_B = (encoded.segment_ids_BS > 0).sum(1)
    if self.config.length_prediction == "none":
      # Without a length the source is not stretched: position t reads token t, and beyond its end its `eos_token_id`.
      max_length = self.config.max_length
      length_B = jnp.full_like(source_length_B, max_length)
      index_BT = jnp.minimum(jnp.arange(max_length), source_length_B[:, None] - 1)
    else:
      index_BT = uniform_copy(source_length_B, length_B, max_length)
    copied_BT = jnp.take_along_axis(encoded.source_BS, jnp.maximum(index_BT, 0), 1)
    segment_ids_BT = (jnp.arange(max_length) < length_B[:, None]).astype(jnp.int32)
    return self.decode(copied_BT, encoded, SequenceInfo(segment_ids_BT))

  def predict_lengths(self, source_BS: jax.Array, max_length: int, count: int = 1) -> tuple[EncoderOutput, jax.Array]:
    """The encoder's output, and the most probable lengths of the target.

    Args:
      source_BS: token ids, padded with `pad_token_id`.
      max_length: maximum length.
      count: n, the number of lengths; with length_prediction="none" there is one.

    Returns:
      input of `decode_lengths`, and the lengths [B, n] in tokens, the most probable first.

    Raises:
      ValueError: the classifier has fewer lengths.
    """
    encoded, aux = self.encode(source_BS)
    source_length_B = (encoded.segment_ids_BS > 0).sum(1)
    if self.config.length_prediction == "none":
      return encoded, jnp.full((len(source_BS), 1), self.config.max_length)
    classes = aux["length"].shape[1]
    if count > classes:
      raise ValueError(f"{count} lengths requested; the classifier has {classes}")
    class_BU = jax.lax.top_k(aux["length"], count)[1]
    length_BU = source_length_B[:, None] + class_BU - self.config.max_length_difference
    return encoded, jnp.clip(length_BU, 1, max_length)

  def init_cache(self, *_):
    """Not available: raises ValueError."""
    raise ValueError("a non-autoregressive model has no cache; decode it with zoo.decoding.non_autoregressive")


def length_class(source_length_B: jax.Array, target_length_B: jax.Array, max_difference: int) -> jax.Array:
  """[B] int, the classifier's class of a length: the difference from the source's, clipped, plus `max_difference`."""
  return jnp.clip(target_length_B - source_length_B, -max_difference, max_difference) + max_difference


def uniform_copy(source_length_B: jax.Array, target_length_B: jax.Array, max_length: int) -> jax.Array:
  """The source token that each position reads: the Round(S t / T)-th, t = 1, ..., T (Gu et al. 2018, 3.2).

  Returns:
    [B, max_length] int, from 0; beyond the target's length undefined, but a token of the source.
  """
  S_B1, T_B1 = source_length_B[:, None], jnp.maximum(target_length_B[:, None], 1)
  t_T = jnp.arange(1, max_length + 1)
  rounded_BT = (2 * S_B1 * t_T + T_B1) // (2 * T_B1)  # integers, so equal on every device
  return jnp.clip(rounded_BT, 1, jnp.maximum(S_B1, 1)) - 1


# Logical axes of the parameters, those without weight decay, and their layers (`zoo.partitioning`).
LOGICAL_AXES = transformer.LOGICAL_AXES | {"length/kernel": ("embed", "lengths"), "length/bias": ("lengths",)}
NO_DECAY = transformer.NO_DECAY
layer_of = transformer.layer_of
