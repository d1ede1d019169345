"""What sequence-to-sequence models share: embeddings, output head, and the call that encodes and decodes."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.layers import initializers
from zoo.layers.dropout import Dropout
from zoo.layers.linear import tied_logits
from zoo.layers.pointer import COPY_AXES, PointerGenerator
from zoo.layers.sequence_info import SINGLE_SEQUENCE, SequenceInfo
from zoo.partitioning import shard_batch, under

Aux = dict[str, jax.Array]


def special_token_faults(
  config: Any, names: Iterable[str] = ("pad_token_id", "bos_token_id", "eos_token_id")
) -> list[str]:
  """For each special token that is not in the vocabulary a line of an error."""
  values = {name: getattr(config, name) for name in names}
  return [
    f"{k} is {v}; wanted less than vocab_size, {config.vocab_size}" for k, v in values.items() if v >= config.vocab_size
  ]


class EncoderDecoder(nn.Module):
  """Source tokens [B, S] and target tokens [B, T] to the logits [B, T, V] of the next target tokens.

  A model defines `encode` and `decode`, the halves of a call, and `init_cache` and `decode_step`, which decode token by
  token.

  Attributes:
    config: has `vocab_size`, `tie_embeddings`, `head`, `head_bias`, `copy_slots`, `dropout_rate` and the width of
      embeddings, `embed_dim`.
  """

  config: Any

  def setup(self):
    c = self.config

    def table(name: str) -> nn.Embed:
      # Inputs are multiplied by sqrt(E), so that they and the logits have variance 1 at first.
      return nn.Embed(c.vocab_size, c.embed_dim, embedding_init=nn.initializers.normal(c.embed_dim**-0.5), name=name)

    if c.tie_embeddings == "all":
      self.source_embed = self.target_embed = table("embed")
    else:
      self.source_embed, self.target_embed = table("source_embed"), table("target_embed")
    self.dropout = Dropout(c.dropout_rate, name="dropout")
    if c.head != "pointer":
      if c.tie_embeddings == "none":
        self.head = nn.Dense(c.vocab_size, use_bias=c.head_bias, kernel_init=initializers.dense, name="head")
      elif c.head_bias:
        self.head_bias = self.param("head_bias", nn.initializers.zeros, (c.vocab_size,))
    if c.head == "copy":
      self.copy_head = PointerGenerator(c.copy_slots, name="copy")

  def __call__(
    self,
    source_BS: jax.Array,
    target_BT: jax.Array,
    source_info: SequenceInfo = SINGLE_SEQUENCE,
    target_info: SequenceInfo = SINGLE_SEQUENCE,
  ) -> tuple[jax.Array, Aux]:
    """Logits of every target token from those before it; rng `dropout` enables dropout.

    Args:
      source_BS: token ids, with `eos_token_id` at the end of each sequence.
      target_BT: token ids, with `bos_token_id` at the beginning of each sequence.
      source_info, target_info: segment and position ids, if several sequences share a row or padding is not
        `pad_token_id`.

    Returns:
      logits [B, T, V] in float32 (V is vocab_size + copy_slots), and aux of `encode`, and of `decode` below
      "decoder/".
    """
    encoded, aux = self.encode(source_BS, source_info)
    logits_BTV, decoder_aux = self.decode(target_BT, encoded, target_info)
    return logits_BTV, aux | {f"decoder/{k}": v for k, v in decoder_aux.items()}

  def embed(self, input_ids_BT: jax.Array, side: str) -> jax.Array:
    """Embeddings [B, T, E] of "source" or "target" tokens, not scaled."""
    c = self.config
    if c.head != "vocab":
      # Source tokens outside the vocabulary have ids beyond it (`zoo.layers.pointer`); they are read as 1, "unknown".
      input_ids_BT = jnp.where(input_ids_BT < c.vocab_size, input_ids_BT, 1)
    return getattr(self, f"{side}_embed")(input_ids_BT)

  def logits(self, x_BTR: jax.Array, source_BS: jax.Array, weights_BTS: Any) -> jax.Array:
    """Logits [B, T, V] of the heads "vocab" and "copy"; the latter mixes with the attention weights to the source."""
    c = self.config
    if c.tie_embeddings == "none":
      logits_BTV = self.head(x_BTR.astype(jnp.float32))
    else:
      logits_BTV = tied_logits(x_BTR, self.target_embed.embedding)
      if c.head_bias:
        logits_BTV = logits_BTV + self.head_bias
    if c.head == "copy":
      logits_BTV = self.copy_head(logits_BTV, weights_BTS, source_BS, x_BTR)
    return shard_batch(logits_BTV)


# Logical axes of these parameters (`zoo.partitioning`).
LOGICAL_AXES = {
  "(source_|target_|)embed/embedding": ("vocab", "embed"),
  "head/kernel": ("features", "classes"),
  "head/bias": ("classes",),
  "head_bias": ("vocab",),
  **under("copy", COPY_AXES),
}
