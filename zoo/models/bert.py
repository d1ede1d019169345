"""BERT (Devlin et al. 2019): a Transformer encoder that reads text both ways, and the heads put on top of it.

It is pretrained to tell words that were hidden, and whether one text follows another; then one head is exchanged for
another, and all of it is trained on.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zoo.errors import field_faults
from zoo.layers import attention_masks, initializers
from zoo.layers.activations import ACTIVATIONS
from zoo.layers.attention import check_heads
from zoo.layers.block import Block, Context
from zoo.layers.dropout import Dropout
from zoo.layers.linear import Dense, tied_logits
from zoo.layers.norms import LayerNorm
from zoo.layers.patch_embed import choose_tokens
from zoo.layers.stack import run_blocks
from zoo.models.transformer import ROW, Row
from zoo.partitioning import by_batch
from zoo.shapes import expect

# base and large: Devlin et al. 2019, 3; the others: Turc et al. 2019, table 1. "minilm" is MiniLM-L6-H384 (Wang et al.
# 2020); "nano" is for the bundled text, on a CPU: as published, it would need more text and time to begin to learn.
VARIANTS = {
  "tiny": dict(width=128, depth=2, mlp_dim=512, num_heads=2),
  "mini": dict(width=256, depth=4, mlp_dim=1024, num_heads=4),
  "small": dict(width=512, depth=4, mlp_dim=2048, num_heads=8),
  "medium": dict(width=512, depth=8, mlp_dim=2048, num_heads=8),
  "base": dict(width=768, depth=12, mlp_dim=3072, num_heads=12),
  "large": dict(width=1024, depth=24, mlp_dim=4096, num_heads=16),
  "minilm": dict(width=384, depth=6, mlp_dim=1536, num_heads=12),
  "nano": dict(
    width=192,
    depth=3,
    mlp_dim=768,
    num_heads=4,
    vocab_size=4000,
    max_length=128,
    mask=4,
    norm_position="pre",
    position_embedding="rotary",
    init_std=0.06,
  ),
  "test": dict(
    width=24,
    depth=2,
    mlp_dim=40,
    num_heads=4,
    vocab_size=29,
    max_length=16,
    mask=4,
    dropout_rate=0.0,
    attention_dropout_rate=0.0,
  ),
}
HEADS = ("pretrain", "words", "classify", "tag", "span", "none")


@dataclass(frozen=True)
class Config:
  """Hyperparameters.

  Attributes:
    width: D. depth: L. mlp_dim: F. num_heads: N.
    vocab_size: V. max_length: the longest row, in tokens. type_vocab_size: how many kinds of segments there are, such
      as A and B.
    pad, mask: tokens that fill up a row, and stand for a hidden word.
    head: what is on top. "pretrain": the hidden words and whether B follows A; "words": the former alone. "classify":
      a class for a row, or a number (`num_classes=1`), by which choices may be compared. "tag": a class for each token.
      "span": for each token how well an answer begins and ends there. "none": the tokens themselves.
    num_classes: of "classify" and "tag"; 0 for the others.
    pooler: whether there is one with the head "none"; the other heads know.
    pool: what "classify" sees of a row: "cls", the first token through the pooler, as published; or the "mean" of all
      tokens (Reimers & Gurevych 2019, 3), which needs no pooler: for weights whose first token was never asked
      anything, such as those of the head "words".
    norm_position: "post" as published, or "pre", with a norm after the last block; see `zoo.layers.block.Block`.
    position_embedding: "learned", added to the embeddings, as published; or "rotary", turning queries and keys.
    dropout_rate: of embeddings, sublayer outputs, and what "classify" and "tag" see. attention_dropout_rate: of
      attention weights.
    activation: one of `zoo.layers.activations.ACTIVATIONS`. norm_eps: of the layer norms.
    init_std: of what all matrices and tables are drawn from at first (`zoo.layers.initializers.bert`).
    scan: compile one block for all. remat: what the backward pass recomputes (`zoo.layers.stack.run_blocks`).
    dtype: compute type, "float32" or "bfloat16"; parameters, norm statistics, softmax and logits stay float32.
  """

  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  vocab_size: int = 30522
  max_length: int = 512
  type_vocab_size: int = 2
  pad: int = 0
  mask: int = 103
  head: str = "pretrain"
  num_classes: int = 0
  pooler: bool = True
  pool: str = "cls"
  norm_position: str = "post"
  position_embedding: str = "learned"
  dropout_rate: float = 0.1
  attention_dropout_rate: float = 0.1
  activation: str = "gelu"
  norm_eps: float = 1e-12
  init_std: float = 0.02
  scan: bool = False
  remat: str = "none"
  dtype: str = "float32"

  def __post_init__(self):
    choices = dict(
      head=HEADS,
      pool=("cls", "mean"),
      norm_position=("post", "pre"),
      position_embedding=("learned", "rotary"),
      activation=tuple(ACTIVATIONS),
      dtype=("float32", "bfloat16"),
    )
    at_least = {
      1: ("width", "depth", "mlp_dim", "num_heads", "vocab_size", "max_length", "type_vocab_size"),
      0: ("pad", "mask", "num_classes"),
    }
    faults = field_faults(self, choices, at_least, ("dropout_rate", "attention_dropout_rate"))
    if self.init_std <= 0:
      faults.append(f"init_std is {self.init_std}; wanted more than 0")
    for name in ("pad", "mask"):
      if getattr(self, name) >= self.vocab_size:
        faults.append(f"{name} is token {getattr(self, name)} of a vocabulary of {self.vocab_size}")
    if self.head in ("classify", "tag") and not self.num_classes:
      faults.append(f"head={self.head!r} needs num_classes, at least 1")
    if self.head in HEADS and self.head not in ("classify", "tag") and self.num_classes:
      faults.append(f"num_classes is {self.num_classes}, but head={self.head!r} has none: wanted 'classify' or 'tag'")
    if faults:
      raise ValueError("\n".join(faults))
    check_heads(self.width, self.num_heads)


def inputs(config: Config, batch: int) -> tuple[jax.ShapeDtypeStruct, ...]:
  """The shapes `Model` is called with: tokens."""
  return (jax.ShapeDtypeStruct((batch, min(config.max_length, 128)), jnp.int32),)


class Encoder(nn.Module):
  """Tokens [B, T] to vectors [B, T, D] (Devlin et al. 2019, 3 and figure 2)."""

  config: Config

  @nn.compact
  def __call__(self, token_BT: jax.Array, type_BT: jax.Array | None, row: Row) -> tuple[jax.Array, jax.Array, dict]:
    """Returns the vectors, the table of words [V, D], and aux."""
    c, dtype = self.config, jnp.dtype(self.config.dtype)
    length = token_BT.shape[1]
    if length > c.max_length:
      raise ValueError(f"a row has {length} tokens; the model's max_length is {c.max_length}")
    segment_BT = segments(c, token_BT, row)
    position_BT = jnp.arange(length)[None] if row.position_BT is None else row.position_BT
    type_BT = jnp.zeros((1, 1), jnp.int32) if type_BT is None else type_BT

    def table(name: str, size: int) -> nn.Embed:
      return nn.Embed(size, c.width, embedding_init=initializers.bert(c.init_std), name=name)

    words = table("embed", c.vocab_size)
    x_BTD = words(token_BT) + table("type", c.type_vocab_size)(type_BT)
    if c.position_embedding == "learned":
      x_BTD = x_BTD + table("position", c.max_length)(position_BT)
    norm = functools.partial(LayerNorm, epsilon=c.norm_eps, dtype=dtype)
    x_BTD = norm(name="embed_norm")(x_BTD.astype(dtype))
    x_BTD = by_batch(Dropout(c.dropout_rate, name="dropout")(x_BTD))
    block = functools.partial(
      Block,
      num_heads=c.num_heads,
      mlp_dim=c.mlp_dim,
      activation=c.activation,
      norm_eps=c.norm_eps,
      dropout_rate=c.dropout_rate,
      attention_dropout_rate=c.attention_dropout_rate,
      dtype=dtype,
      norm_position=c.norm_position,
      rotary=c.position_embedding == "rotary",
      hidden_dropout=False,
      kernel_init=initializers.bert(c.init_std),
    )
    mask = attention_masks.same_segment(segment_BT, segment_BT) & (segment_BT > 0)[:, None, None]
    context = Context(mask=mask, position=position_BT, real=segment_BT > 0)
    tokens_BTD, aux = run_blocks(block, x_BTD, context, per_block=np.zeros(c.depth), scan=c.scan, remat=c.remat)
    if c.norm_position == "pre":
      tokens_BTD = norm(name="norm")(tokens_BTD)
    return tokens_BTD, words.embedding, aux | {"embedded": x_BTD}


class Words(nn.Module):
  """Vectors [B, P, D] to logits [B, P, V] of the words there, by the table that embeds words (released code)."""

  config: Config

  @nn.compact
  def __call__(self, x_BPD: jax.Array, table_VD: jax.Array) -> jax.Array:
    c, dtype = self.config, jnp.dtype(self.config.dtype)
    x_BPD = Dense(c.width, kernel_init=initializers.bert(c.init_std), dtype=dtype, name="transform")(x_BPD)
    x_BPD = LayerNorm(epsilon=c.norm_eps, dtype=dtype, name="norm")(ACTIVATIONS[c.activation](x_BPD))
    return tied_logits(x_BPD, table_VD) + self.param("bias", nn.initializers.zeros, (c.vocab_size,))


class Model(nn.Module):
  """Tokens [B, T] to what `Config.head` says of them."""

  config: Config

  @nn.compact
  def __call__(
    self,
    token_BT: jax.Array,
    type_BT: jax.Array | None = None,
    row: Row = ROW,
    masked_BP: jax.Array | None = None,
    first_BK: jax.Array | None = None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Reads rows; rng `dropout` turns dropout on.

    Args:
      token_BT: each sequence begins with the token that is pooled, [CLS].
      type_BT: 0 in the first segment of a sequence, 1 in the second; None: all 0.
      row: where sequences are, if several share a row or padding is not `pad`.
      masked_BP: places whose words are told; None: all, which costs T / P times as much.
      first_BK: places of the first tokens of the sequences that share a row; None: one sequence, from place 0.

    Returns:
      float32, and aux: "embedded", "block_00", ..., "tokens" [B, T, D], the attention "block_00/weights"
      [B, N, T, T], ..., and what is pooled, "pooled" [B, D] or [B, K, D].
      "pretrain": logits [B, P, V]; aux["next"] [B, 2], or [B, K, 2]: that B follows A, and that it does not.
      "words": logits [B, P, V]. "classify": [B, V], or [B, K, V], V classes. "tag": [B, T, V]. "span": [B, T, 2],
      beginning and end. "none": [B, T, D].

    Raises:
      ValueError: a row is longer than `max_length`.
    """
    c, dtype = self.config, jnp.dtype(self.config.dtype)
    expect(token_BT=token_BT, masked_BP=masked_BP, first_BK=first_BK)
    tokens_BTD, table_VD, aux = Encoder(c, name="encoder")(token_BT, type_BT, row)
    aux["tokens"], pooled = tokens_BTD, tokens_BTD
    head = functools.partial(Dense, kernel_init=initializers.bert(c.init_std))  # in float32
    if c.head == "classify" and c.pool == "mean":
      if first_BK is not None:
        raise ValueError("pool='mean' takes the mean of a whole row; sequences that share a row need pool='cls'")
      aux["pooled"] = pooled = by_batch(mean_token(tokens_BTD, segments(c, token_BT, row) > 0))
    elif c.head in ("pretrain", "classify") or (c.head == "none" and c.pooler):
      first_BKD = tokens_BTD[:, 0] if first_BK is None else choose_tokens(tokens_BTD, first_BK)
      pooled = jnp.tanh(
        nn.Dense(c.width, kernel_init=initializers.bert(c.init_std), dtype=dtype, name="pooler")(first_BKD)
      )
      aux["pooled"] = pooled = by_batch(pooled.astype(jnp.float32))
    if c.head in ("pretrain", "words"):
      if c.head == "pretrain":
        aux["next"] = by_batch(head(2, name="next")(pooled))
      masked_BPD = tokens_BTD if masked_BP is None else choose_tokens(tokens_BTD, masked_BP)
      return by_batch(Words(c, name="words")(masked_BPD, table_VD)), aux
    if c.head == "none":
      return tokens_BTD.astype(jnp.float32), aux
    seen = pooled if c.head == "classify" else tokens_BTD.astype(jnp.float32)
    if c.head == "span":  # without dropout, as published
      return by_batch(head(2, name="head")(seen)), aux
    return by_batch(head(c.num_classes, name="head")(Dropout(c.dropout_rate, name="dropout")(seen))), aux


def segments(config: Config, token_BT: jax.Array, row: Row) -> jax.Array:
  """[B, T] int32: the sequence of its row that a token is of, from 1; 0 for padding."""
  return (token_BT != config.pad).astype(jnp.int32) if row.segment_BT is None else row.segment_BT


def mean_token(tokens_BTD: jax.Array, real_BT: jax.Array) -> jax.Array:
  """The mean of the tokens that are `real_BT` [B, D], in float32; 0 where none is."""
  real_BT1 = real_BT[..., None].astype(jnp.float32)
  return (tokens_BTD * real_BT1).sum(1) / jnp.maximum(real_BT1.sum(1), 1)


def sentence_embedding(tokens_BTD: jax.Array, real_BT: jax.Array) -> jax.Array:
  """The mean of the real tokens, of length 1 [B, D]: what is compared by its dot product (Reimers & Gurevych 2019, 3).

  Args:
    tokens_BTD: the output of the head "none".
    real_BT: bool, False for padding.
  """
  expect(tokens_BTD=tokens_BTD, real_BT=real_BT)
  mean_BD = mean_token(tokens_BTD, real_BT)
  return mean_BD / jnp.maximum(jnp.linalg.norm(mean_BD, axis=1, keepdims=True), 1e-12)
