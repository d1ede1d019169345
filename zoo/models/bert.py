"""BERT (Devlin et al. 2019): a bidirectional Transformer encoder and its heads.

It is pretrained on masked language modelling and next sentence prediction, and fine-tuned with another head.
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
from zoo.layers.attention import IMPLEMENTATIONS, check_heads
from zoo.layers.block import BLOCK_AXES, Block, BlockInputs
from zoo.layers.dropout import Dropout
from zoo.layers.linear import tied_logits
from zoo.layers.norms import NORM_AXES, LayerNorm
from zoo.layers.patch_embed import take_tokens
from zoo.layers.sequence_info import SINGLE_SEQUENCE, SequenceInfo
from zoo.layers.stack import run_blocks
from zoo.models.encoder_decoder import special_token_faults
from zoo.partitioning import BIASES_AND_SCALES, BLOCK, layer_of_encoder, shard_batch, under
from zoo.shapes import expect

# base and large: Devlin et al. 2019, 3; the others: Turc et al. 2019, table 1. "minilm" is MiniLM-L6-H384 (Wang et al.
# 2020); "nano" is for the bundled text on a CPU: the published recipe needs more text and time to start learning.
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
    mask_token_id=4,
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
    mask_token_id=4,
    dropout_rate=0.0,
    attention_dropout_rate=0.0,
  ),
}
CLASSIFIERS = ("sequence_classification", "token_classification")  # heads of `num_classes`
HEADS = ("pretraining", "masked_lm", *CLASSIFIERS, "multiple_choice", "question_answering", "none")


@dataclass(frozen=True)
class Config:
  """Hyperparameters.

  Attributes:
    width: D. depth: L. mlp_dim: F. num_heads: N.
    vocab_size: V. max_length: maximum row length in tokens. type_vocab_size: number of token types, i.e. of segments
      such as A and B.
    pad_token_id, mask_token_id: ids of the padding token and of [MASK].
    head: the output. "pretraining": masked language modelling and next sentence prediction. "masked_lm": the former
      alone. "sequence_classification": logits of a sequence's classes, or a number (`num_classes=1`).
      "token_classification": logits of each token's classes. "multiple_choice": a logit for each row, which holds one
      choice. "question_answering": logits of the answer's start and end for each token. "none": the tokens.
    num_classes: V of "sequence_classification" and "token_classification"; 0 for the other heads.
    pooler: whether head "none" has the pooler; the other heads determine it.
    pool: input of "sequence_classification" and "multiple_choice": "cls", the first token through the pooler, as
      published; or "mean", the mean of all tokens (Reimers & Gurevych 2019, 3), without a pooler: for weights whose
      first token was not trained, such as those of the head "masked_lm".
    norm_position: "post" as published, or "pre", with a norm after the last block; see `zoo.layers.block.Block`.
    position_embedding: "learned", added to the embeddings, as published; or "rotary", applied to queries and keys.
    dropout_rate: of embeddings, sublayer outputs and classifier inputs. attention_dropout_rate: of attention weights.
    activation: one of `zoo.layers.activations.ACTIVATIONS`. norm_eps: of the layer norms.
    init_std: standard deviation of initial matrices and embeddings (`zoo.layers.initializers.bert`).
    scan: compile one block for all. remat: what the backward pass recomputes (`zoo.layers.stack.run_blocks`).
    dtype: compute type, "float32" or "bfloat16"; parameters, norm statistics, softmax and logits stay float32.
    attention: one of `zoo.layers.attention.IMPLEMENTATIONS`.
  """

  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  vocab_size: int = 30522
  max_length: int = 512
  type_vocab_size: int = 2
  pad_token_id: int = 0
  mask_token_id: int = 103
  head: str = "pretraining"
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
  attention: str = "auto"

  def __post_init__(self):
    choices = dict(
      head=HEADS,
      pool=("cls", "mean"),
      norm_position=("post", "pre"),
      position_embedding=("learned", "rotary"),
      activation=tuple(ACTIVATIONS),
      dtype=("float32", "bfloat16"),
      attention=IMPLEMENTATIONS,
    )
    at_least = {
      1: ("width", "depth", "mlp_dim", "num_heads", "vocab_size", "max_length", "type_vocab_size"),
      0: ("pad_token_id", "mask_token_id", "num_classes"),
    }
    faults = field_faults(self, choices, at_least, ("dropout_rate", "attention_dropout_rate"))
    if self.init_std <= 0:
      faults.append(f"init_std is {self.init_std}; wanted more than 0")
    faults += special_token_faults(self, ("pad_token_id", "mask_token_id"))
    if self.head in CLASSIFIERS and not self.num_classes:
      faults.append(f"head={self.head!r} needs num_classes, at least 1")
    if self.head in HEADS and self.head not in CLASSIFIERS and self.num_classes:
      faults.append(f"num_classes is {self.num_classes}, but head={self.head!r} has none: wanted one of {CLASSIFIERS}")
    if faults:
      raise ValueError("\n".join(faults))
    check_heads(self.width, self.num_heads)


def inputs(config: Config, batch: int) -> tuple[jax.ShapeDtypeStruct, ...]:
  """Shapes of the arguments of `Model`: token ids."""
  return (jax.ShapeDtypeStruct((batch, min(config.max_length, 128)), jnp.int32),)


class Encoder(nn.Module):
  """Token ids [B, T] to tokens [B, T, D] (Devlin et al. 2019, 3 and figure 2)."""

  config: Config

  @nn.compact
  def __call__(
    self, input_ids_BT: jax.Array, token_type_ids_BT: jax.Array | None, sequence_info: SequenceInfo
  ) -> tuple[jax.Array, jax.Array, dict]:
    """Returns the tokens, the word embedding table [V, D], and aux."""
    c, dtype = self.config, jnp.dtype(self.config.dtype)
    length = input_ids_BT.shape[1]
    if length > c.max_length:
      raise ValueError(f"a row has {length} tokens; the model's max_length is {c.max_length}")
    segment_ids_BT = sequence_info.segments(input_ids_BT, c.pad_token_id)
    position_ids_BT = sequence_info.positions(input_ids_BT)
    token_type_ids_BT = jnp.zeros((1, 1), jnp.int32) if token_type_ids_BT is None else token_type_ids_BT

    def table(name: str, size: int) -> nn.Embed:
      return nn.Embed(size, c.width, embedding_init=initializers.bert(c.init_std), name=name)

    words = table("embed", c.vocab_size)
    x_BTD = words(input_ids_BT) + table("token_type", c.type_vocab_size)(token_type_ids_BT)
    if c.position_embedding == "learned":
      x_BTD = x_BTD + table("position", c.max_length)(position_ids_BT)
    norm = functools.partial(LayerNorm, epsilon=c.norm_eps, dtype=dtype)
    x_BTD = norm(name="embed_norm")(x_BTD.astype(dtype))
    x_BTD = shard_batch(Dropout(c.dropout_rate, name="dropout")(x_BTD))
    block = functools.partial(
      Block,
      num_heads=c.num_heads,
      attention=c.attention,
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
    mask = attention_masks.same_segment(segment_ids_BT, segment_ids_BT) & (segment_ids_BT > 0)[:, None, None]
    context = BlockInputs(mask=mask, position=position_ids_BT, padding_mask=segment_ids_BT > 0)
    tokens_BTD, aux = run_blocks(block, x_BTD, context, drop_path_rates=np.zeros(c.depth), scan=c.scan, remat=c.remat)
    if c.norm_position == "pre":
      tokens_BTD = norm(name="norm")(tokens_BTD)
    return tokens_BTD, words.embedding, aux | {"embedded": x_BTD}


class MaskedLMHead(nn.Module):
  """Tokens [B, I, D] to logits [B, I, V] of the words, with the embedding table as output matrix (released code)."""

  config: Config

  @nn.compact
  def __call__(self, x_BID: jax.Array, table_VD: jax.Array) -> jax.Array:
    c, dtype = self.config, jnp.dtype(self.config.dtype)
    x_BID = nn.Dense(c.width, kernel_init=initializers.bert(c.init_std), dtype=dtype, name="transform")(x_BID)
    x_BID = LayerNorm(epsilon=c.norm_eps, dtype=dtype, name="norm")(ACTIVATIONS[c.activation](x_BID))
    return tied_logits(x_BID, table_VD) + self.param("bias", nn.initializers.zeros, (c.vocab_size,))


class Model(nn.Module):
  """Token ids [B, T] to the output of `Config.head`."""

  config: Config

  @nn.compact
  def __call__(
    self,
    input_ids_BT: jax.Array,
    token_type_ids_BT: jax.Array | None = None,
    sequence_info: SequenceInfo = SINGLE_SEQUENCE,
    masked_positions_BI: jax.Array | None = None,
    cls_positions_BZ: jax.Array | None = None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Encodes rows of tokens; rng `dropout` enables dropout.

    Args:
      input_ids_BT: token ids; each sequence begins with [CLS], the token that is pooled.
      token_type_ids_BT: 0 in the first segment of a sequence, 1 in the second; None: all 0.
      sequence_info: segment and position ids, if several sequences share a row or padding is not `pad_token_id`.
      masked_positions_BI: positions whose words are predicted; None: all, at T / I times the cost.
      cls_positions_BZ: position of [CLS] of each sequence of a row; None: one sequence, which starts at 0.

    Returns:
      float32 output, and aux: "embedded", "block_00", ..., "tokens" [B, T, D], the attention weights
      "block_00/weights" [B, N, T, T], ..., and "pooled" [B, D] or [B, Z, D].
      "pretraining": logits [B, I, V], and in aux "next_sentence" [B, 2] or [B, Z, 2], logits of "B follows A" and
      of "B is another text". "masked_lm": logits [B, I, V]. "sequence_classification": [B, V] or [B, Z, V].
      "multiple_choice": [B, 1] or [B, Z, 1]. "token_classification": [B, T, V]. "question_answering": [B, T, 2],
      start and end. "none": [B, T, D].

    Raises:
      ValueError: a row is longer than `max_length`.
    """
    c = self.config
    expect(input_ids_BT=input_ids_BT, masked_positions_BI=masked_positions_BI, cls_positions_BZ=cls_positions_BZ)
    tokens_BTD, table_VD, aux = Encoder(c, name="encoder")(input_ids_BT, token_type_ids_BT, sequence_info)
    aux["tokens"] = tokens_BTD
    dense = functools.partial(nn.Dense, kernel_init=initializers.bert(c.init_std))
    sequence_heads = ("sequence_classification", "multiple_choice")
    if c.head in sequence_heads and c.pool == "mean":
      if cls_positions_BZ is not None:
        raise ValueError("pool='mean' takes the mean of a whole row; sequences that share a row need pool='cls'")
      padding_mask_BT = sequence_info.segments(input_ids_BT, c.pad_token_id) > 0
      aux["pooled"] = shard_batch(mean_pool(tokens_BTD, padding_mask_BT))
    elif c.head in ("pretraining", *sequence_heads) or (c.head == "none" and c.pooler):
      cls_BZD = tokens_BTD[:, 0] if cls_positions_BZ is None else take_tokens(tokens_BTD, cls_positions_BZ)
      pooler = nn.Dense(c.width, kernel_init=initializers.bert(c.init_std), dtype=jnp.dtype(c.dtype), name="pooler")
      aux["pooled"] = shard_batch(jnp.tanh(pooler(cls_BZD)).astype(jnp.float32))
    if c.head == "pretraining":
      aux["next_sentence"] = shard_batch(dense(2, name="next_sentence")(aux["pooled"]))
    if c.head in ("pretraining", "masked_lm"):
      masked_BID = tokens_BTD if masked_positions_BI is None else take_tokens(tokens_BTD, masked_positions_BI)
      return shard_batch(MaskedLMHead(c, name="masked_lm")(masked_BID, table_VD)), aux
    if c.head == "none":
      return tokens_BTD.astype(jnp.float32), aux
    x = aux["pooled"] if c.head in sequence_heads else tokens_BTD.astype(jnp.float32)
    if c.head != "question_answering":  # which has no dropout, as published
      x = Dropout(c.dropout_rate, name="dropout")(x)
    outputs = {"multiple_choice": 1, "question_answering": 2}.get(c.head, c.num_classes)
    return shard_batch(dense(outputs, name="head")(x)), aux


def mean_pool(tokens_BTD: jax.Array, padding_mask_BT: jax.Array) -> jax.Array:
  """The float32 mean [B, D] of the tokens whose `padding_mask_BT` is True; 0 where none is."""
  mask_BT1 = padding_mask_BT[..., None].astype(jnp.float32)
  return (tokens_BTD * mask_BT1).sum(1) / jnp.maximum(mask_BT1.sum(1), 1)


def sentence_embedding(tokens_BTD: jax.Array, padding_mask_BT: jax.Array) -> jax.Array:
  """Unit-length mean of the tokens [B, D], to be compared by dot products (Reimers & Gurevych 2019, 3).

  Args:
    tokens_BTD: the output of the head "none".
    padding_mask_BT: bool, False for padding.
  """
  expect(tokens_BTD=tokens_BTD, padding_mask_BT=padding_mask_BT)
  mean_BD = mean_pool(tokens_BTD, padding_mask_BT)
  return mean_BD / jnp.maximum(jnp.linalg.norm(mean_BD, axis=1, keepdims=True), 1e-12)


# Logical axes of the parameters, those without weight decay, and their layers (`zoo.partitioning`).
LOGICAL_AXES = {
  "encoder/embed/embedding": ("vocab", "embed"),
  "encoder/position/embedding": ("length", "embed"),
  "encoder/token_type/embedding": ("types", "embed"),
  **under("encoder/(embed_norm|norm)", NORM_AXES),
  **under(f"encoder/{BLOCK}", BLOCK_AXES),
  "(pooler|masked_lm/transform)/kernel": ("embed", "transformed"),
  "(pooler|masked_lm/transform)/bias": ("transformed",),
  **under("masked_lm/norm", NORM_AXES),
  "masked_lm/bias": ("vocab",),
  "(head|next_sentence)/kernel": ("features", "classes"),
  "(head|next_sentence)/bias": ("classes",),
}
NO_DECAY = BIASES_AND_SCALES


def layer_of(config: Config, path: str) -> int:
  """0 for embeddings, i + 1 for block i, L + 1 for all else."""
  return layer_of_encoder(path, config.depth, ("embed", "position", "token_type", "embed_norm"))
