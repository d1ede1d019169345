"""ConvNeXt: same weights, same maps, logits and gradients as Hugging Face's and timm's; all released names.

Needs the extra [parity].
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm
import torch
import transformers
from support import raises, relative_error
from timm.models.convnext import checkpoint_filter_fn
from transformers import ConvNextBackbone, ConvNextConfig, ConvNextForImageClassification, ConvNextModel

import zoo
from zoo.weights import convert, tables, write_back
from zoo.weights.sources import read

pytestmark = pytest.mark.parity

SIZES = dict(hidden_sizes=[8, 12, 20, 28], depths=[2, 1, 3, 1])
OURS = dict(widths=(8, 12, 20, 28), depths=(2, 1, 3, 1), image_size=(32, 32))
STAGES = [f"stage{i}" for i in (1, 2, 3, 4)]
KINDS = {
  ConvNextModel: dict(),
  ConvNextForImageClassification: dict(num_labels=7),
  ConvNextBackbone: dict(out_features=STAGES),
}


def shake(model, seed=0):
  """Weights large enough to matter everywhere, and biases that are not 0."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
  return model.eval()


def make(cls, **config):
  return shake(cls(ConvNextConfig(**SIZES | KINDS[cls] | config)))


def draw(*size, batch=2):
  image = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))
  return image, image.permute(0, 2, 3, 1).numpy()


def last(map_BCYX):
  """Channels last, as our maps."""
  return map_BCYX.detach().permute(0, 2, 3, 1)


@pytest.mark.parametrize("size", [(64, 64), (75, 49)], ids=str)  # the second is odd at every stage
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_outputs_of_every_stage(kind, size, tmp_path):
  theirs = make(kind)
  theirs.save_pretrained(tmp_path)
  image, image_BYXC = draw(*size)
  model, variables = zoo.load(tmp_path, "convnext/test", **OURS)
  output, aux = jax.jit(model.apply)(variables, image_BYXC)
  with torch.no_grad():
    reference = theirs(image, output_hidden_states=True)
  found, wanted = dict(aux), {}
  if kind is ConvNextBackbone:
    assert model.config.head == "features"
    wanted = {f"stage_{i}": last(m) for i, m in enumerate(reference.feature_maps)}
    found |= {f"stage_{i}/last": aux[f"stage_{i}/block_{n - 1:02d}"] for i, n in enumerate(model.config.depths)}
    wanted |= {f"stage_{i}/last": last(m) for i, m in enumerate(reference.hidden_states[-4:])}
  else:
    wanted = {f"stage_{i}": last(m) for i, m in enumerate(reference.hidden_states[-4:])}
    found["output"] = output
    wanted["output"] = reference.pooler_output if kind is ConvNextModel else reference.logits
  errors = {name: relative_error(found[name], value) for name, value in wanted.items()}
  assert len(errors) >= 5 and max(errors.values()) < 1e-5, errors


def test_other_numerics_and_grey(tmp_path):
  more = dict(hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-2, patch_size=2, num_channels=1)
  theirs = make(ConvNextForImageClassification, **more)
  theirs.save_pretrained(tmp_path)
  image, image_BYXC = draw(32, 48)
  model, variables = zoo.load(tmp_path, "convnext/test", **OURS, patch_size=2)
  assert model.config.activation == "gelu_tanh" and model.config.head_norm_eps == 1e-2
  with torch.no_grad():
    wanted = theirs(image[:, :1]).logits
  assert relative_error(jax.jit(model.apply)(variables, image_BYXC[..., :1])[0], wanted) < 1e-5


def test_a_directory_determines_its_variant(tmp_path):
  config = ConvNextConfig(image_size=64)
  config.architectures = ["ConvNextForImageClassification"]
  config.save_pretrained(tmp_path)
  model = zoo.create("convnext/t", num_classes=3)
  shapes = jax.eval_shape(model.init, {"params": jax.random.key(0)}, np.zeros((1, 32, 32, 3)))
  zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
  zoo.save(tmp_path / "model.safetensors", "convnext/t", dict(num_classes=3), zeros, layout="huggingface")
  found, _ = zoo.load(tmp_path)
  assert (found.config.widths, found.config.num_classes) == ((96, 192, 384, 768), 3)
  assert found.config.image_size == (64, 64)
  with raises(ValueError, "depths", [3, 3, 9, 3], "convnext/s", (3, 3, 27, 3)):
    zoo.load(tmp_path, "convnext/s")


def test_gradients():
  """Read by the same table as the weights."""
  theirs = make(ConvNextForImageClassification)
  image, image_BYXC = draw(64, 40, batch=3)
  labels = torch.tensor([1, 6, 4])
  theirs(image, labels=labels).loss.backward()
  model = zoo.create("convnext/test", **OURS, head_norm_eps=1e-12)
  table = tables.of("convnext").tables(model.config)["huggingface"]

  def loss(params):
    logits, _ = model.apply({"params": params}, image_BYXC)
    return -jax.nn.log_softmax(logits)[jnp.arange(3), labels.numpy()].mean()

  template = jax.eval_shape(model.init, {"params": jax.random.key(0)}, image_BYXC)["params"]
  named = dict(theirs.named_parameters())
  params = convert({k: p.detach().numpy() for k, p in named.items()}, table, template)
  wanted = convert({k: p.grad.numpy() for k, p in named.items()}, table, template)
  found = jax.jit(jax.grad(loss))(params)
  errors = jax.tree.map(relative_error, found, wanted)
  assert max(jax.tree.leaves(errors)) < 1e-5, errors


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_hugging_face_reads_what_we_write(kind, tmp_path):
  reference = ConvNextConfig(**SIZES | KINDS[kind])
  reference.save_pretrained(tmp_path)
  overrides = {
    ConvNextModel: dict(num_classes=0),
    ConvNextForImageClassification: {},
    ConvNextBackbone: dict(head="features", num_classes=0),
  }[kind] | dict(OURS, head_norm_eps=1e-12)
  model = zoo.create("convnext/test", **overrides)
  image, image_BYXC = draw(64, 32)
  shapes = jax.eval_shape(model.init, {"params": jax.random.key(0)}, image_BYXC)
  rng = np.random.default_rng(0)
  variables = jax.tree.map(lambda s: rng.normal(0.1, 0.3, s.shape).astype("f"), shapes)
  zoo.save(tmp_path / "model.safetensors", "convnext/test", overrides, variables, layout="huggingface")
  theirs, report = kind.from_pretrained(tmp_path, output_loading_info=True)
  assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
  with torch.no_grad():
    out = theirs.eval()(image)
  output, _ = jax.jit(model.apply)(variables, image_BYXC)
  wanted = {
    ConvNextModel: lambda: out.pooler_output,
    ConvNextForImageClassification: lambda: out.logits,
    ConvNextBackbone: lambda: last(out.feature_maps[-1]),
  }[kind]()
  assert relative_error(output, wanted) < 1e-5


def make_timm():
  return shake(timm.models.ConvNeXt(dims=OURS["widths"], depths=OURS["depths"], num_classes=7))


def test_timm_names(tmp_path):
  theirs = make_timm()
  torch.save(theirs.state_dict(), tmp_path / "w.pth")
  model, variables = zoo.load(tmp_path / "w.pth", "convnext/test", layout="timm", **OURS)
  image, image_BYXC = draw(64, 96)
  with torch.no_grad():
    wanted = theirs(image)
  assert relative_error(jax.jit(model.apply)(variables, image_BYXC)[0], wanted) < 1e-5
  zoo.save(tmp_path / "w.safetensors", "convnext/test", OURS, variables, layout="timm")
  written = read(tmp_path / "w.safetensors").tensors
  assert written.keys() == theirs.state_dict().keys()
  for name, value in theirs.state_dict().items():
    np.testing.assert_array_equal(written[name], value, err_msg=name)


def test_meta_names():
  """timm knows the names of the released files: what it makes of ours, written by them, has to be ours."""
  theirs = make_timm()
  model = zoo.create("convnext/test", **OURS)
  layouts = tables.of("convnext").tables(model.config)
  template = jax.eval_shape(model.init, {"params": jax.random.key(0)}, np.zeros((1, 32, 32, 3)))["params"]
  state = {name: value.numpy() for name, value in theirs.state_dict().items()}
  written = write_back(convert(state, layouts["timm"], template), layouts["meta"])
  assert {"downsample_layers.0.0.weight", "downsample_layers.1.1.weight", "stages.2.2.pwconv1.weight"} <= written.keys()
  tensors = {name: torch.from_numpy(value) for name, value in written.items()}
  renamed = checkpoint_filter_fn(dict(tensors), theirs)
  assert renamed.keys() == state.keys()
  for name, value in state.items():
    np.testing.assert_array_equal(renamed[name], value, err_msg=name)


@pytest.mark.parametrize("size", ["t", "s", "b", "l"])
def test_parameter_counts(size):
  c = zoo.create(f"convnext/{size}").config
  with torch.device("meta"):
    theirs = transformers.ConvNextForImageClassification(
      ConvNextConfig(hidden_sizes=list(c.widths), depths=list(c.depths), num_labels=1000)
    )
  model = zoo.create(f"convnext/{size}", scan=True)
  shapes = jax.eval_shape(model.init, {"params": jax.random.key(0)}, *zoo.family("convnext").inputs(c, 1))
  assert sum(p.numel() for p in theirs.parameters()) == sum(s.size for s in jax.tree.leaves(shapes))
