"""Names of the parameters of published weights of `zoo.models.vit`."""

from zoo.models import vit
from zoo.weights import torch_layouts as torch
from zoo.weights.rules import Rule, Transform

# A Hugging Face `config.json` (ViTConfig): fields of ours that are fixed by its `model_type`, those that it specifies,
# keys of theirs that must be equal, and fields that are the size of a tensor.
HUGGINGFACE = dict(
  model_types={"vit": {}},
  fields=dict(
    patch_size="patch_size",
    width="hidden_size",
    depth="num_hidden_layers",
    mlp_dim="intermediate_size",
    num_heads="num_attention_heads",
    image_size="image_size",
    num_channels="num_channels",
    activation="hidden_act",
    norm_eps="layer_norm_eps",
  ),
  equal={},
  tops=dict(num_classes="classifier.bias", representation_size="pooler.dense.bias"),
)


def tables(config: vit.Config) -> dict[str, tuple[Rule, ...]]:
  """The names of our parameters in published weights, by layout.

  "huggingface": ViTModel (write a model without classes) and ViTForImageClassification.
  "timm": its VisionTransformer, which MAE's released encoders and fine-tuned classifiers are too.
  "google": the .npz files of the paper and of AugReg (Steiner et al. 2022), and those of big_vision that are not
  stacked by a scan; for models of activation "gelu_tanh", as theirs are.
  """
  prefix = r"(?:vit\.|)" if config.num_classes else r"(?:|vit\.)"
  return {
    "huggingface": (
      *encoder_huggingface(config, prefix),
      *torch.dense(rf"{prefix}pooler\.dense", "representation"),
      *torch.dense("classifier", "head"),
    ),
    "timm": (
      *encoder_timm(config),
      Rule(r"attn_pool\.latent", "pool/probe", torch.TOKEN),
      *torch.heads(r"attn_pool\.q", "pool/attn/q"),
      *torch.heads(r"attn_pool\.kv", "pool/attn/k", "pool/attn/v"),
      *torch.heads_out(r"attn_pool\.proj", "pool/attn/out"),
      *torch.norm(r"attn_pool\.norm", "pool/norm"),
      *torch.dense(r"attn_pool\.mlp\.fc1", "pool/mlp/up"),
      *torch.dense(r"attn_pool\.mlp\.fc2", "pool/mlp/down"),
      *torch.norm("fc_norm", "head_norm"),
      *torch.dense(r"pre_logits\.fc", "representation"),
      *torch.dense("head", "head"),
    ),
    "google": (
      *encoder_google(config),
      *_pool_google(rf"{GOOGLE}MAPHead_0"),
      *_as_they_are(rf"{GOOGLE}pre_logits", "representation"),
      *_as_they_are(rf"{GOOGLE}head", "head"),
    ),
  }


def encoder_huggingface(config: vit.Config, prefix: str) -> tuple[Rule, ...]:
  """The encoder's part of a Hugging Face table."""
  return (
    Rule(rf"{prefix}embeddings\.cls_token", "encoder/cls", torch.TOKEN),
    *torch.patches(rf"{prefix}embeddings\.patch_embeddings\.projection", "encoder/patch", config.feature_patch_size),
    *_positions(rf"{prefix}embeddings\.position_embeddings", config),
    *block_huggingface(rf"{prefix}(?:encoder\.layer|layers)\.(\d+)", "encoder/block_{:02d}"),
    *torch.norm(rf"{prefix}layernorm", "encoder/norm"),
  )


def block_huggingface(key: str, path: str) -> tuple[Rule, ...]:
  """A block in a Hugging Face table: the names in files, or else those of transformers 5 in memory."""
  return (
    *torch.norm(rf"{key}\.layernorm_before", f"{path}/norm1"),
    *torch.heads(rf"{key}\.attention\.(?:attention\.query|q_proj)", f"{path}/attn/q"),
    *torch.heads(rf"{key}\.attention\.(?:attention\.key|k_proj)", f"{path}/attn/k"),
    *torch.heads(rf"{key}\.attention\.(?:attention\.value|v_proj)", f"{path}/attn/v"),
    *torch.heads_out(rf"{key}\.attention\.(?:output\.dense|o_proj)", f"{path}/attn/out"),
    *torch.norm(rf"{key}\.layernorm_after", f"{path}/norm2"),
    *torch.dense(rf"{key}\.(?:intermediate\.dense|mlp\.fc1)", f"{path}/mlp/up"),
    *torch.dense(rf"{key}\.(?:output\.dense|mlp\.fc2)", f"{path}/mlp/down"),
  )


def encoder_timm(config: vit.Config) -> tuple[Rule, ...]:
  """The encoder's part of a timm table."""
  return (
    Rule("cls_token", "encoder/cls", torch.TOKEN),
    *torch.patches(r"patch_embed\.proj", "encoder/patch", config.feature_patch_size),
    *_positions("pos_embed", config),
    *block_timm(r"blocks\.(\d+)", "encoder/block_{:02d}"),
    *torch.norm("norm", "encoder/norm"),
  )


def block_timm(key: str, path: str) -> tuple[Rule, ...]:
  """A block in a timm table."""
  return (
    *torch.norm(rf"{key}\.norm1", f"{path}/norm1"),
    *torch.heads(rf"{key}\.attn\.qkv", f"{path}/attn/q", f"{path}/attn/k", f"{path}/attn/v"),
    *torch.heads_out(rf"{key}\.attn\.proj", f"{path}/attn/out"),
    *torch.norm(rf"{key}\.norm2", f"{path}/norm2"),
    *torch.dense(rf"{key}\.mlp\.fc1", f"{path}/mlp/up"),
    *torch.dense(rf"{key}\.mlp\.fc2", f"{path}/mlp/down"),
  )


# Where a file of Google's keeps the parameters: at the top, or as big_vision and the optimiser's state have it.
GOOGLE = r"(?:|params/|opt/target/)"


def encoder_google(config: vit.Config) -> tuple[Rule, ...]:
  """The encoder's part of a table for Google's files: Flax's arrays, of our shapes, by other names."""
  embedding = Transform(
    lambda t, shape: t.reshape(shape),
    lambda a: a.reshape(config.feature_patch_size, config.feature_patch_size, -1, a.shape[-1]),
  )
  key, path = rf"{GOOGLE}Transformer/encoderblock_(\d+)", "encoder/block_{:02d}"
  return (
    Rule(rf"{GOOGLE}cls", "encoder/cls", torch.TOKEN),
    Rule(rf"{GOOGLE}embedding/kernel", "encoder/patch/kernel", embedding),
    Rule(rf"{GOOGLE}embedding/bias", "encoder/patch/bias", torch.AS_IS),
    *_positions(rf"{GOOGLE}(?:Transformer/posembed_input/pos_embedding|pos_embedding)", config),
    *_as_they_are(rf"{key}/LayerNorm_0", f"{path}/norm1", "scale"),
    *_attention_google(rf"{key}/(?:MultiHeadDotProductAttention_1|MultiHeadDotProductAttention_0)", f"{path}/attn"),
    *_as_they_are(rf"{key}/(?:LayerNorm_2|LayerNorm_1)", f"{path}/norm2", "scale"),
    *_as_they_are(rf"{key}/(?:MlpBlock_3|MlpBlock_0)/Dense_0", f"{path}/mlp/up"),
    *_as_they_are(rf"{key}/(?:MlpBlock_3|MlpBlock_0)/Dense_1", f"{path}/mlp/down"),
    *_as_they_are(rf"{GOOGLE}Transformer/encoder_norm", "encoder/norm", "scale"),
  )


def _pool_google(key: str) -> tuple[Rule, ...]:
  return (
    Rule(rf"{key}/probe", "pool/probe", torch.TOKEN),
    *_attention_google(rf"{key}/MultiHeadDotProductAttention_0", "pool/attn"),
    *_as_they_are(rf"{key}/LayerNorm_0", "pool/norm", "scale"),
    *_as_they_are(rf"{key}/MlpBlock_0/Dense_0", "pool/mlp/up"),
    *_as_they_are(rf"{key}/MlpBlock_0/Dense_1", "pool/mlp/down"),
  )


def _attention_google(key: str, path: str) -> tuple[Rule, ...]:
  names = dict(query="q", key="k", value="v", out="out")
  return tuple(rule for name, ours in names.items() for rule in _as_they_are(rf"{key}/{name}", f"{path}/{ours}"))


def _as_they_are(key: str, path: str, weight: str = "kernel") -> tuple[Rule, ...]:
  return tuple(Rule(rf"{key}/{name}", f"{path}/{name}", torch.AS_IS) for name in (weight, "bias"))


def _positions(key: str, config: vit.Config) -> tuple[Rule, ...]:
  """Published tables hold one vector a patch; the other kinds of positions have no place there."""
  if config.position_embedding == "learned_1d":
    paths = ("encoder/pos/table", "encoder/pos/cls")[: 1 + config.class_token]
    return (Rule(key, paths, torch.POSITIONS),)
  if config.position_embedding == "sincos_2d":
    return (Rule(key, (), torch.sincos_positions(config.grid, config.width, config.class_token)),)
  return ()
