"""Plots of runs, data and models as matplotlib figures; `path` also writes a PNG."""

from train.plots.attention import (
  attention_maps,
  attention_received,
  attention_rollout,
  attention_weights,
  query_map,
  rollout,
)
from train.plots.curves import loss_curve, smooth
from train.plots.images import mask_colors, reconstruct, reconstructions, segmentations
from train.plots.positions import position_similarity, position_table, similarity
from train.plots.regression import attention_heat_map, kernel_widths, regression_curve
from train.plots.style import COLORS, FAINT, MASKED, SOFT, STYLE
from train.plots.text import alignment, attention_heads, beam_tree, masked_tokens, token_inputs

__all__ = [
  "COLORS",
  "FAINT",
  "MASKED",
  "SOFT",
  "STYLE",
  "alignment",
  "attention_heads",
  "attention_heat_map",
  "attention_maps",
  "attention_received",
  "attention_rollout",
  "attention_weights",
  "beam_tree",
  "kernel_widths",
  "loss_curve",
  "mask_colors",
  "masked_tokens",
  "position_similarity",
  "position_table",
  "query_map",
  "reconstruct",
  "reconstructions",
  "regression_curve",
  "rollout",
  "segmentations",
  "similarity",
  "smooth",
  "token_inputs",
]
