"""Transformer (Vaswani et al. 2017, "Attention Is All You Need"): an encoder and an autoregressive decoder.

The encoder reads the source; the decoder attends to its output and to the target tokens before each position, and
predicts the next token.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zoo.errors import field_faults
from zoo.layers import attention_masks, norms
from zoo.layers.activations import ACTIVATIONS
from zoo.layers.attention import IMPLEMENTATIONS, check_heads
from zoo.layers.block import BLOCK_AXES, Block, BlockInputs
from zoo.layers.multi_head_attention import Cache
from zoo.layers.norms import NORM_AXES
from zoo.layers.position_embeddings import BUCKET_BIAS_AXES, BucketedRelativePositionBias, alibi_bias, sincos_1d
from zoo.layers.sequence_info import SINGLE_SEQUENCE, SequenceInfo
from zoo.layers.stack import run_blocks
from zoo.models import encoder_decoder
from zoo.models.encoder_decoder import EncoderDecoder, special_token_faults
from zoo.partitioning import BIASES_AND_SCALES, BLOCK, layer_of_encoder, shard_batch, under
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
    num_kv_heads: K, see `zoo.layers.multi_head_attention.Attention`; 0 for N.
    vocab_size: V. max_length: maximum length of source and target, in tokens.
    pad_token_id, bos_token_id, eos_token_id: ids of padding, and of the tokens that begin a target and end a sequence.
    norm_position: "post" or "pre", see `zoo.layers.block.Block`. final_norm: a norm after the last block, needed by
      "pre".
    cross_attention: the keys and values of decoder block i: "last", the encoder's output (Vaswani); "layer", the output
      of encoder block i; "mix", a learned mean of all blocks' outputs, one for each i (Bapna et al. 2018, 3.1).
    position_embedding: added to the embeddings, "sincos" (3.5) or "learned"; of self-attention, "rotary", "alibi" or
      "t5" (`zoo.layers.position_embeddings`); or "none".
    norm: kind of all norms, see `zoo.layers.norms`.
    tie_embeddings: "all" shares one matrix between source, target and output (3.4), "target" between target and output;
      "none" has three.
    scale_embedding: multiply embeddings by sqrt(D) (3.4). embed_norm: norm of embeddings with positions, as in BART.
    head: "vocab", a distribution over the vocabulary, or "copy", mixed with copies of source tokens
      (`zoo.layers.pointer`). head_bias: whether the logits have a bias.
    copy_slots: see `zoo.layers.pointer.PointerGenerator`.
    dropout_rate: of embeddings, MLPs and block outputs. attention_dropout_rate: of attention weights.
    activation: one of `zoo.layers.activations.ACTIVATIONS`. norm_eps: of the layer norms.
    scan: compile one block for all. remat: what the backward pass recomputes (`zoo.layers.stack.run_blocks`).
    dtype: compute type, "float32" or "bfloat16"; parameters, norm statistics, softmax and logits stay float32.
    attention: one of `zoo.layers.attention.IMPLEMENTATIONS`.
  """

  width: int = 512
  depth: int = 6
  decoder_depth: int = 6
  mlp_dim: int = 2048
  num_heads: int = 8
  num_kv_heads: int = 0
  vocab_size: int = 37000
  max_length: int = 512
  pad_token_id: int = 0
  bos_token_id: int = 2
  eos_token_id: int = 3
  norm_position: str = "post"
  final_norm: bool = False
  cross_attention: str = "last"
  position_embedding: str = "sincos"
  norm: str = "layer"
  tie_embeddings: str = "all"
  scale_embedding: bool = True
  embed_norm: bool = False
  head: str = "vocab"
  head_bias: bool = False
  copy_slots: int = 0
  dropout_rate: float = 0.1
  attention_dropout_rate: float = 0.0
  activation: str = "relu"
  norm_eps: float = 1e-5
  scan: bool = False
  remat: str = "none"
  dtype: str = "float32"
  attention: str = "auto"

  def __post_init__(self):
    choices = dict(
      norm_position=("post", "pre"),
      cross_attention=("last", "layer", "mix"),
      position_embedding=("sincos", "learned", "rotary", "alibi", "t5", "none"),
      norm=tuple(norms.KINDS),
      head=("vocab", "copy"),
      tie_embeddings=("all", "target", "none"),
      activation=tuple(ACTIVATIONS),
      dtype=("float32", "bfloat16"),
      attention=IMPLEMENTATIONS,
    )
    at_least = {
      1: ("width", "depth", "decoder_depth", "mlp_dim", "num_heads", "vocab_size", "max_length"),
      0: ("num_kv_heads", "pad_token_id", "bos_token_id", "eos_token_id", "copy_slots"),
    }
    faults = field_faults(self, choices, at_least, ("dropout_rate", "attention_dropout_rate"))
    if self.cross_attention == "layer" and self.depth != self.decoder_depth:
      faults.append(
        f"cross_attention='layer' pairs the blocks, but depth is {self.depth} and decoder_depth {self.decoder_depth}"
      )
    if self.norm_position == "pre" and not self.final_norm:
      faults.append("norm_position='pre' needs final_norm=True: nothing else normalises the last block's output")
    if self.norm in ("batch", "power") and self.cross_attention != "last" and self.final_norm:
      faults.append(
        f"norm={self.norm!r} keeps statistics of one layer; cross_attention={self.cross_attention!r} would normalise "
        "several"
      )
    faults += special_token_faults(self)
    if self.copy_slots and self.head != "copy":
      faults.append(f"copy_slots is {self.copy_slots}, but head is {self.head!r}; wanted 'copy'")
    if faults:
      raise ValueError("\n".join(faults))
    check_heads(self.width, self.num_heads)

  @property
  def embed_dim(self) -> int:
    """Width of embeddings."""
    return self.width


def inputs(config: Config, batch: int) -> tuple[jax.ShapeDtypeStruct, ...]:
  """Shapes of the arguments of `Model`: source and target tokens."""
  tokens = jax.ShapeDtypeStruct((batch, min(config.max_length, 64)), jnp.int32)
  return tokens, tokens


class EncoderOutput(NamedTuple):
  """Inputs of the decoder: source tokens and segment ids, and the memory [B, S, D], or a list, one a decoder block."""

  source_BS: jax.Array
  segment_ids_BS: jax.Array
  memory: Any


class Stack(nn.Module):
  """Blocks [B, T, D] to [B, T, D], and a last norm."""

  config: Config
  depth: int
  cross: bool = False

  @nn.compact
  def __call__(
    self, x_BTD: jax.Array, shared_inputs: BlockInputs, block_inputs: list[BlockInputs] | None = None
  ) -> tuple[jax.Array, list[jax.Array], dict[str, jax.Array]]:
    """Returns the output, the outputs of all blocks unless `cross_attention` is "last", and aux."""
    c = self.config
    block = functools.partial(
      Block,
      num_heads=c.num_heads,
      attention=c.attention,
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
    x_BTD, aux = run_blocks(
      block,
      x_BTD,
      shared_inputs,
      drop_path_rates=np.zeros(self.depth),
      block_inputs=block_inputs,
      scan=c.scan,
      remat=c.remat,
    )
    outputs = [aux[f"block_{i:02d}"] for i in range(self.depth)] if c.cross_attention != "last" else []
    if c.final_norm:
      norm = norms.norm(c.norm, c.norm_eps, jnp.dtype(c.dtype), "norm")
      x_BTD, outputs = norm(x_BTD, shared_inputs.padding_mask), [norm(y) for y in outputs]
    return x_BTD, outputs, aux


class Model(EncoderDecoder):
  """Source tokens [B, S] and target tokens [B, T] to the logits [B, T, V] of the next target tokens.

  Aux: "embedded", the encoder's "block_00", ..., "block_00/weights", "tokens" [B, S, D], and the same of the decoder as
  "decoder/block_00", with "decoder/block_00/cross_weights" [B, N, T, S]; "decoder/alignment" [B, T, S] is the mean of
  the last of these over heads.
  """

  config: Config
  causal = True  # whether a target token attends only to those before it

  def setup(self):
    super().setup()
    c = self.config
    if c.position_embedding == "learned":
      table = functools.partial(nn.Embed, c.max_length, c.width, embedding_init=nn.initializers.normal(0.02))
      self.source_position, self.target_position = table(name="source_position"), table(name="target_position")
    if c.position_embedding == "t5":
      self.source_bias = BucketedRelativePositionBias(c.num_heads, name="source_bias")
      self.target_bias = BucketedRelativePositionBias(c.num_heads, bidirectional=not self.causal, name="target_bias")
    if c.embed_norm:
      kind = functools.partial(norms.norm, c.norm, c.norm_eps, jnp.dtype(c.dtype))
      self.source_norm, self.target_norm = kind("source_norm"), kind("target_norm")
    if c.cross_attention == "mix":
      # 0 is the mean of all layers.
      self.mix = self.param("mix", nn.initializers.zeros, (c.decoder_depth, c.depth))
    self.encoder = Stack(c, c.depth, name="encoder")
    self.decoder = Stack(c, c.decoder_depth, cross=True, name="decoder")

  def encode(
    self, source_BS: jax.Array, info: SequenceInfo = SINGLE_SEQUENCE
  ) -> tuple[EncoderOutput, dict[str, jax.Array]]:
    """The encoder's output and aux. Raises ValueError for a row longer than `max_length`."""
    c = self.config
    expect(source_BS=source_BS)
    segment_ids_BS, position_ids_BS = info.segments(source_BS, c.pad_token_id), info.positions(source_BS)
    x_BSD = self._embed(source_BS, position_ids_BS, "source", segment_ids_BS > 0)
    mask = attention_masks.same_segment(segment_ids_BS, segment_ids_BS) & (segment_ids_BS > 0)[:, None, None]
    bias = self._bias(position_ids_BS, position_ids_BS, "source")
    context = BlockInputs(mask=mask, bias=bias, position=position_ids_BS, padding_mask=segment_ids_BS > 0)
    memory, outputs, aux = self.encoder(x_BSD, context)
    aux |= {"embedded": x_BSD, "tokens": memory}
    if c.cross_attention == "layer":
      memory = outputs
    if c.cross_attention == "mix":
      share = jax.nn.softmax(self.mix)
      memory = [sum(share[i, j].astype(y.dtype) * y for j, y in enumerate(outputs)) for i in range(c.decoder_depth)]
    return EncoderOutput(source_BS, segment_ids_BS, memory), aux

  def decode(
    self, target_BT: jax.Array, encoded: EncoderOutput, info: SequenceInfo = SINGLE_SEQUENCE
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Logits [B, T, V] and the decoder's aux. Raises ValueError for a row longer than `max_length`."""
    length = expect(target_BT=target_BT)["T"]
    segment_ids_BT, position_ids_BT = info.segments(target_BT, None), info.positions(target_BT)
    x_BTD = self._embed(target_BT, position_ids_BT, "target", segment_ids_BT > 0)
    mask = attention_masks.same_segment(segment_ids_BT, segment_ids_BT) & (segment_ids_BT > 0)[:, None, None]
    if self.causal:
      mask &= attention_masks.causal(length, length)
    shared_inputs = BlockInputs(
      mask=mask,
      bias=self._bias(position_ids_BT, position_ids_BT, "target"),
      memory_mask=attention_masks.same_segment(segment_ids_BT, encoded.segment_ids_BS),
      position=position_ids_BT,
      padding_mask=segment_ids_BT > 0,
    )
    block_inputs = None
    if isinstance(encoded.memory, list):
      block_inputs = [BlockInputs(memory=memory) for memory in encoded.memory]
    else:
      shared_inputs = shared_inputs._replace(memory=encoded.memory)
    x_BTD, _, aux = self.decoder(x_BTD, shared_inputs, block_inputs)
    aux["alignment"] = aux[f"block_{self.config.decoder_depth - 1:02d}/cross_weights"].mean(1)
    return self.logits(x_BTD, encoded.source_BS, aux["alignment"]), aux

  def init_cache(self, source_BS: jax.Array, max_length: int) -> tuple[dict, list[Cache]]:
    """Memory and empty cache for `decode_step` (`zoo.decoding`); the first axis of all their arrays is B.

    Args:
      source_BS: token ids, padded with `pad_token_id`.
      max_length: maximum number of decoded tokens.

    Returns:
      every block's keys and values of the source, with source and segment ids; and the cache of the target.
    """
    c = self.config
    encoded, _ = self.encode(source_BS)
    first_B1 = jnp.full((len(source_BS), 1), c.bos_token_id, jnp.int32)
    _, aux = self.decode(first_B1, encoded)
    own, memory = zip(*(aux[f"block_{i:02d}/cache"] for i in range(c.decoder_depth)), strict=True)
    # Positions that are not written yet are masked.
    cache = jax.tree.map(lambda a: jnp.zeros((*a.shape[:2], max_length, a.shape[3]), a.dtype), list(own))
    return dict(blocks=list(memory), source=source_BS, segment_ids=encoded.segment_ids_BS), cache

  def decode_step(
    self, memory: dict, cache: list[Cache], token_B: jax.Array, index: jax.Array
  ) -> tuple[jax.Array, list[Cache]]:
    """One token of each target.

    Args:
      memory, cache: from `init_cache`; the cache afterwards from the previous step.
      token_B: the tokens at position `index`; `bos_token_id` at 0.
      index: int32 scalar.

    Returns:
      logits [B, V] of the tokens at `index` + 1, and the cache with this token.
    """
    length, position_11 = cache[0].k_BKSH.shape[2], jnp.full((1, 1), index)
    x_B1D = self._embed(token_B[:, None], position_11, "target")
    shared_inputs = BlockInputs(
      mask=attention_masks.causal(1, length, index),
      bias=self._bias(position_11, jnp.arange(length)[None], "target"),
      memory_mask=(memory["segment_ids"] > 0)[:, None, None],
      index=index,
      position=position_11,
    )
    block_inputs = [BlockInputs(cache=caches) for caches in zip(cache, memory["blocks"], strict=True)]
    x_B1D, _, aux = self.decoder(x_B1D, shared_inputs, block_inputs)
    new: Any = [aux[f"block_{i:02d}/cache"][0] for i in range(len(cache))]
    weights_BNTS = aux[f"block_{len(cache) - 1:02d}/cross_weights"]
    return self.logits(x_B1D, memory["source"], weights_BNTS.mean(1))[:, 0], new

  def scheduled_sampling_inputs(
    self,
    source_BS: jax.Array,
    inputs_BT: jax.Array,
    sampled_BT: jax.Array,
    source_info: SequenceInfo = SINGLE_SEQUENCE,
    target_info: SequenceInfo = SINGLE_SEQUENCE,
  ) -> jax.Array:
    """Decoder inputs [B, T] of scheduled sampling (Bengio et al. 2015), all positions at once.

    Sampled tokens are predicted from the true ones before them (Mihaylova & Martins 2019, 3).

    Args:
      source_BS, inputs_BT, source_info, target_info: as in `__call__`.
      sampled_BT: bool, True where the token is replaced by the most probable one; never where a sequence begins.
    """
    expect(inputs_BT=inputs_BT, sampled_BT=sampled_BT)
    logits_BTV, _ = self(source_BS, inputs_BT, source_info, target_info)
    return jnp.where(sampled_BT, jnp.roll(logits_BTV.argmax(-1), 1, 1), inputs_BT)

  def _bias(self, query_BT: jax.Array, key_BS: jax.Array, side: str) -> jax.Array | None:
    """The position bias of self-attention scores, if any."""
    c = self.config
    if c.position_embedding == "alibi":
      return alibi_bias(c.num_heads, query_BT, key_BS)
    return getattr(self, f"{side}_bias")(query_BT, key_BS) if c.position_embedding == "t5" else None

  def _embed(
    self, input_ids_BT: jax.Array, position_ids_BT: jax.Array, side: str, padding_mask_BT: jax.Array | None = None
  ) -> jax.Array:
    c = self.config
    if (length := input_ids_BT.shape[1]) > c.max_length:
      raise ValueError(f"a {side} row has {length} tokens; the model's max_length is {c.max_length}")
    x_BTD = self.embed(input_ids_BT, side)
    if c.scale_embedding:
      x_BTD = x_BTD * c.width**0.5
    if c.position_embedding == "sincos":
      x_BTD = x_BTD + jnp.asarray(sincos_1d(np.arange(c.max_length), c.width))[position_ids_BT]
    elif c.position_embedding == "learned":
      x_BTD = x_BTD + getattr(self, f"{side}_position")(position_ids_BT)
    x_BTD = x_BTD.astype(c.dtype)
    if c.embed_norm:
      x_BTD = getattr(self, f"{side}_norm")(x_BTD, padding_mask_BT)
    return shard_batch(self.dropout(x_BTD))


# Logical axes of the parameters, those without weight decay, and their layers (`zoo.partitioning`).
LOGICAL_AXES = encoder_decoder.LOGICAL_AXES | {
  "(source|target)_position/embedding": ("length", "embed"),
  **under("(source|target)_bias", BUCKET_BIAS_AXES),
  **under("(source|target)_norm", NORM_AXES),
  "mix": ("decoder_layers", "encoder_layers"),
  **under(f"(encoder|decoder)/{BLOCK}", BLOCK_AXES),
  **under("(encoder|decoder)/norm", NORM_AXES),
}
NO_DECAY = (*BIASES_AND_SCALES, r"(^|/)buckets$")


def layer_of(config: Config, path: str) -> int:
  """I + 1 for the encoder's block i, L + 1 for all else."""
  return layer_of_encoder(path, config.depth, ())
