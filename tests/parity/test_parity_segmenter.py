"""UPerNet has the numbers of Hugging Face's on shared weights, in float32: its head, and all of it on a backbone.

Needs the extra [parity].
"""

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support import SegmentationHead, feature_maps, relative_error
from transformers import ConvNextConfig, SwinConfig, UperNetConfig, UperNetForSemanticSegmentation
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

import zoo
from zoo.models import segmenter
from zoo.weights import convert, tables
from zoo.weights.rules import write_back

pytestmark = pytest.mark.parity

WIDTHS = (8, 12, 20, 28)


def random(module):
  """In evaluation, with nothing left at 0 or 1."""
  torch.manual_seed(0)
  for name, tensor in module.state_dict().items():
    if tensor.is_floating_point():
      tensor.normal_(0.1, 0.3).abs_() if name.endswith("running_var") else tensor.normal_(0.1, 0.3)
  return module.eval()


def theirs(bins, cls=UperNetHead):
  config = UperNetConfig(hidden_size=16, pool_scales=list(bins), num_labels=7, auxiliary_channels=12)
  return random(cls(config, list(WIDTHS)))


@pytest.mark.parametrize(("bins", "size"), [((1, 2, 3, 6), (32, 48)), ((1, 3), (13, 9))])
def test_the_head_of_upernet(bins, size):
  head = theirs(bins)
  given = feature_maps(np.random.default_rng(0), WIDTHS, size)
  with torch.no_grad():
    wanted = head([torch.tensor(x).permute(0, 3, 1, 2) for x in given]).permute(0, 2, 3, 1).numpy()
  config = segmenter.Config(head="upernet", width=16, num_classes=7, pool_scales=bins)
  module = SegmentationHead(config)
  template = jax.eval_shape(module.init, jax.random.key(0), given)
  tensors = {f"decode_head.{name}": tensor.numpy() for name, tensor in head.state_dict().items()}
  tensors |= {f"auxiliary_head.{name}": t.numpy() for name, t in theirs(bins, UperNetFCNHead).state_dict().items()}
  table = [
    rule for rule in tables.of("segmenter").tables(config)["huggingface"] if not rule.pattern.startswith("backbone")
  ]
  params = convert(tensors, table, dict(template["params"]) | {"batch_stats": template["batch_stats"]})
  back = write_back(params, table)
  assert {name for name in tensors if name.startswith("decode") and "batches" not in name} == back.keys()
  assert all((tensors[name] == tensor).all() for name, tensor in back.items())
  statistics = params.pop("batch_stats")
  logits, _ = jax.jit(module.apply)({"params": params, "batch_stats": statistics}, given)
  assert relative_error(logits, wanted) < 1e-5


# A backbone of theirs, and the same of ours.
BACKBONES = {
  "convnext/t": (
    ConvNextConfig(hidden_sizes=list(WIDTHS), depths=[1, 1, 2, 1], out_features=[f"stage{i}" for i in range(1, 5)]),
    dict(widths=WIDTHS, depths=(1, 1, 2, 1)),
  ),
  "swin/t": (
    SwinConfig(
      embed_dim=12,
      depths=[2] * 4,
      num_heads=[1, 2, 3, 4],
      window_size=3,
      image_size=96,
      out_features=[f"stage{i}" for i in range(1, 5)],
    ),
    dict(width=12, depths=(2,) * 4, num_heads=(1, 2, 3, 4), window_size=3, mask_padding=False, clamp_window="never"),
  ),
}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_whole_of_upernet(backbone, tmp_path):
  config, options = BACKBONES[backbone]
  auxiliary = dict(auxiliary_in_channels=48 if "swin" in backbone else WIDTHS[2], auxiliary_channels=12)
  model = random(
    UperNetForSemanticSegmentation(UperNetConfig(backbone_config=config, hidden_size=16, num_labels=7, **auxiliary))
  )
  save_file(model.state_dict(), tmp_path / "model.safetensors")
  image = np.random.default_rng(0).normal(size=(1, 64, 96, 3)).astype(np.float32)
  with torch.no_grad():
    wanted = model(torch.tensor(image).permute(0, 3, 1, 2)).logits.permute(0, 2, 3, 1).numpy()
  fields = dict(backbone=backbone, backbone_kwargs=options, width=16, num_classes=7, image_size=(64, 96))
  ours, variables = zoo.load(tmp_path / "model.safetensors", "segmenter/upernet", layout="huggingface", **fields)
  logits, _ = jax.jit(ours.apply)(variables, image)
  assert logits.shape == wanted.shape == (1, 64, 96, 7) and relative_error(logits, wanted) < 1e-5
  zoo.save(tmp_path / "back.safetensors", "segmenter/upernet", fields, variables, layout="huggingface")
  _, again = zoo.load(tmp_path / "back.safetensors", "segmenter/upernet", layout="huggingface", **fields)
  jax.tree.map(np.testing.assert_array_equal, again, variables)
