"""Names of the parameters of published weights of `zoo.models.swin`."""

from zoo.models import swin
from zoo.weights import torch_layouts as torch
from zoo.weights.rules import Rule

# A Hugging Face `config.json`: see `vit.HUGGINGFACE`; its "architectures" specifies the head.
HUGGINGFACE = dict(
  model_types={"swin": dict(mask_padding=False, **swin.V1), "swinv2": dict(mask_padding=False, **swin.V2)},
  fields=dict(
    patch_size="patch_size",
    width="embed_dim",
    depths="depths",
    num_heads="num_heads",
    window_size="window_size",
    mlp_ratio="mlp_ratio",
    image_size="image_size",
    num_channels="num_channels",
    activation="hidden_act",
    norm_eps="layer_norm_eps",
    pretrained_window_sizes="pretrained_window_sizes",
  ),
  equal={},
  tops={},
  architectures={
    "SwinForImageClassification": dict(head="classification", num_classes="classifier.bias"),
    "Swinv2ForImageClassification": dict(head="classification", num_classes="classifier.bias"),
    "SwinModel": dict(head="none"),
    "Swinv2Model": dict(head="none"),
    "SwinBackbone": dict(head="features", clamp_window="never"),
  },
)


def tables(config: swin.Config) -> dict[str, tuple[Rule, ...]]:
  """The names of our parameters in published weights, by layout.

  "huggingface": SwinModel, SwinForImageClassification and SwinBackbone, and those of Swinv2.
  "timm": its SwinTransformer and SwinTransformerV2. "microsoft": the released .pth files, and timm's before 0.9.
  """
  return {
    "huggingface": _huggingface(config),
    "timm": _timm(config, first=0, head=r"head\.fc"),
    # There a stage ends with the merging that ours, and timm's, begin with.
    "microsoft": _timm(config, first=1, head="head"),
  }


def _blocks(config: swin.Config) -> list[tuple[int, int, str]]:
  """Stage, number within the stage, and our path, of every block."""
  return [
    (stage, i, f"encoder/stage_{stage}/block_{i // 2:02d}/{('regular', 'shifted')[i % 2]}")
    for stage, depth in enumerate(config.depths)
    for i in range(depth)
  ]


def _merging(config: swin.Config, key: str, stage: int) -> tuple[Rule, ...]:
  path = f"encoder/stage_{stage}"
  kernel = Rule(rf"{key}\.reduction\.weight", f"{path}/merge/kernel", torch.merged(kernel=True))
  if config.norm_position == "res_post":
    return kernel, *torch.norm(rf"{key}\.norm", f"{path}/norm")
  names = (("weight", "scale"), ("bias", "bias"))
  return kernel, *(Rule(rf"{key}\.norm\.{a}", f"{path}/merged_norm/{b}", torch.merged(kernel=False)) for a, b in names)


def _offsets(config: swin.Config, table: str, network: str, scale: str, path: str) -> tuple[Rule, ...]:
  """The scores by offset, and the scale of cosines."""
  rules = (Rule(table, f"{path}/relative_position_bias/table", torch.OFFSETS),)
  if config.relative_position_bias == "continuous":
    layers = (("0", "up"), ("2", "down"))
    rules = tuple(r for a, b in layers for r in torch.dense(rf"{network}\.{a}", f"{path}/relative_position_bias/{b}"))
  return (*rules, Rule(scale, f"{path}/attn/log_scale", torch.SCALE))


def _huggingface(config: swin.Config) -> tuple[Rule, ...]:
  name = "swinv2" if config.relative_position_bias == "continuous" else "swin"
  # The encoder alone has no name of its own in files.
  prefix = rf"(?:{name}\.|)" if config.head == "classification" else rf"(?:|{name}\.)"
  layers = rf"{prefix}encoder\.layers"
  rules = [
    *torch.patches(rf"{prefix}embeddings\.patch_embeddings\.projection", "encoder/stage_0/patch", config.patch_size),
    *torch.norm(rf"{prefix}embeddings\.norm", "encoder/stage_0/embed_norm"),
    Rule(rf"{prefix}embeddings\.mask_token", "encoder/stage_0/mask", torch.TOKEN),
    *torch.dense("classifier", "head"),
    *(
      Rule(rf"{layers}\.(\d+)\.blocks\.(\d+)\.attention\.self\.{buffer}", (), torch.IGNORED)
      for buffer in ("relative_position_index", "relative_coords_table")
    ),
  ]
  if config.head == "features":  # which keeps a last norm that it does not use
    rules += [Rule(rf"{prefix}layernorm\.{name}", (), torch.IGNORED) for name in ("weight", "bias")]
  else:
    rules += torch.norm(rf"{prefix}layernorm", "encoder/norm")
  for stage in range(len(config.depths)):
    rules += torch.norm(rf"hidden_states_norms\.stage{stage + 1}", f"encoder/stage_{stage}/head_norm")
    rules += _merging(config, rf"{layers}\.{stage - 1}\.downsample", stage) if stage else ()
  for stage, i, path in _blocks(config):
    key = rf"{layers}\.{stage}\.blocks\.{i}"
    attention = rf"{key}\.attention"
    for theirs, ours in (("query", "q"), ("key", "k"), ("value", "v")):
      # The names in files, or else those of transformers 5 in memory.
      rules += torch.heads(rf"{attention}\.(?:self\.{theirs}|{ours}_proj)", f"{path}/attn/{ours}")
    table = "relative_position_bias_table"
    rules += _offsets(
      config,
      rf"{attention}\.(?:self\.{table}|relative_position_bias\.{table})",
      rf"{attention}\.self\.continuous_position_bias_mlp",
      rf"{attention}\.self\.logit_scale",
      path,
    )
    rules += torch.heads_out(rf"{attention}\.(?:output\.dense|o_proj)", f"{path}/attn/out")
    rules += torch.norm(rf"{key}\.layernorm_before", f"{path}/norm1")
    rules += torch.norm(rf"{key}\.layernorm_after", f"{path}/norm2")
    rules += torch.dense(rf"{key}\.(?:intermediate\.dense|mlp\.fc1)", f"{path}/mlp/up")
    rules += torch.dense(rf"{key}\.(?:output\.dense|mlp\.fc2)", f"{path}/mlp/down")
  return tuple(rules)


def _timm(config: swin.Config, first: int, head: str) -> tuple[Rule, ...]:
  """`first` is the stage whose merging is in its layer 0."""
  buffers = ("attn_mask", r"attn\.relative_position_index", r"attn\.relative_coords_table")
  rules = [
    *torch.patches(r"patch_embed\.proj", "encoder/stage_0/patch", config.patch_size),
    *torch.norm(r"patch_embed\.norm", "encoder/stage_0/embed_norm"),
    Rule("mask_token", "encoder/stage_0/mask", torch.TOKEN),
    *torch.norm("norm", "encoder/norm"),
    *torch.dense(head, "head"),
    *(Rule(rf"layers\.(\d+)\.blocks\.(\d+)\.{buffer}", (), torch.IGNORED) for buffer in buffers),
  ]
  for stage in range(len(config.depths)):
    rules += torch.norm(f"norm{stage}", f"encoder/stage_{stage}/head_norm")  # Microsoft's code for detection
    rules += _merging(config, rf"layers\.{stage - first}\.downsample", stage) if stage else ()
  for stage, i, path in _blocks(config):
    key, each = rf"layers\.{stage}\.blocks\.{i}", [f"{path}/attn/{name}" for name in "qkv"]
    if config.attention_score == "cosine":
      kernels = tuple(f"{p}/kernel" for p in each)
      rules += [Rule(rf"{key}\.attn\.qkv\.weight", kernels, torch.fused(torch.HEADS))]
      rules += [Rule(rf"{key}\.attn\.{name}_bias", f"{path}/attn/{name}/bias", torch.HEADS_BIAS) for name in "qv"]
    else:
      rules += torch.heads(rf"{key}\.attn\.qkv", *each)
    table, network, scale = (
      rf"{key}\.attn\.{name}" for name in ("relative_position_bias_table", "cpb_mlp", "logit_scale")
    )
    rules += _offsets(config, table, network, scale, path)
    rules += torch.heads_out(rf"{key}\.attn\.proj", f"{path}/attn/out")
    rules += torch.norm(rf"{key}\.norm1", f"{path}/norm1")
    rules += torch.norm(rf"{key}\.norm2", f"{path}/norm2")
    rules += torch.dense(rf"{key}\.mlp\.fc1", f"{path}/mlp/up")
    rules += torch.dense(rf"{key}\.mlp\.fc2", f"{path}/mlp/down")
  return tuple(rules)
