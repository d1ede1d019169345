"""Names of the parameters of published weights of `zoo.models.convnext`."""

from zoo.models import convnext
from zoo.weights import torch_layouts as torch
from zoo.weights.rules import Rule

# A Hugging Face `config.json` (ConvNextConfig): see `vit.HUGGINGFACE`; and the heads that the classes stand for.
HUGGINGFACE = dict(
  model_types={"convnext": {}},
  fields=dict(
    widths="hidden_sizes",
    depths="depths",
    patch_size="patch_size",
    image_size="image_size",
    num_channels="num_channels",
    layer_scale_init_value="layer_scale_init_value",
    activation="hidden_act",
    head_norm_eps="layer_norm_eps",
  ),
  equal={},
  tops=dict(num_classes="classifier.bias"),
  architectures={
    "ConvNextModel": {},
    "ConvNextForImageClassification": {},
    "ConvNextBackbone": dict(head="features"),
  },
)


def tables(config: convnext.Config) -> dict[str, tuple[Rule, ...]]:
  """The names of our parameters in published weights, by layout.

  "huggingface": ConvNextModel (write a model without classes), ConvNextForImageClassification, and, for head
  "features", ConvNextBackbone with all its stages as `out_features`.
  "meta": the released .pth files; with head "features", the backbones of the released detectors and segmenters.
  "timm": its ConvNeXt.
  """
  classify = config.head == "classification" and config.num_classes
  prefix = r"(?:convnext\.|)" if classify else r"(?:|convnext\.)"
  return {
    "huggingface": (
      *_encoder(
        config,
        stem=(rf"{prefix}embeddings\.patch_embeddings", rf"{prefix}embeddings\.layernorm"),
        down=(
          rf"{prefix}encoder\.stages\.{{i}}\.downsampling_layer\.1",
          rf"{prefix}encoder\.stages\.{{i}}\.downsampling_layer\.0",
        ),
        block=rf"{prefix}encoder\.stages\.{{i}}\.layers\.(\d+)",
        parts=("dwconv", "layernorm", "pwconv1", "pwconv2", "layer_scale_parameter"),
        feature_norm=r"hidden_states_norms\.stage{next}",
      ),
      *torch.norm(rf"{prefix}layernorm", "norm"),
      *torch.dense("classifier", "head"),
    ),
    "meta": (
      *_encoder(
        config,
        stem=(r"downsample_layers\.0\.0", r"downsample_layers\.0\.1"),
        down=(r"downsample_layers\.{i}\.1", r"downsample_layers\.{i}\.0"),
        block=r"stages\.{i}\.(\d+)",
        parts=("dwconv", "norm", "pwconv1", "pwconv2", "gamma"),
        feature_norm=r"norm{i}",
      ),
      *torch.norm("norm", "norm"),
      *torch.dense("head", "head"),
    ),
    "timm": (
      *_encoder(
        config,
        stem=(r"stem\.0", r"stem\.1"),
        down=(r"stages\.{i}\.downsample\.1", r"stages\.{i}\.downsample\.0"),
        block=r"stages\.{i}\.blocks\.(\d+)",
        parts=("conv_dw", "norm", r"mlp\.fc1", r"mlp\.fc2", "gamma"),
      ),
      *torch.norm(r"head\.norm", "norm"),
      *torch.dense(r"head\.fc", "head"),
    ),
  }


def _encoder(
  config: convnext.Config,
  *,
  stem: tuple[str, str],
  down: tuple[str, str],
  block: str,
  parts: tuple[str, str, str, str, str],
  feature_norm: str = "",
) -> tuple[Rule, ...]:
  """The encoder's part of a table; in the names {i} is the number of a stage from 0, {next} that from 1.

  Args:
    config: of the model.
    stem: the first convolution and its norm. down: those between stages.
    block: what a block's parameters begin with. parts: convolution, norm, the two layers of the MLP, layer scale.
    feature_norm: of a stage's map; "" where there is no name for it.
  """
  conv, norm, up, out, scale = parts
  rules = [
    *torch.patches(stem[0], "encoder/stage_0/patch", config.patch_size),
    *torch.norm(stem[1], "encoder/stage_0/norm"),
  ]
  for i in range(len(config.widths)):
    path = f"encoder/stage_{i}"
    if i:
      rules += torch.patches(down[0].format(i=i), f"{path}/patch", 2)
      rules += torch.norm(down[1].format(i=i), f"{path}/input_norm")
    theirs, ours = block.format(i=i), f"{path}/block_{{:02d}}"
    rules += [
      *torch.kernel(rf"{theirs}\.{conv}", f"{ours}/conv"),
      *torch.norm(rf"{theirs}\.{norm}", f"{ours}/norm"),
      *torch.dense(rf"{theirs}\.{up}", f"{ours}/mlp/up"),
      *torch.dense(rf"{theirs}\.{out}", f"{ours}/mlp/down"),
      Rule(rf"{theirs}\.{scale}", f"{ours}/layer_scale", torch.AS_IS),
    ]
    if feature_norm:
      rules += torch.norm(feature_norm.format(i=i, next=i + 1), f"{path}/feature_norm")
  return tuple(rules)
