"""Transformer (Vaswani et al. 2017, "Attention Is All You Need"): from the tokens of one sequence to those of another.

An encoder reads the source; a decoder, which sees the target up to each place and attends to the encoder's output, says
what comes next.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zoo.errors import field_faults
from zoo.layers import attention_masks, initializers, norms
from zoo.layers.activations import ACTIVATIONS
from zoo.layers.attention import Cache, check_heads
from zoo.layers.block import Block, Context
from zoo.layers.dropout import Dropout
from zoo.layers.linear import Dense, tied_logits
from zoo.layers.pointer import Copies
from zoo.layers.position_embeddings import RelativeBias, alibi_bias, sincos_1d
from zoo.layers.stack import run_blocks
from zoo.partitioning import by_batch
from zoo.shapes import expect

# Vaswani et al. 2017, table 3; vocabulary as in 5.1. "nano" is for the bundled verses, on a CPU.
VARIANTS = {
  "base": dict(width=512, depth=6, decoder_depth=6, mlp_dim=2048, num_heads=8),
  "big": dict(width=1024, depth=6, decoder_depth=6, mlp_dim=4096, num_heads=16, dropout_rate=0.3),
  "nano": dict(width=128, depth=3, decoder_depth=3, mlp_dim=512, num_heads=4, vocab_size=4000, max_length=128),
  "test": dict(
    width=24, depth=2, decoder_depth=3, mlp_dim=40, num_heads=4, vocab_size=29, max_length=16, dropout_rate=0.0
  ),
}


@dataclass(frozen=True)
class Config:
  """Hyperparameters.

  Attributes:
    width: D. depth: L of the encoder. decoder_depth: L of the decoder. mlp_dim: F. num_heads: N.
    num_kv_heads: K, see `zoo.layers.attention.Attention`; 0 for N.
    vocab_size: V. max_length: the longest source or target, in tokens.
    pad, bos, eos: tokens that fill up a row, begin a target and end a sequence.
    norm_position: "post" or "pre", see `zoo.layers.block.Block`. final_norm: normalise after the last block, which
      "pre" needs.
    cross: what block i of the decoder attends to: "last" is the encoder's output (Vaswani), "layer" the output of the
      encoder's block i, "mix" a learned mean of all blocks' outputs, another for each i (Bapna et al. 2018, 3.1).
    position_embedding: added to the embeddings, "sincos" (3.5) or "learned"; or told by self-attention, "rotary",
      "alibi" or "t5" (`zoo.layers.position_embeddings`); or "none".
    norm: kind of all norms, see `zoo.layers.norms`.
    tie_embeddings: "all" uses one matrix for source, target and output (3.4), "target" one for target and output,
      "none" three.
    scale_embedding: times sqrt(D) (3.4). embed_norm: normalise embeddings with their positions, as in BART.
    head_bias: added to the logits.
    copy: mix the distribution with copies of source tokens (`zoo.layers.pointer`). copy_slots: see there.
    dropout_rate: of embeddings, MLPs and block outputs. attention_dropout_rate: of attention weights.
    activation: one of `zoo.layers.activations.ACTIVATIONS`. norm_eps: of the layer norms.
    scan: compile one block for all. remat: what the backward pass recomputes (`zoo.layers.stack.run_blocks`).
    dtype: compute type, "float32" or "bfloat16"; parameters, norm statistics, softmax and logits stay float32.
  """

  width: int = 512
  depth: int = 6
  decoder_depth: int = 6
  mlp_dim: int = 2048
  num_heads: int = 8
  num_kv_heads: int = 0
  vocab_size: int = 37000
  max_length: int = 512
  pad: int = 0
  bos: int = 2
  eos: int = 3
  norm_position: str = "post"
  final_norm: bool = False
  cross: str = "last"
  position_embedding: str = "sincos"
  norm: str = "layer"
  tie_embeddings: str = "all"
  scale_embedding: bool = True
  embed_norm: bool = False
  head_bias: bool = False
  copy: bool = False
  copy_slots: int = 0
  dropout_rate: float = 0.1
  attention_dropout_rate: float = 0.0
  activation: str = "relu"
  norm_eps: float = 1e-5
  scan: bool = False
  remat: str = "none"
  dtype: str = "float32"

  def __post_init__(self):
    choices = dict(
      norm_position=("post", "pre"),
      cross=("last", "layer", "mix"),
      position_embedding=("sincos", "learned", "rotary", "alibi", "t5", "none"),
      norm=tuple(norms.KINDS),
      tie_embeddings=("all", "target", "none"),
      activation=tuple(ACTIVATIONS),
      dtype=("float32", "bfloat16"),
    )
    at_least = {
      1: ("width", "depth", "decoder_depth", "mlp_dim", "num_heads", "vocab_size", "max_length"),
      0: ("num_kv_heads", "pad", "bos", "eos", "copy_slots"),
    }
    faults = field_faults(self, choices, at_least, ("dropout_rate", "attention_dropout_rate"))
    if self.cross == "layer" and self.depth != self.decoder_depth:
      faults.append(f"cross='layer' pairs the blocks, but depth is {self.depth} and decoder_depth {self.decoder_depth}")
    if self.norm_position == "pre" and not self.final_norm:
      faults.append("order='pre' needs final_norm=True: nothing else normalises the last block's output")
    if self.norm in ("batch", "power") and self.cross != "last" and self.final_norm:
      faults.append(f"norm={self.norm!r} keeps statistics of one layer, but cross={self.cross!r} would norm several")
    for name in ("pad", "bos", "eos"):
      if getattr(self, name) >= self.vocab_size:
        faults.append(f"{name} is token {getattr(self, name)} of a vocabulary of {self.vocab_size}")
    if self.copy_slots and not self.copy:
      faults.append(f"copy_slots is {self.copy_slots} without copy=True")
    if faults:
      raise ValueError("\n".join(faults))
    check_heads(self.width, self.num_heads)


def inputs(config: Config, batch: int) -> tuple[jax.ShapeDtypeStruct, ...]:
  """The shapes `Model` is called with: source and target tokens."""
  tokens = jax.ShapeDtypeStruct((batch, min(config.max_length, 64)), jnp.int32)
  return tokens, tokens


class Row(NamedTuple):
  """What a row of tokens holds.

  Attributes:
    segment_BT: number of the sequence that a token belongs to, 0 for padding; None: all that is not `pad` is one.
    position_BT: place of the token in its sequence; None: its place in the row.
  """

  segment_BT: jax.Array | None = None
  position_BT: jax.Array | None = None


ROW = Row()  # one sequence from the beginning, filled up with `pad`


class Encoded(NamedTuple):
  """What the decoder reads: tokens and segments of the source, and the memory, [B, S, D] or one a decoder block."""

  source_BS: jax.Array
  segment_BS: jax.Array
  memory: Any


class Stack(nn.Module):
  """Blocks [B, T, D] to [B, T, D], and a last norm."""

  config: Config
  depth: int
  cross: bool = False

  @nn.compact
  def __call__(
    self, x_BTD: jax.Array, shared: Context, own: list[Context] | None = None
  ) -> tuple[jax.Array, list[jax.Array], dict[str, jax.Array]]:
    """Returns the output, the output of every block, if the decoder reads them all, and aux."""
    c = self.config
    block = functools.partial(
      Block,
      num_heads=c.num_heads,
      num_kv_heads=c.num_kv_heads,
      mlp_dim=c.mlp_dim,
      activation=c.activation,
      norm_eps=c.norm_eps,
      dropout_rate=c.dropout_rate,
      attention_dropout_rate=c.attention_dropout_rate,
      dtype=jnp.dtype(c.dtype),
      norm_position=c.norm_position,
      cross=self.cross,
      rotary=c.position_embedding == "rotary",
      norm=c.norm,
    )
    x_BTD, aux = run_blocks(block, x_BTD, shared, per_block=np.zeros(self.depth), own=own, scan=c.scan, remat=c.remat)
    outputs = [aux[f"block_{i:02d}"] for i in range(self.depth)] if c.cross != "last" else []
    if c.final_norm:
      norm = norms.norm(c.norm, c.norm_eps, jnp.dtype(c.dtype), "norm")
      x_BTD, outputs = norm(x_BTD, shared.real), [norm(y) for y in outputs]
    return x_BTD, outputs, aux


class Model(nn.Module):
  """Source tokens [B, S] and target tokens [B, T] to the logits [B, T, V] of the next target tokens.

  `encode` and `decode` are the halves of a call; `start` and `step` decode token by token, with a cache.
  """

  config: Config
  causal = True  # whether a target token sees only those before it

  def setup(self) -> None:
    c = self.config

    def table(name: str, length: int = c.vocab_size, deviation: float = c.width**-0.5) -> nn.Embed:
      # With deviation D^-1/2, times sqrt(D) on the way in, embeddings and logits have variance 1 at the start.
      return nn.Embed(length, c.width, embedding_init=nn.initializers.normal(deviation), name=name)

    if c.tie_embeddings == "all":
      self.source_embed = self.target_embed = table("embed")
    else:
      self.source_embed, self.target_embed = table("source_embed"), table("target_embed")
    if c.position_embedding == "learned":
      self.source_position = table("source_position", c.max_length, 0.02)
      self.target_position = table("target_position", c.max_length, 0.02)
    if c.position_embedding == "t5":
      self.source_bias = RelativeBias(c.num_heads, name="source_bias")
      self.target_bias = RelativeBias(c.num_heads, bidirectional=not self.causal, name="target_bias")
    if c.embed_norm:
      kind = functools.partial(norms.norm, c.norm, c.norm_eps, jnp.dtype(c.dtype))
      self.source_norm, self.target_norm = kind("source_norm"), kind("target_norm")
    if c.cross == "mix":
      # Equal weights at first: the mean of all layers.
      self.mix = self.param("mix", nn.initializers.zeros, (c.decoder_depth, c.depth))
    self.encoder = Stack(c, c.depth, name="encoder")
    self.decoder = Stack(c, c.decoder_depth, cross=True, name="decoder")
    self.dropout = Dropout(c.dropout_rate, name="dropout")
    if c.tie_embeddings == "none":
      self.head = Dense(c.vocab_size, use_bias=c.head_bias, kernel_init=initializers.dense, name="head")
    elif c.head_bias:
      self.head_bias = self.param("head_bias", nn.initializers.zeros, (c.vocab_size,))
    if c.copy:
      self.copies = Copies(c.copy_slots, name="copies")

  def __call__(
    self, source_BS: jax.Array, target_BT: jax.Array, source: Row = ROW, target: Row = ROW
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Logits of every target token from those before it; rng `dropout` turns dropout on.

    Args:
      source_BS: tokens, with `eos` at the end of each sequence.
      target_BT: tokens, with `bos` at the beginning of each sequence.
      source, target: where sequences are, if several share a row or padding is not `pad`.

    Returns:
      logits [B, T, V] in float32 (with `copy` V is vocab + copy_slots), and aux: "tokens" [B, S, D] of the encoder,
      its "block_00", ..., "block_00/weights", and the same of the decoder as "decoder/block_00", with
      "decoder/block_00/cross_weights" [B, N, T, S]; "decoder/alignment" [B, T, S] is the last of these, all heads'
      mean.

    Raises:
      ValueError: a row is longer than `max_length`.
    """
    encoded, aux = self.encode(source_BS, source)
    logits_BTV, decoder_aux = self.decode(target_BT, encoded, target)
    return logits_BTV, aux | {f"decoder/{k}": v for k, v in decoder_aux.items()}

  def encode(self, source_BS: jax.Array, row: Row = ROW) -> tuple[Encoded, dict[str, jax.Array]]:
    """What the decoder reads, and the encoder's part of aux."""
    c = self.config
    expect(source_BS=source_BS)
    segment_BS = (source_BS != c.pad).astype(jnp.int32) if row.segment_BT is None else row.segment_BT
    position_BS = jnp.arange(source_BS.shape[1])[None] if row.position_BT is None else row.position_BT
    x_BSD = self._embed(source_BS, position_BS, "source", segment_BS > 0)
    mask = attention_masks.same_segment(segment_BS, segment_BS) & (segment_BS > 0)[:, None, None]
    bias = self._bias(position_BS, position_BS, "source")
    context = Context(mask=mask, bias=bias, position=position_BS, real=segment_BS > 0)
    memory, outputs, aux = self.encoder(x_BSD, context)
    aux |= {"embedded": x_BSD, "tokens": memory}
    if c.cross == "layer":
      memory = outputs
    if c.cross == "mix":
      share = jax.nn.softmax(self.mix)
      memory = [sum(share[i, j].astype(y.dtype) * y for j, y in enumerate(outputs)) for i in range(c.decoder_depth)]
    return Encoded(source_BS, segment_BS, memory), aux

  def decode(self, target_BT: jax.Array, encoded: Encoded, row: Row = ROW) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Logits [B, T, V] and the decoder's part of aux; see `__call__`."""
    sizes = expect(target_BT=target_BT)
    segment_BT = jnp.ones_like(target_BT) if row.segment_BT is None else row.segment_BT
    position_BT = jnp.arange(sizes["T"])[None] if row.position_BT is None else row.position_BT
    x_BTD = self._embed(target_BT, position_BT, "target", segment_BT > 0)
    mask = attention_masks.same_segment(segment_BT, segment_BT) & (segment_BT > 0)[:, None, None]
    if self.causal:
      mask &= attention_masks.causal(sizes["T"], sizes["T"])
    shared = Context(
      mask=mask,
      bias=self._bias(position_BT, position_BT, "target"),
      memory_mask=attention_masks.same_segment(segment_BT, encoded.segment_BS),
      position=position_BT,
      real=segment_BT > 0,
    )
    own = None
    if isinstance(encoded.memory, list):
      own = [Context(memory=memory) for memory in encoded.memory]
    else:
      shared = shared._replace(memory=encoded.memory)
    x_BTD, _, aux = self.decoder(x_BTD, shared, own)
    aux["alignment"] = aux[f"block_{self.config.decoder_depth - 1:02d}/cross_weights"].mean(1)
    return self._predict(x_BTD, encoded.source_BS, aux["alignment"]), aux

  def start(self, source_BS: jax.Array, max_length: int) -> tuple[dict, list[Cache]]:
    """What decoding token by token needs (`zoo.decoding`).

    Args:
      source_BS: tokens, filled up with `pad`.
      max_length: of what will be decoded, in tokens.

    Returns:
      memory, which stays as it is: every block's keys and values of the source; and the cache of the targets, of which
      there is nothing yet. The first axis of all their arrays is B.
    """
    c = self.config
    encoded, _ = self.encode(source_BS)
    first_B1 = jnp.full((len(source_BS), 1), c.bos, jnp.int32)
    _, aux = self.decode(first_B1, encoded)
    own, memory = zip(*(aux[f"block_{i:02d}/cache"] for i in range(c.decoder_depth)), strict=True)
    # Room for the tokens to come: what is not written yet is masked.
    cache = jax.tree.map(lambda a: jnp.zeros((*a.shape[:2], max_length, a.shape[3]), a.dtype), list(own))
    return dict(blocks=list(memory), source=source_BS, segment=encoded.segment_BS), cache

  def step(
    self, memory: dict, cache: list[Cache], token_B: jax.Array, index: jax.Array
  ) -> tuple[jax.Array, list[Cache]]:
    """One token of each target.

    Args:
      memory: from `start`.
      cache: from `start`, or from the step before.
      token_B: the tokens at place `index`; `bos` at place 0.
      index: int32 scalar.

    Returns:
      logits [B, V] of the tokens at `index` + 1, and the cache with this token in it.
    """
    length, position_11 = cache[0].k_BKSH.shape[2], jnp.full((1, 1), index)
    x_B1D = self._embed(token_B[:, None], position_11, "target")
    shared = Context(
      mask=attention_masks.causal(1, length, index),
      bias=self._bias(position_11, jnp.arange(length)[None], "target"),
      memory_mask=(memory["segment"] > 0)[:, None, None],
      index=index,
      position=position_11,
    )
    own = [Context(cache=caches) for caches in zip(cache, memory["blocks"], strict=True)]
    x_B1D, _, aux = self.decoder(x_B1D, shared, own)
    new: Any = [aux[f"block_{i:02d}/cache"][0] for i in range(len(cache))]
    weights_BNTS = aux[f"block_{len(cache) - 1:02d}/cross_weights"]
    return self._predict(x_B1D, memory["source"], weights_BNTS.mean(1))[:, 0], new

  def mixed_inputs(
    self, source_BS: jax.Array, inputs_BT: jax.Array, own_BT: jax.Array, source: Row = ROW, target: Row = ROW
  ) -> jax.Array:
    """What the decoder reads when some tokens are its own (Bengio et al. 2015), all places at once.

    Its own are those that it says after the true ones before them (Mihaylova & Martins 2019, 3).

    Args:
      source_BS, inputs_BT, source, target: as `__call__` has them.
      own_BT: bool, True where the token shall be the decoder's own; never where a sequence begins.

    Returns:
      tokens [B, T]
    """
    expect(inputs_BT=inputs_BT, own_BT=own_BT)
    logits_BTV, _ = self(source_BS, inputs_BT, source, target)
    return jnp.where(own_BT, jnp.roll(logits_BTV.argmax(-1), 1, 1), inputs_BT)

  def _bias(self, query_BT: jax.Array, key_BS: jax.Array, side: str) -> jax.Array | None:
    """What positions add to the scores of self-attention."""
    c = self.config
    if c.position_embedding == "alibi":
      return alibi_bias(c.num_heads, query_BT, key_BS)
    return getattr(self, f"{side}_bias")(query_BT, key_BS) if c.position_embedding == "t5" else None

  def _embed(
    self, token_BT: jax.Array, position_BT: jax.Array, side: str, real_BT: jax.Array | None = None
  ) -> jax.Array:
    c = self.config
    length = token_BT.shape[1]
    if length > c.max_length:
      raise ValueError(f"a {side} row has {length} tokens; the model's max_length is {c.max_length}")
    # Source words outside the vocabulary have numbers beyond it (`copying`); they are read as token 1, "unknown".
    token_BT = jnp.where(token_BT < c.vocab_size, token_BT, 1) if c.copy else token_BT
    x_BTD = getattr(self, f"{side}_embed")(token_BT)
    if c.scale_embedding:
      x_BTD = x_BTD * c.width**0.5
    if c.position_embedding == "sincos":
      x_BTD = x_BTD + jnp.asarray(sincos_1d(np.arange(c.max_length), c.width))[position_BT]
    elif c.position_embedding == "learned":
      x_BTD = x_BTD + getattr(self, f"{side}_position")(position_BT)
    x_BTD = x_BTD.astype(c.dtype)
    if c.embed_norm:
      x_BTD = getattr(self, f"{side}_norm")(x_BTD, real_BT)
    return by_batch(self.dropout(x_BTD))

  def _predict(self, x_BTD: jax.Array, source_BS: jax.Array, alignment_BTS: jax.Array) -> jax.Array:
    c = self.config
    if c.tie_embeddings == "none":
      logits_BTV = self.head(x_BTD.astype(jnp.float32))
    else:
      logits_BTV = tied_logits(x_BTD, self.target_embed.embedding)
      if c.head_bias:
        logits_BTV = logits_BTV + self.head_bias
    if c.copy:
      logits_BTV = self.copies(logits_BTV, alignment_BTS, source_BS, x_BTD)
    return by_batch(logits_BTV)
