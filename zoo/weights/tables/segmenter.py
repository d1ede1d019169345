"""Names of the parameters of published weights of `zoo.models.segmenter`."""

from zoo.layers.norms import STATISTICS
from zoo.models import segmenter
from zoo.weights import tables as published
from zoo.weights import torch_layouts as torch
from zoo.weights.rules import Rule


def tables(config: segmenter.Config) -> dict[str, tuple[Rule, ...]]:
  """The names of our parameters in published weights, by layout: "huggingface", UperNetForSemanticSegmentation.

  Its auxiliary head, used in training alone, is ignored.
  """
  if config.head != "upernet" or config.norm != "batch":
    return {}
  every = published.of(config.backbone).tables(config.encoder)["huggingface"]
  # What a classifier has behind its encoder is not in a backbone.
  backbone = [rule for rule in every if all(path.startswith("encoder/") for path in rule.targets((0,) * 9))]
  stages, head = len(segmenter.STRIDES), "decode_head"
  return {
    "huggingface": (
      *(rule._replace(pattern=rf"backbone\.{rule.pattern}") for rule in backbone),
      *(r for i in range(len(config.pool_scales)) for r in _filter(rf"{head}\.psp_modules\.{i}\.1", f"pool_{i}")),
      *_filter(rf"{head}\.bottleneck", "bottleneck"),
      *(r for i in range(stages - 1) for r in _filter(rf"{head}\.lateral_convs\.{i}", f"lateral_{i}")),
      *(r for i in range(stages - 1) for r in _filter(rf"{head}\.fpn_convs\.{i}", f"smooth_{i}")),
      *_filter(rf"{head}\.fpn_bottleneck", "fuse"),
      Rule(rf"{head}\.classifier\.weight", "head/kernel", torch.POINT),
      Rule(rf"{head}\.classifier\.bias", "head/bias", torch.AS_IS),
      *(Rule(rf"auxiliary_head\.convs\.(\d+)\.{name}", (), torch.IGNORED) for name in _FILTER),
      *(Rule(rf"auxiliary_head\.classifier\.{name}", (), torch.IGNORED) for name in ("weight", "bias")),
    )
  }


_FILTER = {
  r"conv\.weight": ("filter/kernel", torch.KERNEL),
  r"batch_norm\.weight": ("norm/scale", torch.AS_IS),
  r"batch_norm\.bias": ("norm/bias", torch.AS_IS),
  r"batch_norm\.running_mean": ("norm/mean", torch.AS_IS),
  r"batch_norm\.running_var": ("norm/var", torch.AS_IS),
  r"batch_norm\.num_batches_tracked": (None, torch.IGNORED),
}


def _filter(key: str, path: str) -> tuple[Rule, ...]:
  def paths(name: str | None) -> str | tuple:
    if name is None:
      return ()
    return f"{STATISTICS}/{path}/{name}" if name.endswith(("mean", "var")) else f"{path}/{name}"

  return tuple(Rule(rf"{key}\.{theirs}", paths(ours), how) for theirs, (ours, how) in _FILTER.items())
