"""Names of the parameters of published weights of `zoo.models.hybrid`."""

from zoo.models import hybrid
from zoo.weights import torch_layouts as torch
from zoo.weights.rules import Rule, Transform
from zoo.weights.tables import vit


def tables(config: hybrid.Config) -> dict[str, tuple[Rule, ...]]:
  """The names of our parameters in published weights, by layout; see `vit.tables`.

  "timm": its hybrids of ResNetV2 and VisionTransformer, of `stem_norm_eps=1e-5`. "google": the released .npz files.
  """
  of_vit = vit.tables(config)
  return {
    "timm": (*of_vit["timm"], *_stem_timm(config)),
    "google": (*of_vit["google"], *_stem_google(config)),
  }


def _units(config: hybrid.Config) -> list[tuple[int, int, str]]:
  """Every unit: the number of its stage, its own in the stage, both from 0, and its path."""
  return [
    (i, j, f"encoder/stem/stage_{i}/{f'block_{j - 1:02d}' if j else 'first'}")
    for i, depth in enumerate(config.stem_depths)
    for j in range(depth)
  ]


def _stem_timm(config: hybrid.Config) -> tuple[Rule, ...]:
  prefix = r"patch_embed\.backbone"
  root = rf"{prefix}\.stem" if config.stem_depths else prefix
  rules = [
    Rule(rf"{root}\.conv\.weight", "encoder/stem/root/kernel", torch.KERNEL),
    *torch.norm(rf"{root}\.norm", "encoder/stem/root_norm"),
  ]
  for i, j, path in _units(config):
    unit = rf"{prefix}\.stages\.{i}\.blocks\.{j}"
    names = {f"conv{n}": (rf"conv{n}", rf"norm{n}") for n in (1, 2, 3)}
    names |= {} if j else {"proj": (r"downsample\.conv", r"downsample\.norm")}
    for ours, (conv, norm) in names.items():
      rules += [Rule(rf"{unit}\.{conv}\.weight", f"{path}/{ours}/kernel", torch.KERNEL)]
      rules += torch.norm(rf"{unit}\.{norm}", f"{path}/{ours}_norm")
  return tuple(rules)


def _stem_google(config: hybrid.Config) -> tuple[Rule, ...]:
  channels = Transform(lambda t, shape: t.reshape(shape), lambda a: a[None, None, None])  # [1, 1, 1, C] to [C]

  def convolution(key: str, norm: str, path: str) -> list[Rule]:
    kernel = Rule(rf"{vit.GOOGLE}{key}/kernel", f"{path}/kernel", torch.AS_IS)
    return [kernel, *(Rule(rf"{vit.GOOGLE}{norm}/{n}", f"{path}_norm/{n}", channels) for n in ("scale", "bias"))]

  rules = convolution("conv_root", "gn_root", "encoder/stem/root")
  for i, j, path in _units(config):
    unit = f"block{i + 1}/unit{j + 1}"
    for n in (1, 2, 3):
      rules += convolution(f"{unit}/conv{n}", f"{unit}/gn{n}", f"{path}/conv{n}")
    if not j:
      rules += convolution(f"{unit}/conv_proj", f"{unit}/gn_proj", f"{path}/proj")
  return tuple(rules)
