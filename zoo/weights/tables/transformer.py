"""Names of the parameters of published weights of `zoo.models.transformer`."""

import numpy as np

from zoo.layers.position_embeddings import sincos_1d
from zoo.models import transformer
from zoo.weights import torch_layouts as torch
from zoo.weights.rules import Rule

# A Hugging Face `config.json`: see `vit.HUGGINGFACE`.
HUGGINGFACE = dict(
  model_types={
    "marian": dict(head_bias=True),
    "bart": dict(head_bias=True, position_embedding="learned", embed_norm=True),
    "mbart": dict(head_bias=True, position_embedding="learned", embed_norm=True, norm_position="pre", final_norm=True),
  },
  fields=dict(
    width="d_model",
    depth="encoder_layers",
    decoder_depth="decoder_layers",
    mlp_dim="encoder_ffn_dim",
    num_heads="encoder_attention_heads",
    vocab_size="vocab_size",
    max_length="max_position_embeddings",
    pad_token_id="pad_token_id",
    bos_token_id="decoder_start_token_id",
    eos_token_id="eos_token_id",
    activation="activation_function",
    scale_embedding="scale_embedding",
  ),
  equal={"encoder_attention_heads": "decoder_attention_heads", "encoder_ffn_dim": "decoder_ffn_dim"},
  tops={},
)


def tables(config: transformer.Config) -> dict[str, tuple[Rule, ...]]:
  """The names of our parameters in published weights, by layout.

  "huggingface": MarianMTModel; with learned positions BartForConditionalGeneration and MBartForConditionalGeneration.
  "torch": torch.nn.Transformer, called `transformer`, beside it `embed` (or `source_embed` and `target_embed`), and
  `head`.
  """
  return {"huggingface": _huggingface(config), "torch": _torch(config)}


def _huggingface(config: transformer.Config) -> tuple[Rule, ...]:
  def attention(key: str, path: str) -> tuple[Rule, ...]:
    projections = (rule for name in "qkv" for rule in torch.heads(rf"{key}\.{name}_proj", f"{path}/{name}"))
    return (*projections, *torch.heads_out(rf"{key}\.out_proj", f"{path}/out"))

  def stack(side: str, role: str) -> tuple[Rule, ...]:
    key, path = rf"model\.{side}\.layers\.(\d+)", side + "/block_{:02d}"
    if config.position_embedding == "learned":
      positions = Rule(rf"model\.{side}\.embed_positions\.weight", f"{role}_position/embedding", torch.FROM_THIRD)
    else:
      table = torch.fixed_table(lambda: sincos_1d(np.arange(config.max_length), config.width), "learned")
      positions = Rule(rf"model\.{side}\.embed_positions\.weight", (), table)
    return (
      positions,
      *torch.norm(rf"model\.{side}\.layernorm_embedding", f"{role}_norm"),
      *attention(rf"{key}\.self_attn", f"{path}/attn"),
      *torch.norm(rf"{key}\.self_attn_layer_norm", f"{path}/norm1"),
      *attention(rf"{key}\.encoder_attn", f"{path}/cross"),
      *torch.norm(rf"{key}\.encoder_attn_layer_norm", f"{path}/cross_norm"),
      *torch.dense(rf"{key}\.fc1", f"{path}/mlp/up"),
      *torch.dense(rf"{key}\.fc2", f"{path}/mlp/down"),
      *torch.norm(rf"{key}\.final_layer_norm", f"{path}/norm2"),
      *torch.norm(rf"model\.{side}\.layer_norm", f"{side}/norm"),
    )

  # Older files repeat a shared matrix under each of its names; their library, too, reads the first and ties the rest.
  source, target = (rf"model\.{side}\.embed_tokens\.weight" for side in ("encoder", "decoder"))
  head = r"lm_head\.weight"
  where = {
    "all": {r"model\.shared\.weight": "embed/embedding"},
    "target": {source: "source_embed/embedding", target: "target_embed/embedding"},
    "none": {source: "source_embed/embedding", target: "target_embed/embedding", head: "head/kernel"},
  }[config.tie_embeddings]
  return (
    *(Rule(key, path, torch.TRANSPOSED if key == head else torch.AS_IS) for key, path in where.items()),
    *(Rule(key, (), torch.IGNORED) for key in (source, target, head) if key not in where),
    *stack("encoder", "source"),
    *stack("decoder", "target"),
    Rule("final_logits_bias", "head/bias" if config.tie_embeddings == "none" else "head_bias", torch.ROW),
  )


def _torch(config: transformer.Config) -> tuple[Rule, ...]:
  def attention(key: str, path: str) -> tuple[Rule, ...]:
    packed = torch.heads_packed(key, *(f"{path}/{name}" for name in "qkv"))
    return (*packed, *torch.heads_out(rf"{key}\.out_proj", f"{path}/out"))

  def stack(side: str, norms: tuple[str, ...]) -> tuple[Rule, ...]:
    key, path = rf"transformer\.{side}\.layers\.(\d+)", side + "/block_{:02d}"
    return (
      *attention(rf"{key}\.self_attn", f"{path}/attn"),
      *attention(rf"{key}\.multihead_attn", f"{path}/cross"),
      *torch.dense(rf"{key}\.linear1", f"{path}/mlp/up"),
      *torch.dense(rf"{key}\.linear2", f"{path}/mlp/down"),
      *(rule for i, name in enumerate(norms, 1) for rule in torch.norm(rf"{key}\.norm{i}", f"{path}/{name}")),
      *torch.norm(rf"transformer\.{side}\.norm", f"{side}/norm"),
    )

  return (
    *(Rule(rf"{name}\.weight", f"{name}/embedding", torch.AS_IS) for name in ("embed", "source_embed", "target_embed")),
    *stack("encoder", ("norm1", "norm2")),
    *stack("decoder", ("norm1", "cross_norm", "norm2")),
    *torch.dense("head", "head"),
  )
