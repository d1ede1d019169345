"""Hybrids, and the names of Google's files: the same outputs and gradients as timm. Needs the extra [parity]."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm
import torch
from support import relative_error
from timm.layers import GroupNormAct, HybridEmbed, StdConv2dSame
from timm.models.resnetv2 import ResNetV2, create_resnetv2_stem

import zoo
from zoo.weights import convert, tables
from zoo.weights.sources import read

pytestmark = pytest.mark.parity

VIT = dict(embed_dim=24, depth=2, num_heads=2, mlp_ratio=2, num_classes=7)
OURS = dict(mlp_dim=48, stem_norm_eps=1e-5)
# The units of each stage, the side of a patch on the map, and the image.
CASES = {
  "cells": dict(depths=(1, 3), cell=2, size=(48, 32)),
  "positions": dict(depths=(2, 1, 1), cell=1, size=(48, 80)),
  "root": dict(depths=(), cell=4, size=(32, 48)),
}


def overrides(case):
  depths, cell, size = case["depths"], case["cell"], case["size"]
  return dict(stem_depths=depths, patch_size=cell * 4 * 2 ** max(len(depths) - 1, 0), image_size=size, **OURS)


def make(depths, cell, size):
  parts = dict(
    conv_layer=functools.partial(StdConv2dSame, eps=1e-8), norm_layer=functools.partial(GroupNormAct, num_groups=4)
  )
  if depths:
    channels = tuple(32 * 2**i for i in range(len(depths)))
    stem = ResNetV2(depths, channels, 0, global_pool="", stem_chs=8, stem_type="same", preact=False, **parts)
  else:
    stem = create_resnetv2_stem(3, 8, "same", preact=False, **parts)
  embed = functools.partial(HybridEmbed, backbone=stem)
  model = timm.models.VisionTransformer(img_size=size, patch_size=cell, embed_layer=embed, **VIT).eval()
  generator = torch.Generator().manual_seed(0)
  for name, parameter in model.named_parameters():
    mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
    parameter.data = mean + 0.2 * torch.randn(parameter.shape, generator=generator)
  return model


def draw(size, batch=2):
  image = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))
  return image, image.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("case", CASES)
def test_outputs(case, tmp_path):
  theirs, config = make(**CASES[case]), overrides(CASES[case])
  torch.save(theirs.state_dict(), tmp_path / "w.pth")
  model, variables = zoo.load(tmp_path / "w.pth", "hybrid/test", layout="timm", **config)
  image, image_BYXC = draw(CASES[case]["size"])
  expected = {}
  theirs.patch_embed.register_forward_hook(lambda m, a, out: expected.update({"patches": out}))
  for i, block in enumerate(theirs.blocks):
    block.register_forward_hook(lambda m, a, out, i=i: expected.update({f"block_{i:02d}": out}))
  with torch.no_grad():
    expected["output"] = theirs(image)
  output, aux = jax.jit(model.apply)(variables, image_BYXC)
  table = variables["params"]["encoder"]["pos"]["table"]
  found = aux | {"output": output, "patches": aux["embedded"][:, 1:] - table.reshape(1, -1, 24)}
  errors = {name: relative_error(found[name], value) for name, value in expected.items()}
  assert len(errors) == 4 and max(errors.values()) < 1e-5, errors
  # And back.
  zoo.save(tmp_path / "w.safetensors", "hybrid/test", config, variables, layout="timm")
  written = read(tmp_path / "w.safetensors").tensors
  assert written.keys() == theirs.state_dict().keys()
  for name, value in theirs.state_dict().items():
    np.testing.assert_array_equal(written[name], value, err_msg=name)


def test_gradients():
  """Read by the same table as the weights."""
  case = CASES["cells"]
  theirs = make(**case)
  model = zoo.create("hybrid/test", **overrides(case))
  image, image_BYXC = draw(case["size"], batch=3)
  labels = torch.tensor([1, 6, 4])
  torch.nn.functional.cross_entropy(theirs(image), labels).backward()
  table = tables.of("hybrid").tables(model.config)["timm"]
  template = jax.eval_shape(model.init, {"params": jax.random.key(0)}, image_BYXC)["params"]
  named = dict(theirs.named_parameters())
  params = convert({k: p.detach().numpy() for k, p in named.items()}, table, template)
  wanted = convert({k: p.grad.numpy() for k, p in named.items()}, table, template)

  def loss(params):
    logits, _ = model.apply({"params": params}, image_BYXC)
    return -jax.nn.log_softmax(logits)[jnp.arange(3), labels.numpy()].mean()

  found = jax.jit(jax.grad(loss))(params)
  largest = max(np.abs(g).max() for g in jax.tree.leaves(wanted))
  # Biases of keys have gradient 0 (a softmax does not see them), so the scale is that of all gradients.
  errors = jax.tree.map(lambda a, b: float(np.abs(a - b).max() / largest), found, wanted)
  assert max(jax.tree.leaves(errors)) < 1e-5, errors


@pytest.mark.parametrize("name", ["vit/test", "hybrid/test"])
def test_timm_reads_the_names_of_google(name, tmp_path):
  """timm knows the names in the released .npz files: read from ours, it has to be the same model."""
  if name == "vit/test":
    theirs = timm.models.VisionTransformer(img_size=(32, 48), patch_size=8, **VIT).eval()
    config = dict(patch_size=8, image_size=(32, 48), mlp_dim=48, depth=2)
  else:
    theirs, config = make(**CASES["cells"]), overrides(CASES["cells"])
  model = zoo.create(name, **config)
  shapes = jax.eval_shape(model.init, {"params": jax.random.key(0)}, *zoo.family(name).inputs(model.config, 1))
  rng = np.random.default_rng(0)
  variables = jax.tree.map(lambda s: rng.normal(0.1, 0.2, s.shape).astype("f"), shapes)
  zoo.save(tmp_path / "w.safetensors", name, config, variables, layout="google")
  tensors = read(tmp_path / "w.safetensors").tensors
  np.savez(tmp_path / "w.npz", **tensors)
  with torch.no_grad():
    theirs.load_pretrained(str(tmp_path / "w.npz"))
    image, image_BYXC = draw(model.config.image_size)
    wanted = theirs(image)
  assert relative_error(jax.jit(model.apply)(variables, image_BYXC)[0], wanted) < 1e-5
  _, again = zoo.load(tmp_path / "w.npz", name, layout="google", **config)
  jax.tree.map(np.testing.assert_array_equal, again, variables)
  if name == "hybrid/test":
    assert tensors["block1/unit1/gn_proj/scale"].shape == (1, 1, 1, 32)
  # As big_vision names the same: another prefix, and numbers that its code gives other layers.
  renamed = {
    "params/"
    + key.replace("MultiHeadDotProductAttention_1", "MultiHeadDotProductAttention_0")
    .replace("LayerNorm_2", "LayerNorm_1")
    .replace("MlpBlock_3", "MlpBlock_0")
    .replace("Transformer/posembed_input/pos_embedding", "pos_embedding"): value
    for key, value in tensors.items()
  }
  np.savez(tmp_path / "big_vision.npz", **renamed)
  _, again = zoo.load(tmp_path / "big_vision.npz", name, layout="google", **config)
  jax.tree.map(np.testing.assert_array_equal, again, variables)


@pytest.mark.parametrize(
  ("ours", "theirs"),
  [
    ("r_ti16", "vit_tiny_r_s16_p8_224"),
    ("r26_s32", "vit_small_r26_s32_224"),
    ("r50_b16", "vit_base_r50_s16_224"),
    ("r50_l32", "vit_large_r50_s32_224"),
  ],
)
def test_parameter_counts(ours, theirs):
  with torch.device("meta"):
    theirs = timm.create_model(theirs, num_classes=1000)
  model = zoo.create(f"hybrid/{ours}", scan=True)
  inputs = zoo.family("hybrid").inputs(model.config, 1)
  shapes = jax.eval_shape(model.init, {"params": jax.random.key(0)}, *inputs)
  assert sum(p.numel() for p in theirs.parameters()) == sum(s.size for s in jax.tree.leaves(shapes))
