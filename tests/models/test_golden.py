"""Same weights, same outputs as Hugging Face, in float32 at every layer (files made by golden/make_goldens.py)."""

import functools

import jax
import numpy as np
import pytest
from support import ROOT, relative_error

import zoo
from train.objectives.mae import reconstruction_loss
from zoo.layers.norms import LayerNorm

GOLDEN = ROOT / "tests/golden"
SIZES = {
  "vit_model": ("vit/test", dict(width=24, depth=3, num_heads=4, mlp_dim=40)),
  "vit_classifier": ("vit/test", dict(width=20, depth=3, num_heads=2, mlp_dim=28, patch_size=3)),
  "mae": (
    "mae/test",
    dict(width=24, depth=3, num_heads=2, mlp_dim=40)
    | dict(decoder_width=16, decoder_depth=2, decoder_num_heads=4, decoder_mlp_dim=28),
  ),
}
CASES = [
  ("vit_model", "20x20"),
  ("vit_model", "28x28"),
  ("vit_model", "12x32"),
  ("vit_classifier", "12x18"),
  ("mae", "20x20"),
]


@functools.cache
def expected(golden, size):
  with np.load(GOLDEN / golden / "expected.npz") as file:
    return {k.removeprefix(f"{size}/"): file[k] for k in file if k.startswith(size)}


@functools.cache
def run(golden, size, **overrides):
  name, sizes = SIZES[golden]
  model, variables = zoo.load(GOLDEN / golden, name, **sizes, **overrides)
  inputs = [expected(golden, size)[k] for k in ("image", "noise") if k in expected(golden, size)]
  apply = functools.partial(model.apply, mask_ratio=0.7) if golden == "mae" else model.apply
  return jax.jit(apply)(variables, *inputs)


@pytest.mark.parametrize(("golden", "size", "scan"), [(*c, False) for c in CASES] + [(*c, True) for c in CASES[-2:]])
def test_every_layer(golden, size, scan):
  output, aux = run(golden, size, scan=scan) if scan else run(golden, size)
  ours = aux | {"output": output}
  compared = [k for k in expected(golden, size) if k not in ("image", "noise") and not k.startswith("loss")]
  assert {"embedded", "block_00", "block_02", "tokens", "output"} <= set(compared)
  errors = {k: relative_error(ours[k], expected(golden, size)[k]) for k in compared}
  assert max(errors.values()) < 1e-5, errors


def test_mae_encoder_of_another_image_size():
  # Hugging Face interpolates the encoder's fixed positions, which a learned table does as well; its decoder
  # interpolates along the flattened grid, which is no position any more: not compared.
  _, aux = run("mae", "16x28", position_embedding="learned_1d")
  theirs = expected("mae", "16x28")
  for name in ("embedded", "block_00", "block_01", "block_02", "tokens", "masked"):
    assert relative_error(aux[name], theirs[name]) < 1e-5, name


@pytest.mark.parametrize("normalise", [False, True])
def test_mae_loss(normalise):
  pixels_BPF, aux = run("mae", "20x20")
  theirs = expected("mae", "20x20")
  loss_B = reconstruction_loss(pixels_BPF, theirs["image"], aux["masked"], 4, normalise)
  assert relative_error(loss_B.mean(), theirs[f"loss_{normalise}"]) < 1e-5


def test_positions_resampled_at_loading():
  """Once and for all, instead of in every forward pass."""
  output, _ = run("vit_model", "12x32", image_size=(12, 32), resample=True)
  assert relative_error(output, expected("vit_model", "12x32")["output"]) < 1e-5


def test_layer_norm_keeps_its_digits():
  """Far from 0, E[x^2] - E[x]^2 has none left; trained models have such channels."""
  x = 1000 + np.random.default_rng(0).normal(size=(3, 64))
  x = x.astype("f").astype(float)
  expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  found, _ = LayerNorm().init_with_output(jax.random.key(0), x.astype("f"))
  assert relative_error(found, expected) < 1e-4


def test_config_json_determines_what_the_tensors_do_not():
  model, _ = zoo.load(GOLDEN / "vit_classifier", SIZES["vit_classifier"][0], **SIZES["vit_classifier"][1])
  c = model.config
  assert (c.image_size, c.num_channels, c.num_classes, c.activation, c.norm_eps) == ((12, 18), 1, 7, "gelu_tanh", 1e-12)
  model, _ = zoo.load(GOLDEN / "vit_model", SIZES["vit_model"][0], **SIZES["vit_model"][1])
  assert (model.config.num_classes, model.config.representation_size) == (0, 9)
