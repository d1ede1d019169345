"""Names of the parameters of published weights of `zoo.models.mae`."""

from zoo.models import mae
from zoo.weights import torch_layouts as torch
from zoo.weights.rules import Rule, Transform
from zoo.weights.tables import vit

# A Hugging Face `config.json` (ViTMAEConfig): see `vit.HUGGINGFACE`.
HUGGINGFACE = dict(
  model_types={"vit_mae": {}},
  fields=vit.HUGGINGFACE["fields"]
  | dict(
    decoder_width="decoder_hidden_size",
    decoder_depth="decoder_num_hidden_layers",
    decoder_mlp_dim="decoder_intermediate_size",
    decoder_num_heads="decoder_num_attention_heads",
  ),
  equal={},
  tops={},
)


def tables(config: mae.Config) -> dict[str, tuple[Rule, ...]]:
  """The names of our parameters in published weights, by layout.

  "huggingface": ViTMAEForPreTraining. "timm": the names of MAE's release, whose encoder is timm's.
  """
  decoder_positions = torch.sincos_positions(config.grid, config.decoder_width, config.class_token)
  return {
    "huggingface": (
      *vit.encoder_huggingface(config, r"vit\."),
      *_decoder(r"decoder\.", decoder_positions),
      # The second name is what transformers 5 writes, turning "layers" back one time too many.
      *vit.block_huggingface(r"decoder\.(?:decoder_layers|decoder_encoder\.layer)\.(\d+)", "decoder/block_{:02d}"),
    ),
    "timm": (
      *vit.encoder_timm(config),
      *_decoder("", decoder_positions),
      *vit.block_timm(r"decoder_blocks\.(\d+)", "decoder/block_{:02d}"),
    ),
  }


def _decoder(prefix: str, position_embedding: Transform) -> tuple[Rule, ...]:
  """All but the blocks, which both layouts call the same."""
  return (
    *torch.dense(rf"{prefix}decoder_embed", "decoder/embed"),
    Rule(rf"{prefix}mask_token", "decoder/mask", torch.TOKEN),
    Rule(rf"{prefix}decoder_pos_embed", (), position_embedding),
    *torch.norm(rf"{prefix}decoder_norm", "decoder/norm"),
    *torch.dense(rf"{prefix}decoder_pred", "decoder/pixels"),
  )
