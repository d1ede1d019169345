"""Same weights, same outputs as timm, whose layout is also that of MAE's release. Needs timm, of the extra [parity]."""

import jax
import numpy as np
import pytest
import timm
import torch
from support import relative_error

import zoo

pytestmark = pytest.mark.parity

SIZES = dict(patch_size=8, embed_dim=96, depth=3, num_heads=6, mlp_ratio=2, in_chans=3, num_classes=7)
OURS = dict(patch_size=8, width=96, depth=3, num_heads=6, mlp_dim=192)
CASES = {
  "cls": (dict(), dict()),
  "features": (dict(num_classes=0), dict(num_classes=0)),
  "gap": (
    dict(global_pool="avg", class_token=False, fc_norm=True),
    dict(pool="gap", class_token=False, final_norm=False, head_norm="layer"),
  ),
  # MAE's fine-tuning: the average leaves the class token out.
  "mae": (dict(global_pool="avg"), dict(pool="gap", final_norm=False, head_norm="layer")),
  "map": (dict(global_pool="map", class_token=False), dict(pool="map", class_token=False)),
}


@pytest.mark.parametrize("case", CASES)
def test_outputs(case, tmp_path):
  theirs, overrides = CASES[case]
  size = (32, 48)
  theirs = timm.models.VisionTransformer(img_size=size, **SIZES | theirs).eval()
  generator = torch.Generator().manual_seed(0)
  for name, parameter in theirs.named_parameters():
    mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
    parameter.data = mean + 0.2 * torch.randn(parameter.shape, generator=generator)
  path = tmp_path / "w.pth"
  torch.save({"model": theirs.state_dict()}, path)
  model, variables = zoo.load(path, "vit/test", layout="timm", image_size=size, **OURS | overrides)
  image = torch.randn(2, 3, *size, generator=generator)
  expected, blocks = {}, theirs.blocks
  for i, block in enumerate(blocks):
    block.register_forward_hook(lambda m, a, out, i=i: expected.update({f"block_{i:02d}": out}))
  with torch.no_grad():
    expected["output"] = theirs(image)
  output, aux = jax.jit(model.apply)(variables, image.permute(0, 2, 3, 1).numpy())
  found = aux | {"output": output}
  assert len(expected) == 4
  for name, value in expected.items():
    assert relative_error(found[name], value) < 1e-5, name
  # And back.
  zoo.save(tmp_path / "w.safetensors", "vit/test", dict(image_size=size, **OURS | overrides), variables, layout="timm")
  written = zoo.weights.sources.read(tmp_path / "w.safetensors").tensors
  assert written.keys() == theirs.state_dict().keys()
  for name, value in theirs.state_dict().items():
    np.testing.assert_array_equal(written[name], value, err_msg=name)
