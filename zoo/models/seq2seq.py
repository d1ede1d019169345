"""Recurrent sequence to sequence, without attention (Sutskever et al. 2014) and with it (Bahdanau, Luong et al. 2015).

An encoder reads the source, a token after the other, into states. A decoder starts from the last of them and says what
comes next; with attention it looks at all of them, at each place anew. What came before the Transformer, with the same
calls: everything that trains or decodes one does so with the other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from zoo.errors import field_faults
from zoo.layers import initializers
from zoo.layers.dropout import Dropout
from zoo.layers.linear import tied_logits
from zoo.layers.patch_embed import choose_tokens
from zoo.layers.pointer import Copies, copied
from zoo.layers.pooling import Pooling
from zoo.layers.stack import remat_policy
from zoo.models import transformer
from zoo.models.transformer import ROW, Row
from zoo.partitioning import by_batch, whole
from zoo.shapes import expect

# Sutskever et al. 2014, 3.4 (with one vocabulary for both languages, the output's); Bahdanau et al. 2015, A.2.3 and
# B.1 (the layer before the words with tanh and as wide as an embedding, for maxout and 500); Luong et al. 2015, 4.1.
# "nano" is for the bundled verses, on a CPU, with about as many parameters as the Transformer of that name.
VARIANTS = {
  "distracted": dict(cell="lstm", width=1000, embed_dim=1000, depth=4, vocab_size=80_000),
  "bahdanau": dict(
    width=1000, embed_dim=620, attention="additive", attend="before", attention_dim=1000, bidirectional=True,
    vocab_size=30_000,
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
    width=224, embed_dim=128, attention="additive", attend="before", attention_dim=128, bidirectional=True,
    vocab_size=4000, max_length=128, tie_embeddings="all", dropout_rate=0.1,
  ),
  "nano_luong": dict(
    cell="lstm", width=200, embed_dim=128, depth=2, attention="general", input_feeding=True, vocab_size=4000,
    max_length=128, tie_embeddings="all", dropout_rate=0.1,
  ),
  "test": dict(
    width=24, embed_dim=20, depth=2, attention="additive", attend="before", attention_dim=16, bidirectional=True,
    vocab_size=29, max_length=16,
  ),
}  # fmt: skip

CELLS = {"gru": nn.GRUCell, "lstm": nn.OptimizedLSTMCell}  # Cho et al. 2014, eq. 5 to 8; Hochreiter & Schmidhuber 1997
inputs = transformer.inputs  # the shapes that `Model` is called with


@dataclass(frozen=True)
class Config:
  """Hyperparameters.

  Attributes:
    cell: "gru" or "lstm", of encoder and decoder.
    width: D, of a state, in each direction. embed_dim: of embeddings. depth: L, of encoder and of decoder.
    bidirectional: the encoder also reads backwards; its tokens are 2 D wide then, else D.
    attention: "none", the decoder knows the encoder's last states alone; or how it scores the encoder's tokens:
      "additive" (Bahdanau), "dot" or "general" (Luong), see `zoo.layers.pooling`.
    attend: "before" the cell, so by the state of the place before, and what was found goes into the cell (Bahdanau,
      A.1.2); or "after" it, by its new state (Luong, 3).
    attention_dim: A, of additive attention.
    input_feeding: what was said with attention at a place goes into the cell of the next (Luong, 3.3).
    head: what words the decoder says: "words" of the vocabulary; those or ones of the source, "copy"
      (`zoo.layers.pointer`); or ones of the source alone, "pointer" (Vinyals et al. 2015, eq. 3), with the probability
      of all places of a word together (Kadlec et al. 2016, eq. 3). copy_slots: see `zoo.layers.pointer.Copies`.
    vocab_size: V. max_length: the longest target to decode, in tokens; there is no limit otherwise.
    pad, bos, eos: tokens that fill up a row, begin a target and end a sequence.
    tie_embeddings: "all" uses one matrix for source, target and output, "target" one for target and output, "none"
      three.
    head_bias: added to the logits of words.
    dropout_rate: of embeddings and of what goes from layer to layer, not from place to place (Zaremba et al. 2014).
    remat: what the backward pass recomputes of a place of the decoder (`zoo.layers.stack.remat_policy`), such as
      "additive"'s
      A hidden units for each pair of places.
    dtype: compute type, "float32" or "bfloat16"; parameters, states, softmax and logits stay float32.
  """

  cell: str = "gru"
  width: int = 1000
  embed_dim: int = 1000
  depth: int = 1
  bidirectional: bool = False
  attention: str = "none"
  attend: str = "after"
  attention_dim: int = 0
  input_feeding: bool = False
  head: str = "words"
  copy_slots: int = 0
  vocab_size: int = 30_000
  max_length: int = 512
  pad: int = 0
  bos: int = 2
  eos: int = 3
  tie_embeddings: str = "none"
  head_bias: bool = False
  dropout_rate: float = 0.0
  remat: str = "none"
  dtype: str = "float32"

  def __post_init__(self):
    choices = dict(
      cell=tuple(CELLS),
      attention=("none", "additive", "dot", "general"),
      attend=("before", "after"),
      head=("words", "copy", "pointer"),
      tie_embeddings=("all", "target", "none"),
      dtype=("float32", "bfloat16"),
    )
    at_least = {
      1: ("width", "embed_dim", "depth", "vocab_size", "max_length"),
      0: ("attention_dim", "pad", "bos", "eos", "copy_slots"),
    }
    faults = field_faults(self, choices, at_least, ("dropout_rate",))
    faults += [
      f"{name} is token {getattr(self, name)} of a vocabulary of {self.vocab_size}"
      for name in ("pad", "bos", "eos")
      if getattr(self, name) >= self.vocab_size
    ]
    if self.attention == "none":
      if self.head != "words":
        faults.append(f"head={self.head!r} says where in the source a word is, but attention is 'none'")
      if self.input_feeding:
        faults.append("input_feeding hands on what attention found, but attention is 'none'")
    if self.attention == "additive" and not self.attention_dim:
      faults.append("attention='additive' has attention_dim hidden units; wanted at least 1, got 0")
    if self.attention == "dot" and self.bidirectional:
      faults.append(f"attention='dot' cannot hold a state of {self.width} against tokens of both directions, twice as "
                    "wide; use 'general'")  # fmt: skip
    if self.head == "pointer" and self.attend == "before":
      faults.append("head='pointer' needs attend='after': before the cell nobody has read the token pointed to last")
    if self.head == "pointer" and self.head_bias:
      faults.append("head_bias is for words, of which head='pointer' says none")
    if self.copy_slots and self.head == "words":
      faults.append(f"copy_slots is {self.copy_slots}, but head is 'words'")
    if self.tie_embeddings != "none" and self.attention == "none" and self.width != self.embed_dim:
      faults.append(
        f"tie_embeddings={self.tie_embeddings!r} compares states with embeddings, but width is {self.width} and "
        f"embed_dim {self.embed_dim}; wanted as much, or tie_embeddings='none'"
      )
    if faults:
      raise ValueError("\n".join(faults))


class Encoded(NamedTuple):
  """What the decoder reads.

  Attributes:
    source_BS, segment_BS: tokens and segments of the source.
    states: for each layer the cell's states [B, S, D] after each place, forward and, if it is read so, backward.
    memory_BSM: the last layer's tokens; None without attention.
    keys_BSA: the same, as attention compares them; M, A or D wide.
  """

  source_BS: jax.Array
  segment_BS: jax.Array
  states: Any
  memory_BSM: Any
  keys_BSA: Any


def run_places(
  step: Callable,
  module: nn.Module,
  fresh: Any,
  inputs: Any,
  segment_BT: jax.Array,
  shared: Any = None,
  *,
  reverse: bool = False,
) -> tuple:
  """A recurrent network over rows that may hold several sequences, and padding anywhere between tokens.

  Args:
    step: `(module, state, inputs, shared) -> (state, output)`, of one place.
    module: what has its parameters.
    fresh: the states [B, T, ...] that sequences begin with at each place, used where one does begin.
    inputs: trees of arrays [B, T, ...].
    segment_BT: number of the sequence that a place belongs to, 0 for padding, which leaves the state as it is.
    shared: a tree of arrays that every place gets whole.
    reverse: from the last place to the first.

  Returns:
    the states after each place and the outputs, trees of arrays [B, T, ...]
  """

  def choose(this_B, one, other):
    return jax.tree.map(lambda a, b: jnp.where(this_B.reshape(-1, *[1] * (a.ndim - 1)), a, b), one, other)

  def place(module, carry, given, shared):
    (state, last_B), (inputs, fresh, segment_B) = carry, given
    real_B = segment_B > 0
    state = choose((segment_B == last_B) | ~real_B, state, fresh)
    new, output = step(module, state, inputs, shared)
    state, last_B = choose(real_B, (new, segment_B), (state, last_B))
    return (state, last_B), (state, output)

  scan = nn.scan(
    place,
    variable_broadcast="params",
    split_rngs={"params": False, "dropout": True},
    in_axes=(1, nn.broadcast),  # pyright: ignore[reportArgumentType] (Linen declares int)
    out_axes=1,
    reverse=reverse,
  )
  if not module.is_initializing():
    scan = nn.map_variables(scan, "params", whole)
  before = jax.tree.map(lambda a: jnp.zeros_like(a[:, 0]), (fresh, segment_BT))
  _, (states, outputs) = scan(module, before, (inputs, fresh, segment_BT), shared)
  return states, outputs


def make_cell(config: Config, name: str) -> nn.RNNCellBase:
  """The recurrent cell `(state, x) -> (state, output)`: a state is h [B, D] of a GRU, (c, h) of an LSTM."""
  return CELLS[config.cell](config.width, kernel_init=initializers.dense, dtype=jnp.dtype(config.dtype), name=name)


class Encoder(nn.Module):
  """Embedded tokens [B, S, E] to tokens [B, S, M] that know what is before them, and after them if bidirectional."""

  config: Config

  @nn.compact
  def __call__(self, x_BSE: jax.Array, segment_BS: jax.Array) -> tuple[jax.Array, list, dict[str, jax.Array]]:
    """Returns the tokens, every layer's states in every direction (see `Encoded`), and every layer's tokens as aux."""
    c, every, aux = self.config, [], {}
    zeros_BSD = jnp.zeros((*segment_BS.shape, c.width))
    fresh = (zeros_BSD, zeros_BSD) if c.cell == "lstm" else zeros_BSD
    for i in range(c.depth):
      ways = []
      for way in ("forward", "backward") if c.bidirectional else ("forward",):
        cell = make_cell(c, f"{way}_{i:02d}")
        ways.append(run_places(_read, cell, fresh, x_BSE, segment_BS, reverse=way == "backward"))
      states, outputs = zip(*ways, strict=True)
      x_BSE = by_batch(jnp.concatenate(outputs, -1).astype(c.dtype))
      x_BSE = Dropout(c.dropout_rate, name=f"dropout_{i:02d}")(x_BSE)
      every.append(states)
      aux[f"block_{i:02d}"] = x_BSE
    return x_BSE, every, aux


def _read(cell, state, x_BD, _):
  return cell(state, x_BD)


class Bridge(nn.Module):
  """Last states of both directions, to one that the decoder starts from: tanh(W [forward; backward]).

  Bahdanau et al. 2015 (A.2.2) have the backward state alone, since they need no more of it with attention.
  """

  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, ways: list):
    x = jnp.concatenate(jax.tree.leaves(ways), -1)
    parts, form = jax.tree.flatten(ways[0])
    dense = nn.Dense(x.shape[-1] // 2, kernel_init=initializers.dense, dtype=self.dtype, name="dense")
    return jax.tree.unflatten(form, jnp.split(jnp.tanh(dense(x)).astype(jnp.float32), len(parts), -1))


class Decoder(nn.Module):
  """One place of the decoder: state and embedded token [B, E] to the state and what says the next word [B, R].

  R is E with attention: h~ = tanh(W [context; h]) (Luong et al. 2015, eq. 5). Without it that is h, so R is D.
  """

  config: Config

  @nn.compact
  def __call__(
    self, state: dict, x_BE: jax.Array, segment_B: jax.Array, encoded: Encoded
  ) -> tuple[dict, tuple[jax.Array, jax.Array | None]]:
    """Also returns the attention to the source [B, S].

    Args:
      state: "cells", a state for each layer; "fed", with input feeding: h~ of the place before.
      x_BE: the token that was said last.
      segment_B: which sequence of the source this one may look at.
      encoded: from the encoder.
    """
    c = self.config
    cells, inputs, weights_BS = list(state["cells"]), [x_BE], None
    context_BM: Any = None

    def attend(h_BD):
      kind = "additive" if c.attention == "additive" else "dot"  # "general" is "dot" to keys that went through a matrix
      pool = Pooling(kind, c.attention_dim, keys_ready=True, dtype=jnp.dtype(c.dtype), name="attention")
      mask = (segment_B[:, None] == encoded.segment_BS)[:, None, None]
      out_B1M, weights = pool(h_BD[:, None], encoded.keys_BSA, encoded.memory_BSM, mask=mask)
      return out_B1M[:, 0], weights[:, 0, 0]

    if c.input_feeding:
      inputs.append(state["fed"])
    if c.attention != "none" and c.attend == "before":
      context_BM, weights_BS = attend(jax.tree.leaves(cells[-1])[-1])
      inputs.append(context_BM)
    x = jnp.concatenate(inputs, -1)
    for i in range(c.depth):
      cells[i], x = make_cell(c, f"cell_{i:02d}")(cells[i], x)
      x = Dropout(c.dropout_rate, name=f"dropout_{i:02d}")(x.astype(c.dtype))
    if c.attention != "none" and c.attend == "after":
      context_BM, weights_BS = attend(x)
    # A pointer network has no use for the context: it says the places, not what is there.
    if c.attention != "none" and (c.head != "pointer" or c.input_feeding):
      dense = nn.Dense(c.embed_dim, kernel_init=initializers.dense, dtype=jnp.dtype(c.dtype), name="readout")
      x = jnp.tanh(dense(jnp.concatenate([context_BM, x], -1)))
    return dict(cells=cells) | (dict(fed=x) if c.input_feeding else {}), (x, weights_BS)


def _say(decoder, state, inputs, encoded):
  return decoder(state, *inputs, encoded)


class Model(nn.Module):
  """Source tokens [B, S] and target tokens [B, T] to the logits [B, T, V] of the next target tokens.

  `encode` and `decode` are the halves of a call; `start` and `step` decode token by token, where a step costs the same
  at every place.
  """

  config: Config

  def setup(self) -> None:
    c = self.config

    def table(name: str) -> nn.Embed:
      # As in the Transformer: times sqrt(E) on the way in, embeddings and logits have variance 1 at the start.
      return nn.Embed(c.vocab_size, c.embed_dim, embedding_init=nn.initializers.normal(c.embed_dim**-0.5), name=name)

    if c.tie_embeddings == "all":
      self.source_embed = self.target_embed = table("embed")
    else:
      self.source_embed, self.target_embed = table("source_embed"), table("target_embed")
    self.dropout = Dropout(c.dropout_rate, name="dropout")
    self.encoder = Encoder(c, name="encoder")
    if c.attention in ("additive", "general"):
      # W of the keys: once for a source, and not at every place of the target.
      width = c.attention_dim if c.attention == "additive" else c.width
      self.keys = nn.Dense(width, use_bias=False, kernel_init=initializers.dense, dtype=jnp.dtype(c.dtype), name="keys")
    if c.bidirectional:
      self.bridges = [Bridge(jnp.dtype(c.dtype), name=f"bridge_{i:02d}") for i in range(c.depth)]
    decoder = Decoder
    if c.remat != "none":
      decoder = nn.remat(Decoder, policy=remat_policy(c.remat), prevent_cse=False)  # a scan keeps the two apart
    self.decoder = decoder(c, name="decoder")
    if c.head != "pointer":
      if c.tie_embeddings == "none":
        self.head = nn.Dense(c.vocab_size, use_bias=c.head_bias, kernel_init=initializers.dense, name="head")
      elif c.head_bias:
        self.head_bias = self.param("head_bias", nn.initializers.zeros, (c.vocab_size,))
    if c.head == "copy":
      self.copies = Copies(c.copy_slots, name="copies")

  def __call__(
    self, source_BS: jax.Array, target_BT: jax.Array, source: Row = ROW, target: Row = ROW
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Logits of every target token from those before it; rng `dropout` turns dropout on.

    Args:
      source_BS: tokens, with `eos` at the end of each sequence.
      target_BT: tokens, with `bos` at the beginning of each sequence.
      source, target: which sequences there are, if several share a row or padding is not `pad`.

    Returns:
      logits [B, T, V] in float32 (V is vocab + copy_slots), and aux: "tokens" [B, S, M] of the encoder, its "block_00",
      ..., "decoder/tokens" [B, T, R], and, if there is attention, "decoder/alignment" [B, T, S].
    """
    encoded, aux = self.encode(source_BS, source)
    logits_BTV, decoder_aux = self.decode(target_BT, encoded, target)
    return logits_BTV, aux | {f"decoder/{k}": v for k, v in decoder_aux.items()}

  def encode(self, source_BS: jax.Array, row: Row = ROW) -> tuple[Encoded, dict[str, jax.Array]]:
    """What the decoder reads, and the encoder's part of aux."""
    c = self.config
    expect(source_BS=source_BS)
    segment_BS = (source_BS != c.pad).astype(jnp.int32) if row.segment_BT is None else row.segment_BT
    x_BSE = self._embed(source_BS, "source")
    memory_BSM, states, aux = self.encoder(x_BSE, segment_BS)
    aux |= {"embedded": x_BSE, "tokens": memory_BSM}
    if c.attention == "none":
      return Encoded(source_BS, segment_BS, states, None, None), aux
    keys_BSA = memory_BSM if c.attention == "dot" else by_batch(self.keys(memory_BSM))
    return Encoded(source_BS, segment_BS, states, memory_BSM, keys_BSA), aux

  def decode(self, target_BT: jax.Array, encoded: Encoded, row: Row = ROW) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Logits [B, T, V] and the decoder's part of aux; see `__call__`."""
    expect(target_BT=target_BT)
    segment_BT = _segments(target_BT, row)
    inputs, fresh = (self._embed(target_BT, "target"), segment_BT), self._fresh(encoded, segment_BT)
    encoded = encoded._replace(states=None)
    _, (x_BTR, weights_BTS) = run_places(_say, self.decoder, fresh, inputs, segment_BT, encoded)
    aux = dict(tokens=x_BTR) | ({} if weights_BTS is None else dict(alignment=weights_BTS))
    return self._predict(x_BTR, encoded.source_BS, weights_BTS), aux

  def start(self, source_BS: jax.Array, max_length: int) -> tuple[Encoded, dict]:
    """What decoding token by token needs (`zoo.decoding`).

    Args:
      source_BS: tokens, filled up with `pad`.
      max_length: of what will be decoded, of which no state depends.

    Returns:
      memory, which stays as it is, and the decoder's state. The first axis of all their arrays is B.
    """
    del max_length
    encoded, _ = self.encode(source_BS)
    state = self._fresh(encoded, jnp.ones((len(source_BS), 1), jnp.int32))
    return encoded._replace(states=None), jax.tree.map(lambda a: a[:, 0], state)

  def step(self, memory: Encoded, cache: dict, token_B: jax.Array, index: jax.Array) -> tuple[jax.Array, dict]:
    """One token of each target.

    Args:
      memory: from `start`.
      cache: the state, from `start` or from the step before.
      token_B: the tokens at place `index`; `bos` at place 0.
      index: int32 scalar, of which nothing depends.

    Returns:
      logits [B, V] of the tokens at `index` + 1, and the state after this token.
    """
    del index
    return self._place(cache, token_B, jnp.ones_like(token_B), memory)

  def mixed_inputs(
    self, source_BS: jax.Array, inputs_BT: jax.Array, own_BT: jax.Array, source: Row = ROW, target: Row = ROW
  ) -> jax.Array:
    """What the decoder reads when some tokens are its own (Bengio et al. 2015, 2.4), place after place.

    Args:
      source_BS, inputs_BT, source, target: as `__call__` has them.
      own_BT: bool, True where the token shall be the most probable one after the tokens before it, which are mixed
        so themselves; never where a sequence begins.

    Returns:
      tokens [B, T]
    """
    encoded, _ = self.encode(source_BS, source)
    segment_BT = _segments(inputs_BT, target)
    fresh = dict(state=self._fresh(encoded, segment_BT), said=inputs_BT)

    def place(model, before, given, encoded):
      token_B, own_B, segment_B = given
      token_B = jnp.where(own_B, before["said"], token_B)
      logits_BV, state = model._place(before["state"], token_B, segment_B, encoded)
      return dict(state=state, said=logits_BV.argmax(-1).astype(token_B.dtype)), token_B

    inputs = inputs_BT, own_BT, segment_BT
    return run_places(place, self, fresh, inputs, segment_BT, encoded._replace(states=None))[1]

  def _place(self, state, token_B, segment_B, encoded) -> tuple[jax.Array, dict]:
    """Logits [B, V] after a token, and the state."""
    x_BE = self._embed(token_B[:, None], "target")[:, 0]
    state, (x_BR, weights_BS) = self.decoder(state, x_BE, segment_B, encoded)
    weights_B1S = None if weights_BS is None else weights_BS[:, None]
    return self._predict(x_BR[:, None], encoded.source_BS, weights_B1S)[:, 0], state

  def _fresh(self, encoded: Encoded, segment_BT: jax.Array) -> dict:
    """The states that the decoder starts from: the last ones of the source segments with the same numbers."""
    c = self.config
    same_BTS = segment_BT[:, :, None] == encoded.segment_BS[:, None]
    first_BT, last_BT = same_BTS.argmax(-1), same_BTS.shape[-1] - 1 - same_BTS[..., ::-1].argmax(-1)
    cells = []
    for i, ways in enumerate(encoded.states):
      # Backward, the last place to be read is the first.
      ends = [
        jax.tree.map(lambda a, index_BT=index_BT: choose_tokens(a, index_BT), states)
        for states, index_BT in zip(ways, (last_BT, first_BT), strict=False)
      ]
      cells.append(self.bridges[i](ends) if c.bidirectional else ends[0])
    fed = dict(fed=jnp.zeros((*segment_BT.shape, c.embed_dim), c.dtype)) if c.input_feeding else {}
    return by_batch(dict(cells=cells) | fed)

  def _embed(self, token_BT: jax.Array, side: str) -> jax.Array:
    c = self.config
    # Source words outside the vocabulary have numbers beyond it (`copying`); they are read as token 1, "unknown".
    token_BT = jnp.where(token_BT < c.vocab_size, token_BT, 1) if c.copy_slots else token_BT
    x_BTE = getattr(self, f"{side}_embed")(token_BT) * c.embed_dim**0.5
    return by_batch(self.dropout(x_BTE.astype(c.dtype)))

  def _predict(self, x_BTR: jax.Array, source_BS: jax.Array, weights_BTS: Any) -> jax.Array:
    c = self.config
    if c.head == "pointer":
      return by_batch(copied(weights_BTS, source_BS, c.vocab_size + c.copy_slots))
    if c.tie_embeddings == "none":
      logits_BTV = self.head(x_BTR.astype(jnp.float32))
    else:
      logits_BTV = tied_logits(x_BTR, self.target_embed.embedding)
      if c.head_bias:
        logits_BTV = logits_BTV + self.head_bias
    if c.head == "copy":
      logits_BTV = self.copies(logits_BTV, weights_BTS, source_BS, x_BTR)
    return by_batch(logits_BTV)


def _segments(target_BT: jax.Array, row: Row) -> jax.Array:
  return jnp.ones_like(target_BT) if row.segment_BT is None else row.segment_BT
