"""Recurrent sequence to sequence, without attention (Sutskever et al. 2014) and with it (Bahdanau, Luong et al. 2015).

A recurrent encoder maps the source to states; a recurrent decoder starts from the last of them and predicts the target
token by token. With attention, each prediction attends to all states. The methods are those of
`zoo.models.transformer.Model`, so the same objectives and decoders work with both.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.errors import field_faults
from zoo.layers import initializers
from zoo.layers.dropout import Dropout
from zoo.layers.patch_embed import take_tokens
from zoo.layers.pointer import copy_log_probs
from zoo.layers.pooling import POOLING_AXES, Pooling
from zoo.layers.recurrent import BRIDGE_AXES, CELLS, Bridge, RecurrentEncoder, cell_axes, make_cell, scan_positions
from zoo.layers.sequence_info import SINGLE_SEQUENCE, SequenceInfo
from zoo.layers.stack import remat_policy
from zoo.models import encoder_decoder, transformer
from zoo.models.encoder_decoder import EncoderDecoder, special_token_faults
from zoo.partitioning import BIASES_AND_SCALES, shard_batch, under
from zoo.shapes import expect

# Sutskever et al. 2014, 3.4 (with one vocabulary for both languages, the output's); Bahdanau et al. 2015, A.2.3 and
# B.1 (the readout with tanh and as wide as an embedding, instead of maxout and 500); Luong et al. 2015, 4.1. "nano" is
# for the bundled verses on a CPU, with about as many parameters as the Transformer of that name.
VARIANTS = {
  "distracted": dict(cell="lstm", width=1000, embed_dim=1000, depth=4, vocab_size=80_000),
  "bahdanau": dict(
    width=1000, embed_dim=620, attention="additive", attention_query="previous_state", attention_dim=1000,
    bidirectional=True, vocab_size=30_000,
  ),
  "luong": dict(
    cell="lstm", width=1000, embed_dim=1000, depth=4, attention="general", input_feeding=True, vocab_size=50_000,
    dropout_rate=0.2,
  ),
  "nano_distracted": dict(
    cell="lstm", width=192, embed_dim=192, depth=2, vocab_size=4000, max_length=128, tie_embeddings="all",
    dropout_rate=0.1,
  ),
  "nano_bahdanau": dict(
    width=224, embed_dim=128, attention="additive", attention_query="previous_state", attention_dim=128,
    bidirectional=True, vocab_size=4000, max_length=128, tie_embeddings="all", dropout_rate=0.1,
  ),
  "nano_luong": dict(
    cell="lstm", width=200, embed_dim=128, depth=2, attention="general", input_feeding=True, vocab_size=4000,
    max_length=128, tie_embeddings="all", dropout_rate=0.1,
  ),
  "test": dict(
    width=24, embed_dim=20, depth=2, attention="additive", attention_query="previous_state", attention_dim=16,
    bidirectional=True, vocab_size=29, max_length=16,
  ),
}  # fmt: skip

inputs = transformer.inputs  # the shapes that `Model` is called with


@dataclass(frozen=True)
class Config:
  """Hyperparameters.

  Attributes:
    cell: "gru" or "lstm", of encoder and decoder.
    width: D, of a state, in each direction. embed_dim: of embeddings. depth: L, of encoder and of decoder.
    bidirectional: the encoder also reads backwards; its tokens are 2 D wide, else D.
    attention: "none", the decoder has the encoder's last states alone; or the score of the encoder's tokens: "additive"
      (Bahdanau), "dot" or "general" (Luong), see `zoo.layers.pooling`.
    attention_query: "previous_state": the context is an input of the cell (Bahdanau, A.1.2); "current_state": the query
      is the new state (Luong, 3).
    attention_dim: A, of additive attention.
    input_feeding: the attentional state h~ of a position is an input of the next one's cell (Luong, 3.3).
    head: "vocab", a distribution over the vocabulary; "copy", mixed with copies of source tokens
      (`zoo.layers.pointer`); "pointer", over the source alone (Vinyals et al. 2015, eq. 3), summed over the positions
      of a token (Kadlec et al. 2016, eq. 3). copy_slots: see `zoo.layers.pointer.PointerGenerator`.
    vocab_size: V. max_length: maximum number of decoded tokens; not a limit in training.
    pad_token_id, bos_token_id, eos_token_id: ids of padding, and of the tokens that begin a target and end a sequence.
    tie_embeddings: "all" shares one matrix between source, target and output, "target" between target and output;
      "none" has three.
    head_bias: whether the logits have a bias.
    dropout_rate: of embeddings and between layers, not between positions (Zaremba et al. 2014).
    remat: what the backward pass recomputes of a decoder position (`zoo.layers.stack.remat_policy`).
    dtype: compute type, "float32" or "bfloat16"; parameters, states, softmax and logits stay float32.
  """

  cell: str = "gru"
  width: int = 1000
  embed_dim: int = 1000
  depth: int = 1
  bidirectional: bool = False
  attention: str = "none"
  attention_query: str = "current_state"
  attention_dim: int = 0
  input_feeding: bool = False
  head: str = "vocab"
  copy_slots: int = 0
  vocab_size: int = 30_000
  max_length: int = 512
  pad_token_id: int = 0
  bos_token_id: int = 2
  eos_token_id: int = 3
  tie_embeddings: str = "none"
  head_bias: bool = False
  dropout_rate: float = 0.0
  remat: str = "none"
  dtype: str = "float32"

  def __post_init__(self):
    choices = dict(
      cell=tuple(CELLS),
      attention=("none", "additive", "dot", "general"),
      attention_query=("previous_state", "current_state"),
      head=("vocab", "copy", "pointer"),
      tie_embeddings=("all", "target", "none"),
      dtype=("float32", "bfloat16"),
    )
    at_least = {
      1: ("width", "embed_dim", "depth", "vocab_size", "max_length"),
      0: ("attention_dim", "pad_token_id", "bos_token_id", "eos_token_id", "copy_slots"),
    }
    faults = field_faults(self, choices, at_least, ("dropout_rate",))
    faults += special_token_faults(self)
    if self.attention == "none":
      if self.head != "vocab":
        faults.append(f"head={self.head!r} needs attention; attention is 'none'")
      if self.input_feeding:
        faults.append("input_feeding needs attention; attention is 'none'")
    if self.attention == "additive" and not self.attention_dim:
      faults.append("attention='additive' needs attention_dim, at least 1")
    if self.attention == "dot" and self.bidirectional:
      faults.append(f"attention='dot' needs states and tokens of one width, but bidirectional tokens have 2 x "
                    f"{self.width}; use 'general'")  # fmt: skip
    if self.head == "pointer" and self.attention_query == "previous_state":
      faults.append("head='pointer' needs attention_query='current_state', which has read the last token")
    if self.head == "pointer" and self.head_bias:
      faults.append("head_bias is for logits of the vocabulary, which head='pointer' has not")
    if self.copy_slots and self.head == "vocab":
      faults.append(f"copy_slots is {self.copy_slots}, but head is 'vocab'")
    if self.tie_embeddings != "none" and self.attention == "none" and self.width != self.embed_dim:
      faults.append(
        f"tie_embeddings={self.tie_embeddings!r} needs width == embed_dim without attention; they are {self.width} and "
        f"{self.embed_dim}"
      )
    if faults:
      raise ValueError("\n".join(faults))


class EncoderOutput(NamedTuple):
  """Inputs of the decoder.

  Attributes:
    source_BS, segment_ids_BS: tokens and segment ids of the source.
    states: for each layer the states [B, S, D] after each position, forward and, if bidirectional, backward.
    memory_BSM: the last layer's tokens; None without attention.
    keys_BSA: their projections as attention keys; M, A or D wide.
  """

  source_BS: jax.Array
  segment_ids_BS: jax.Array
  states: Any
  memory_BSM: Any
  keys_BSA: Any


class Decoder(nn.Module):
  """One position of the decoder: state and embedded token [B, E] to the state and the input of the head [B, R].

  With attention that is h~ = tanh(W [context; h]) (Luong et al. 2015, eq. 5), R = E; without, h, R = D.
  """

  config: Config

  @nn.compact
  def __call__(
    self, state: dict, x_BE: jax.Array, segment_ids_B: jax.Array, encoded: EncoderOutput
  ) -> tuple[dict, tuple[jax.Array, jax.Array | None]]:
    """Also returns the attention weights [B, S].

    Args:
      state: "cells", a state for each layer; with input feeding "fed", h~ of the previous position.
      x_BE: the previous token.
      segment_ids_B: the segment of the source to attend to.
      encoded: the encoder's output.
    """
    c = self.config
    cells, inputs, weights_BS = list(state["cells"]), [x_BE], None
    context_BM: Any = None

    def attention(h_BD):
      kind = "additive" if c.attention == "additive" else "dot"  # "general" is "dot" with projected keys
      pool = Pooling(kind, c.attention_dim, keys_ready=True, dtype=jnp.dtype(c.dtype), name="attention")
      mask = (segment_ids_B[:, None] == encoded.segment_ids_BS)[:, None, None]
      out_B1M, weights = pool(h_BD[:, None], encoded.keys_BSA, encoded.memory_BSM, mask=mask)
      return out_B1M[:, 0], weights[:, 0, 0]

    if c.input_feeding:
      inputs.append(state["fed"])
    if c.attention != "none" and c.attention_query == "previous_state":
      context_BM, weights_BS = attention(jax.tree.leaves(cells[-1])[-1])
      inputs.append(context_BM)
    x = jnp.concatenate(inputs, -1)
    for i in range(c.depth):
      cells[i], x = make_cell(c.cell, c.width, jnp.dtype(c.dtype), f"cell_{i:02d}")(cells[i], x)
      x = Dropout(c.dropout_rate, name=f"dropout_{i:02d}")(x.astype(c.dtype))
    if c.attention != "none" and c.attention_query == "current_state":
      context_BM, weights_BS = attention(x)
    # A pointer network does not use the context, only the weights.
    if c.attention != "none" and (c.head != "pointer" or c.input_feeding):
      dense = nn.Dense(c.embed_dim, kernel_init=initializers.dense, dtype=jnp.dtype(c.dtype), name="readout")
      x = jnp.tanh(dense(jnp.concatenate([context_BM, x], -1)))
    return dict(cells=cells) | (dict(fed=x) if c.input_feeding else {}), (x, weights_BS)


def _apply_decoder(decoder, state, inputs, encoded):
  return decoder(state, *inputs, encoded)


class Model(EncoderDecoder):
  """Source tokens [B, S] and target tokens [B, T] to the logits [B, T, V] of the next target tokens.

  Aux: "embedded", the encoder's "block_00", ..., "tokens" [B, S, M], "decoder/tokens" [B, T, R], and, with attention,
  "decoder/alignment" [B, T, S].
  """

  config: Config

  def setup(self):
    super().setup()
    c = self.config
    self.encoder = RecurrentEncoder(
      c.cell, c.width, c.depth, c.bidirectional, c.dropout_rate, jnp.dtype(c.dtype), name="encoder"
    )
    if c.attention in ("additive", "general"):
      # Keys are projected once for a source, not at every position of the target.
      width = c.attention_dim if c.attention == "additive" else c.width
      self.keys = nn.Dense(width, use_bias=False, kernel_init=initializers.dense, dtype=jnp.dtype(c.dtype), name="keys")
    if c.bidirectional:
      self.bridges = [Bridge(jnp.dtype(c.dtype), name=f"bridge_{i:02d}") for i in range(c.depth)]
    decoder = Decoder
    if c.remat != "none":
      decoder = nn.remat(Decoder, policy=remat_policy(c.remat), prevent_cse=False)  # a scan keeps the two apart
    self.decoder = decoder(c, name="decoder")

  def encode(
    self, source_BS: jax.Array, info: SequenceInfo = SINGLE_SEQUENCE
  ) -> tuple[EncoderOutput, dict[str, jax.Array]]:
    """The encoder's output and aux."""
    c = self.config
    expect(source_BS=source_BS)
    segment_ids_BS = info.segments(source_BS, c.pad_token_id)
    x_BSE = self._embed(source_BS, "source")
    memory_BSM, states, aux = self.encoder(x_BSE, segment_ids_BS)
    aux |= {"embedded": x_BSE, "tokens": memory_BSM}
    if c.attention == "none":
      return EncoderOutput(source_BS, segment_ids_BS, states, None, None), aux
    keys_BSA = memory_BSM if c.attention == "dot" else shard_batch(self.keys(memory_BSM))
    return EncoderOutput(source_BS, segment_ids_BS, states, memory_BSM, keys_BSA), aux

  def decode(
    self, target_BT: jax.Array, encoded: EncoderOutput, info: SequenceInfo = SINGLE_SEQUENCE
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Logits [B, T, V] and the decoder's aux; see `__call__`."""
    expect(target_BT=target_BT)
    segment_ids_BT = info.segments(target_BT, None)
    inputs = self._embed(target_BT, "target"), segment_ids_BT
    initial = self._initial_state(encoded, segment_ids_BT)
    encoded = encoded._replace(states=None)
    outputs = scan_positions(_apply_decoder, self.decoder, initial, inputs, segment_ids_BT, encoded)[1]
    x_BTR, weights_BTS = outputs
    aux = dict(tokens=x_BTR) | ({} if weights_BTS is None else dict(alignment=weights_BTS))
    return self._predict(x_BTR, encoded.source_BS, weights_BTS), aux

  def init_cache(self, source_BS: jax.Array, max_length: int) -> tuple[EncoderOutput, dict]:
    """Memory and initial state for `decode_step` (`zoo.decoding`); the first axis of all their arrays is B.

    Args:
      source_BS: token ids, padded with `pad_token_id`.
      max_length: maximum number of decoded tokens; the state does not depend on it.
    """
    del max_length
    encoded, _ = self.encode(source_BS)
    state = self._initial_state(encoded, jnp.ones((len(source_BS), 1), jnp.int32))
    return encoded._replace(states=None), jax.tree.map(lambda a: a[:, 0], state)

  def decode_step(
    self, memory: EncoderOutput, cache: dict, token_B: jax.Array, index: jax.Array
  ) -> tuple[jax.Array, dict]:
    """One token of each target.

    Args:
      memory, cache: from `init_cache`; the cache afterwards from the previous step.
      token_B: the tokens at position `index`; `bos_token_id` at 0.
      index: int32 scalar, not used.

    Returns:
      logits [B, V] of the tokens at `index` + 1, and the state after this token.
    """
    del index
    return self._step(cache, token_B, jnp.ones_like(token_B), memory)

  def scheduled_sampling_inputs(
    self,
    source_BS: jax.Array,
    inputs_BT: jax.Array,
    sampled_BT: jax.Array,
    source_info: SequenceInfo = SINGLE_SEQUENCE,
    target_info: SequenceInfo = SINGLE_SEQUENCE,
  ) -> jax.Array:
    """Decoder inputs [B, T] of scheduled sampling (Bengio et al. 2015, 2.4), position by position.

    Args:
      source_BS, inputs_BT, source_info, target_info: as in `__call__`.
      sampled_BT: bool, True where the token is replaced by the most probable one after the (mixed) inputs before it;
        never where a sequence begins.
    """
    encoded, _ = self.encode(source_BS, source_info)
    segment_ids_BT = target_info.segments(inputs_BT, None)
    initial = dict(state=self._initial_state(encoded, segment_ids_BT), predicted=inputs_BT)

    def step(model, before, given, encoded):
      token_B, sampled_B, segment_ids_B = given
      token_B = jnp.where(sampled_B, before["predicted"], token_B)
      logits_BV, state = model._step(before["state"], token_B, segment_ids_B, encoded)
      return dict(state=state, predicted=logits_BV.argmax(-1).astype(token_B.dtype)), token_B

    inputs = inputs_BT, sampled_BT, segment_ids_BT
    return scan_positions(step, self, initial, inputs, segment_ids_BT, encoded._replace(states=None))[1]

  def _step(self, state, token_B, segment_ids_B, encoded) -> tuple[jax.Array, dict]:
    """Logits [B, V] after a token, and the state."""
    x_BE = self._embed(token_B[:, None], "target")[:, 0]
    state, (x_BR, weights_BS) = self.decoder(state, x_BE, segment_ids_B, encoded)
    weights_B1S = None if weights_BS is None else weights_BS[:, None]
    return self._predict(x_BR[:, None], encoded.source_BS, weights_B1S)[:, 0], state

  def _initial_state(self, encoded: EncoderOutput, segment_ids_BT: jax.Array) -> dict:
    """Initial states of the decoder: the last states of the source segments with the same numbers."""
    c = self.config
    same_BTS = segment_ids_BT[:, :, None] == encoded.segment_ids_BS[:, None]
    first_BT, last_BT = same_BTS.argmax(-1), same_BTS.shape[-1] - 1 - same_BTS[..., ::-1].argmax(-1)
    cells = []
    for i, directions in enumerate(encoded.states):
      # Backward, the last position that is read is the first.
      ends = [
        jax.tree.map(lambda a, index_BT=index_BT: take_tokens(a, index_BT), states)
        for states, index_BT in zip(directions, (last_BT, first_BT), strict=False)
      ]
      cells.append(self.bridges[i](ends) if c.bidirectional else ends[0])
    fed = dict(fed=jnp.zeros((*segment_ids_BT.shape, c.embed_dim), c.dtype)) if c.input_feeding else {}
    return shard_batch(dict(cells=cells) | fed)

  def _embed(self, input_ids_BT: jax.Array, side: str) -> jax.Array:
    c = self.config
    return shard_batch(self.dropout((self.embed(input_ids_BT, side) * c.embed_dim**0.5).astype(c.dtype)))

  def _predict(self, x_BTR: jax.Array, source_BS: jax.Array, weights_BTS: Any) -> jax.Array:
    c = self.config
    if c.head == "pointer":
      return shard_batch(copy_log_probs(weights_BTS, source_BS, c.vocab_size + c.copy_slots))
    return self.logits(x_BTR, source_BS, weights_BTS)


# Logical axes of the parameters, those without weight decay, and their layers (`zoo.partitioning`).
LOGICAL_AXES = encoder_decoder.LOGICAL_AXES | {
  **cell_axes("(encoder/(forward|backward)|decoder/cell)"),
  **under(r"bridge_\d\d", BRIDGE_AXES),
  "keys/kernel": ("key_embed", "attention_hidden"),
  **under("decoder/attention", POOLING_AXES),
  "decoder/readout/kernel": ("features", "readout"),
  "decoder/readout/bias": ("readout",),
}
NO_DECAY = BIASES_AND_SCALES
