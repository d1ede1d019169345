"""Pictures of a run and of what a model has learned, as matplotlib figures: give a path to write a PNG."""

from train.plots.attention import (
  attention_maps,
  attention_received,
  attention_rollout,
  attention_weights,
  query_map,
  rollout,
)
from train.plots.curves import loss_curve, smooth
from train.plots.images import mask_colours, reconstruct, reconstructions, segmentations
from train.plots.positions import position_similarity, position_table, similarity
from train.plots.regression import attention_heat_map, kernel_widths, regression_curve
from train.plots.style import COLOURS, FAINT, HIDDEN, SOFT, STYLE
from train.plots.text import alignment, beam_tree, heads, hidden_words, row_strips

__all__ = [
  "COLOURS",
  "FAINT",
  "HIDDEN",
  "SOFT",
  "STYLE",
  "alignment",
  "attention_heat_map",
  "attention_maps",
  "attention_received",
  "attention_rollout",
  "attention_weights",
  "beam_tree",
  "heads",
  "hidden_words",
  "kernel_widths",
  "loss_curve",
  "mask_colours",
  "position_similarity",
  "position_table",
  "query_map",
  "reconstruct",
  "reconstructions",
  "regression_curve",
  "rollout",
  "row_strips",
  "segmentations",
  "similarity",
  "smooth",
]
