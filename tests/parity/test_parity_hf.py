"""Same weights, same numbers as Hugging Face, run beside it: outputs, losses and gradients in float32, and resampling.

Needs the extra [parity].
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from golden.make_goldens import make, record
from support import raises, relative_error

import zoo
from train.objectives.mae import reconstruction_loss
from zoo.layers.position_embeddings import resample
from zoo.weights import convert, tables

pytestmark = pytest.mark.parity

# A ViT-S/16 at a quarter of its width and depth, and what may be otherwise.
S16 = dict(hidden_size=96, num_hidden_layers=3, num_attention_heads=6, intermediate_size=384, image_size=64)
DECODER = dict(
  decoder_hidden_size=64, decoder_num_hidden_layers=2, decoder_num_attention_heads=8, decoder_intermediate_size=96
)
CLASSES = dict(kind="ViTForImageClassification", num_labels=10)
MAE = dict(kind="ViTMAEForPreTraining", **S16, **DECODER)
CASES = {
  "features": dict(kind="ViTModel", **S16),
  "classes": CLASSES | S16,
  "grey_rectangle": CLASSES | S16 | dict(patch_size=8, image_size=(24, 56), num_channels=1),
  "other_numerics": CLASSES | S16 | dict(hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-2, num_attention_heads=1),
  "mae": MAE,
  "mae_half": MAE | dict(mask_ratio=0.5, norm_pix_loss=True, num_channels=1),
}


def ours(config) -> tuple[str, dict]:
  """The name, and the sizes in which it differs."""
  family = "mae" if "MAE" in config["kind"] else "vit"
  fields = tables.of(family).HUGGINGFACE["fields"]
  hf_config = dict(patch_size=16) | config
  sizes = {
    field: hf_config[key]
    for field, key in fields.items()
    if key in hf_config and field not in ("activation", "epsilon")
  }
  return f"{family}/test", sizes


@pytest.mark.parametrize("case", CASES)
def test_outputs_of_every_layer(case, tmp_path):
  config = CASES[case]
  theirs = make(**config, seed=1)
  theirs.save_pretrained(tmp_path)
  name, sizes = ours(config)
  sizes = {field: v for field, v in sizes.items() if field not in ("image_size", "num_channels")}  # in config.json
  model, variables = zoo.load(tmp_path, name, **sizes)
  size = theirs.config.image_size
  expected = record(theirs, (size, size) if isinstance(size, int) else tuple(size), seed=2)
  inputs = [expected.pop("image")]
  kwargs = {}
  if "noise" in expected:
    inputs.append(expected.pop("noise"))
    kwargs = dict(mask_ratio=theirs.config.mask_ratio)
  output, aux = jax.jit(functools.partial(model.apply, **kwargs))(variables, *inputs)
  found = aux | {"output": output}
  if "masked" in aux:
    for normalise in (False, True):
      loss_B = reconstruction_loss(output, inputs[0], aux["masked"], model.config.patch_size, normalise)
      found[f"loss_{normalise}"] = loss_B.mean()
  errors = {key: relative_error(found[key], value) for key, value in expected.items()}
  assert len(errors) >= 9
  assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("size", [(96, 96), (32, 112)])
def test_interpolated_positions(size, tmp_path):
  theirs = make(**CASES["classes"], seed=1)
  theirs.save_pretrained(tmp_path)
  name, sizes = ours(CASES["classes"])
  expected = record(theirs, size, seed=2)
  for kwargs in ({}, dict(image_size=size, resample=True)):
    model, variables = zoo.load(tmp_path, name, **sizes | kwargs)
    output, aux = jax.jit(model.apply)(variables, expected["image"])
    assert relative_error(aux["embedded"], expected["embedded"]) < 1e-5
    assert relative_error(output, expected["output"]) < 1e-5


@pytest.mark.parametrize("case", ["classes", "mae_half"])
def test_gradients(case):
  """Read by the same table as the weights."""
  config = CASES[case]
  theirs = make(**config, seed=1)
  image = torch.randn(3, theirs.config.num_channels, 64, 64, generator=torch.Generator().manual_seed(3))
  name, sizes = ours(config)
  model = zoo.create(name, **sizes, norm_eps=1e-12, **({} if "mae" in name else dict(num_classes=10)))
  table = tables.of(name).tables(model.config)["huggingface"]
  image_BYXC = image.permute(0, 2, 3, 1).numpy()
  if "mae" in name:
    noise = torch.rand(3, 16, generator=torch.Generator().manual_seed(4))
    theirs(image, noise=noise).loss.backward()

    def loss(params):
      pixels, aux = model.apply({"params": params}, image_BYXC, noise.numpy(), mask_ratio=0.5)
      return reconstruction_loss(pixels, image_BYXC, aux["masked"], 16, True).mean()
  else:
    labels = torch.tensor([1, 7, 4])
    theirs(image, labels=labels).loss.backward()

    def loss(params):
      logits, _ = model.apply({"params": params}, image_BYXC)
      return -jax.nn.log_softmax(logits)[jnp.arange(3), labels.numpy()].mean()

  rngs = {"params": jax.random.key(0), "mask": jax.random.key(0)}
  template = jax.eval_shape(model.init, rngs, *zoo.family(name).inputs(model.config, 1))["params"]
  # Fixed positions have no gradient; they go as they are, to be compared with ours.
  params = convert({k: p.detach().numpy() for k, p in theirs.named_parameters()}, table, template)
  gradients = {k: (p if p.grad is None else p.grad).detach().numpy() for k, p in theirs.named_parameters()}
  gradients = convert(gradients, table, template)
  found = jax.jit(jax.grad(loss))(params)
  largest = max(np.abs(g).max() for g in jax.tree.leaves(gradients))
  # Biases of keys have gradient 0 (a softmax does not see them), so the scale is that of all gradients.
  errors = jax.tree.map(lambda a, b: float(np.abs(a - b).max() / largest), found, gradients)
  assert max(jax.tree.leaves(errors)) < 1e-5, errors


@pytest.mark.parametrize("kind", ["ViTModel", "ViTForImageClassification", "ViTMAEForPreTraining"])
def test_hugging_face_reads_what_we_write(kind, tmp_path):
  config = S16 | (DECODER if "MAE" in kind else {})
  name, sizes = ours(dict(kind=kind, **config))
  sizes |= dict(num_channels=3, norm_eps=1e-12)
  if "MAE" not in kind:
    sizes |= dict(num_classes=5) if "Classification" in kind else dict(num_classes=0, representation_size=96)
  model = zoo.create(name, **sizes)
  image = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype("f")
  noise = [np.random.default_rng(1).uniform(size=(2, 16)).astype("f")] if "MAE" in kind else []
  variables = jax.jit(model.init)({"params": jax.random.key(0)}, image, *noise)
  if "head" in variables["params"]:  # it starts at zero, which would make every output zero
    kernel = variables["params"]["head"]["kernel"]
    variables["params"]["head"]["kernel"] = jax.random.normal(jax.random.key(1), kernel.shape)
  zoo.save(tmp_path / "model.safetensors", name, sizes, variables, layout="huggingface")
  cls = getattr(transformers, kind)
  hf_config = cls.config_class(**config, **(dict(num_labels=5) if "Classification" in kind else {}))
  hf_config.save_pretrained(tmp_path)
  theirs, report = cls.from_pretrained(tmp_path, output_loading_info=True)
  assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
  kwargs = dict(noise=torch.from_numpy(noise[0])) if noise else {}
  with torch.no_grad():
    out = theirs.eval()(torch.from_numpy(image).permute(0, 3, 1, 2), **kwargs)
  output, _ = jax.jit(model.apply)(variables, image, *noise)
  assert relative_error(output, out.pooler_output if kind == "ViTModel" else out.logits) < 1e-5


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s, "epoch": 3}], ids=["plain", "wrapped"])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_pytorch_files(suffix, wrap, tmp_path):
  theirs = make(**CASES["classes"], seed=1)
  theirs.save_pretrained(tmp_path)
  torch.save(wrap(theirs.state_dict()), tmp_path / f"w{suffix}")
  name, sizes = ours(CASES["classes"])
  _, expected = zoo.load(tmp_path, name, **sizes)
  _, found = zoo.load(tmp_path / f"w{suffix}", name, layout="huggingface", num_classes=10, **sizes)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_half_precision(tmp_path):
  theirs = make(**CASES["classes"], seed=1).bfloat16()
  theirs.save_pretrained(tmp_path)
  torch.save(theirs.state_dict(), tmp_path / "w.pth")
  name, sizes = ours(CASES["classes"])
  _, a = zoo.load(tmp_path, name, **sizes)
  _, b = zoo.load(tmp_path / "w.pth", name, layout="huggingface", num_classes=10, **sizes)
  jax.tree.map(np.testing.assert_array_equal, a, b)
  np.testing.assert_array_equal(a["params"]["head"]["bias"], theirs.classifier.bias.detach().float())
  assert {leaf.dtype for leaf in jax.tree.leaves(a)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("part", [0.0, 0.3, 0.99])
def test_a_truncated_pytorch_file_is_named(part, tmp_path):
  path = tmp_path / "weights.pth"
  torch.save({"model": {"a": torch.randn(50, 50)}}, path)
  path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
  with raises(zoo.weights.WeightsError, "weights.pth", "truncated"):
    zoo.load(path, "vit/test", layout="timm")


class Bomb:
  """Unpickled, it would run code."""

  def __reduce__(self):
    return print, ("this must not be printed",)


def test_a_pytorch_file_may_not_run_code(tmp_path, capsys):
  torch.save({"model": Bomb()}, tmp_path / "w.pth")
  with raises(zoo.weights.WeightsError, "w.pth"):
    zoo.load(tmp_path / "w.pth", "vit/test", layout="timm")
  assert "printed" not in capsys.readouterr().out
  torch.save({"model": {"a": 3}}, tmp_path / "w.pth")
  with raises(zoo.weights.WeightsError, "dict"):
    zoo.load(tmp_path / "w.pth", "vit/test", layout="timm")


@pytest.mark.parametrize("method", ["bilinear", "bicubic", "bicubic_antialias"])
@pytest.mark.parametrize("grid", [(24, 24), (15, 13), (14, 21), (7, 7), (5, 9), (28, 3), (1, 1)])
def test_resampling(grid, method):
  table_YXD = np.random.default_rng(0).normal(size=(14, 14, 6)).astype("f")
  mode, _, antialias = method.partition("_")
  theirs = torch.nn.functional.interpolate(
    torch.from_numpy(table_YXD).permute(2, 0, 1)[None], size=grid, mode=mode, antialias=bool(antialias)
  )[0].permute(1, 2, 0)
  assert relative_error(resample(jnp.asarray(table_YXD), grid, method), theirs) < 1e-5
