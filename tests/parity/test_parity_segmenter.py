"""UPerNet's head has the numbers of Hugging Face's on shared weights, in float32.

Needs the extra [parity].
"""

import jax
import numpy as np
import pytest
import torch
from test_golden import relative_error
from test_segmenter import Head, maps
from transformers import UperNetConfig
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

from zoo.models import segmenter
from zoo.weights import convert
from zoo.weights.table import write_back

pytestmark = pytest.mark.parity

WIDTHS = (8, 12, 20, 28)


def theirs(bins, cls=UperNetHead):
  """A head in evaluation with nothing left at 0 or 1."""
  config = UperNetConfig(hidden_size=16, pool_scales=list(bins), num_labels=7, auxiliary_channels=12)
  torch.manual_seed(0)
  head = cls(config, list(WIDTHS)).eval()
  for name, tensor in head.state_dict().items():
    if tensor.is_floating_point():
      tensor.normal_(0.1, 0.3).abs_() if name.endswith("running_var") else tensor.normal_(0.1, 0.3)
  return head


@pytest.mark.parametrize(("bins", "size"), [((1, 2, 3, 6), (32, 48)), ((1, 3), (13, 9))])
def test_the_head_of_upernet(bins, size):
  head = theirs(bins)
  given = maps(np.random.default_rng(0), WIDTHS, size)
  with torch.no_grad():
    wanted = head([torch.tensor(x).permute(0, 3, 1, 2) for x in given]).permute(0, 2, 3, 1).numpy()
  config = segmenter.Config(head="upernet", width=16, num_classes=7, bins=bins)
  module = Head(config)
  template = jax.eval_shape(module.init, jax.random.key(0), given)
  tensors = {f"decode_head.{name}": tensor.numpy() for name, tensor in head.state_dict().items()}
  tensors |= {f"auxiliary_head.{name}": t.numpy() for name, t in theirs(bins, UperNetFCNHead).state_dict().items()}
  table = [rule for rule in segmenter.tables(config)["huggingface"] if not rule.pattern.startswith("backbone")]
  params = convert(tensors, table, dict(template["params"]) | {"batch_stats": template["batch_stats"]})
  back = write_back(params, table)
  assert {name for name in tensors if name.startswith("decode") and "batches" not in name} == back.keys()
  assert all((tensors[name] == tensor).all() for name, tensor in back.items())
  statistics = params.pop("batch_stats")
  logits, _ = jax.jit(module.apply)({"params": params, "batch_stats": statistics}, given)
  assert relative_error(logits, wanted) < 1e-5
