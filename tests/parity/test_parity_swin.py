"""Same weights, same numbers as Hugging Face's Swin and Swin V2, run beside it, at any size; and as timm's.

Needs the extra [parity].
"""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm
import torch
import transformers
from golden.make_goldens import randomise
from support import raises, relative_error

import zoo
from train.images import normalise
from train.objectives.simmim import Objective
from zoo.models.swin import V2
from zoo.weights import WeightsError, convert, tables
from zoo.weights.sources import read

pytestmark = pytest.mark.parity

# A Swin-T at a twelfth of its width and less than half of its depth, at its own sizes otherwise.
THEIRS = dict(embed_dim=8, depths=[2, 2, 4, 2], num_heads=[1, 2, 4, 8], window_size=7, mlp_ratio=2.0)
OURS = dict(width=8, depths=(2, 2, 4, 2), num_heads=(1, 2, 4, 8), window_size=7)
V2_THEIRS, V2_OURS = THEIRS | dict(window_size=8), OURS | dict(window_size=8, **V2)
# Whole windows in all stages; padding in most, odd maps where patches are merged, an image that patches do not fill;
# oblong, where the last map is no larger than a window one way. Theirs fail where a map of V1 is smaller than a window,
# and look at the rows alone, rounded down, in V2.
V1_SIZES = [(224, 224), (230, 262), (224, 320)]
V2_SIZES = [(256, 256), (288, 334), (256, 320)]
OUTPUTS = {
  "Model": {"output": "last_hidden_state", "features": "pooler_output"},
  "ForImageClassification": {"output": "logits"},
}


def make(kind, seed=1, **config):
  """Their model, all random."""
  cls = getattr(transformers, kind)
  return randomise(cls(cls.config_class(attn_implementation="eager", **config)), seed)


def pixels(size, images=2, channels=3, seed=2):
  return torch.randn(images, channels, *size, generator=torch.Generator().manual_seed(seed))


def by_channel(image):
  return image.permute(0, 2, 3, 1).numpy()


def record(model, image, encoder):
  """Outputs of all of their blocks, by our names, as tokens [B, T, D]."""
  found = {}

  def keep(name):
    return lambda module, inputs, output: found.update({name: output[0] if isinstance(output, tuple) else output})

  hooks = [
    block.register_forward_hook(keep(f"stage_{s}/block_{i // 2:02d}/{('regular', 'shifted')[i % 2]}"))
    for s, layer in enumerate(encoder.layers)
    for i, block in enumerate(layer.blocks)
  ]
  with torch.no_grad():
    expected = model(image)
  for hook in hooks:
    hook.remove()
  return expected, found


def tokens(found):
  """Maps [B, Y, X, D] as tokens, where theirs are."""
  return found.reshape(len(found), -1, found.shape[-1]) if found.ndim == 4 else found


CASES = [("Swin", THEIRS, OURS, size) for size in V1_SIZES] + [("Swinv2", V2_THEIRS, V2_OURS, s) for s in V2_SIZES]


@pytest.mark.parametrize("kind", OUTPUTS)
@pytest.mark.parametrize(("family", "theirs", "ours", "size"), CASES)
def test_outputs_of_every_block(family, theirs, ours, size, kind, tmp_path):
  # V2's windows are made for the image size of its config, whatever image it then gets.
  more = dict(image_size=size) if family == "Swinv2" else {}
  model = make(family + kind, **theirs, **more, **(dict(num_labels=5) if kind != "Model" else {}))
  model.save_pretrained(tmp_path)
  image = pixels(size)
  expected, wanted = record(model, image, getattr(model, family.lower(), model).encoder)
  wanted |= {name: expected[key] for name, key in OUTPUTS[kind].items()}
  # Neither head nor what is attended to is expected: the directory's own config.json does.
  ours_model, variables = zoo.load(tmp_path, "swin/test", **ours)
  output, aux = jax.jit(ours_model.apply)(variables, by_channel(image))
  found = aux | {"output": output}
  errors = {name: relative_error(tokens(found[name]), value) for name, value in wanted.items()}
  assert len(errors) >= 11 and max(errors.values()) < 1e-5, errors


def test_attention_weights():
  model, image = make("SwinModel", **THEIRS), pixels((224, 224))
  with torch.no_grad():
    wanted = model(image, output_attentions=True).attentions  # of the last block of each stage
  ours, params, _ = converted(model, {}, (224, 224))
  _, aux = jax.jit(ours.apply)({"params": params}, by_channel(image))
  for stage, (depth, weights) in enumerate(zip(OURS["depths"], wanted, strict=True)):
    found = aux[f"stage_{stage}/block_{depth // 2 - 1:02d}/shifted/weights"]
    assert relative_error(found, weights) < 1e-5


@pytest.mark.parametrize("size", [(224, 224), (100, 60), (64, 224), (17, 90)])
def test_feature_maps_of_the_backbone(size, tmp_path):
  """Also of images smaller than a window in every stage."""
  stages = [f"stage{i}" for i in range(1, 5)]
  model = make("SwinBackbone", **THEIRS, out_features=stages)
  model.save_pretrained(tmp_path)
  image = pixels(size)
  with torch.no_grad():
    wanted = model(image).feature_maps
  ours, variables = zoo.load(tmp_path, "swin/test", **OURS)
  assert ours.config.clamp_window == "never" and not ours.config.mask_padding and ours.config.head == "features"
  _, aux = jax.jit(ours.apply)(variables, by_channel(image))
  assert len(wanted) == 4
  for stage, value in enumerate(wanted):
    assert relative_error(aux[f"stage_{stage}"], value.permute(0, 2, 3, 1)) < 1e-5, stage


def converted(model, overrides, size):
  """Ours, with their parameters; and a function that reads whatever has their names by the same table."""
  head = dict(num_classes=5) if "Classification" in type(model).__name__ else dict(head="none")
  fields = (V2_OURS if "v2" in type(model).__name__ else OURS) | dict(mlp_ratio=2.0, mask_padding=False) | head
  ours = zoo.create("swin/test", **fields | overrides)
  template = jax.eval_shape(ours.init, {"params": jax.random.key(0)}, jnp.zeros((1, *size, 3)))["params"]
  read_by_table = functools.partial(convert, table=tables.of("swin").tables(ours.config)["huggingface"],
                                    template=template)  # fmt: skip
  return ours, read_by_table({k: p.detach().numpy() for k, p in model.named_parameters()}), read_by_table


@pytest.mark.parametrize("family", ["Swin", "Swinv2"])
def test_gradients(family):
  size = (160, 176) if family == "Swinv2" else (200, 232)  # padded in most stages
  theirs = V2_THEIRS | dict(image_size=size) if family == "Swinv2" else THEIRS
  model = make(f"{family}ForImageClassification", num_labels=5, **theirs)
  image, labels = pixels(size), torch.tensor([1, 4])
  model(image, labels=labels).loss.backward()
  ours, params, read_by_table = converted(model, dict(image_size=size), size)
  gradients = read_by_table({k: p.grad.numpy() for k, p in model.named_parameters()})

  def loss(params):
    logits, _ = ours.apply({"params": params}, by_channel(image))
    return -jax.nn.log_softmax(logits)[jnp.arange(2), labels.numpy()].mean()

  found = jax.jit(jax.grad(loss))(params)
  largest = max(np.abs(g).max() for g in jax.tree.leaves(gradients))
  errors = jax.tree.map(lambda a, b: float(np.abs(a - b).max() / largest), found, gradients)
  assert max(jax.tree.leaves(errors)) < 1e-5, errors


KINDS = ["SwinModel", "SwinForImageClassification", "SwinBackbone", "Swinv2Model", "Swinv2ForImageClassification"]


@pytest.mark.parametrize("kind", KINDS)
def test_hugging_face_reads_what_we_write(kind, tmp_path):
  v2, size = "v2" in kind, (64, 96) if "v2" in kind or "Backbone" in kind else (224, 224)
  expected = tables.of("swin").HUGGINGFACE["architectures"][kind]
  sizes = (V2_OURS if v2 else OURS) | dict(mlp_ratio=2.0, mask_padding=False, image_size=size) | expected
  more = dict(num_labels=5) if "Classification" in kind else {}
  if more:
    sizes["num_classes"] = 5
  if expected["head"] == "features":
    more["out_features"] = [f"stage{i}" for i in range(1, 5)]
  model = zoo.create("swin/test", **sizes)
  image = pixels(size)
  shapes = jax.eval_shape(model.init, {"params": jax.random.key(0)}, by_channel(image))
  rng = np.random.default_rng(0)
  variables = jax.tree.map(lambda s: rng.normal(0.05, 0.2, s.shape).astype(np.float32), shapes)
  zoo.save(tmp_path / "model.safetensors", "swin/test", sizes, variables, layout="huggingface")
  cls = getattr(transformers, kind)
  cls.config_class(**(V2_THEIRS if v2 else THEIRS), image_size=size, **more).save_pretrained(tmp_path)
  theirs, report = cls.from_pretrained(tmp_path, output_loading_info=True)
  missing = {k for k in report["missing_keys"] if "swin.layernorm" not in k}  # which a backbone does not use
  assert not missing and not report["unexpected_keys"] and not report["mismatched_keys"], report
  with torch.no_grad():
    out = theirs.eval()(image)
  output, _ = jax.jit(model.apply)(variables, by_channel(image))
  if expected["head"] == "features":
    assert relative_error(output, out.feature_maps[-1].permute(0, 2, 3, 1)) < 1e-5
  else:
    assert relative_error(tokens(output), out.logits if more else out.last_hidden_state) < 1e-5


def test_old_files_keep_their_index(tmp_path):
  """What is not a weight, but was written with them."""
  from safetensors import numpy as safetensors

  make("SwinModel", **THEIRS).save_pretrained(tmp_path)
  _, wanted = zoo.load(tmp_path, "swin/test", **OURS)
  tensors = safetensors.load_file(tmp_path / "model.safetensors")
  assert "encoder.layers.0.blocks.0.attention.self.query.weight" in tensors
  tensors["encoder.layers.0.blocks.1.attention.self.relative_position_index"] = np.zeros((49, 49), np.int64)
  safetensors.save_file(tensors, tmp_path / "model.safetensors")
  jax.tree.map(np.testing.assert_array_equal, zoo.load(tmp_path, "swin/test", **OURS)[1], wanted)


# ---- timm, and Microsoft's files ----


BUFFERS = ("attn_mask", "relative_position_index", "relative_coords_table")


def microsoft(state):
  """timm's tensors by the names of the released files, with their buffers: a stage ends with the merging."""
  renamed = {}
  for key, value in state.items():
    parts = key.split(".")
    if parts[2:3] == ["downsample"]:
      parts[1] = str(int(parts[1]) - 1)
    renamed[".".join(parts).replace("head.fc.", "head.")] = value
  buffers = {"attn.relative_position_index": torch.zeros(9, 9, dtype=torch.int64), "attn_mask": torch.zeros(4, 9, 9)}
  if any("cpb_mlp" in key for key in state):
    buffers["attn.relative_coords_table"] = torch.zeros(1, 5, 5, 2)
  return renamed | {f"layers.0.blocks.1.{key}": value for key, value in buffers.items()}


@pytest.mark.parametrize("layout", ["timm", "microsoft"])
@pytest.mark.parametrize("version", [1, 2])
def test_timm(version, layout, tmp_path):
  size, ours = (128, 128), dict(OURS, window_size=4, mlp_ratio=2.0, num_classes=5)
  cls = timm.models.SwinTransformer
  if version == 2:
    cls, ours = timm.models.SwinTransformerV2, ours | V2
  theirs = cls(img_size=size, window_size=4, embed_dim=8, depths=(2, 2, 4, 2), num_heads=(1, 2, 4, 8), mlp_ratio=2,
               num_classes=5)  # fmt: skip
  theirs = randomise(theirs)
  state = theirs.state_dict()
  torch.save({"model": state if layout == "timm" else microsoft(state)}, tmp_path / "w.pth")
  model, variables = zoo.load(tmp_path / "w.pth", "swin/test", layout=layout, image_size=size, **ours)
  image = pixels(size)
  wanted, hooks = {}, {}
  for s, layer in enumerate(theirs.layers):
    layer.register_forward_hook(lambda m, a, out, s=s: hooks.update({f"stage_{s}": out}))
  with torch.no_grad():
    wanted["output"] = theirs(image)
  output, aux = jax.jit(model.apply)(variables, by_channel(image))
  found = aux | {"output": output}
  assert len(hooks) == 4
  for name, value in (wanted | hooks).items():
    assert relative_error(found[name], value) < 1e-5, name
  # And back.
  zoo.save(tmp_path / "w.safetensors", "swin/test", dict(image_size=size, **ours), variables, layout=layout)
  written = read(tmp_path / "w.safetensors").tensors
  if layout == "microsoft":
    assert "layers.0.downsample.reduction.weight" in written and "head.weight" in written
    state = {k: v for k, v in microsoft(state).items() if k in written}
  assert written.keys() == state.keys()
  for name, value in state.items():
    np.testing.assert_array_equal(written[name], value, err_msg=name)


def test_a_table_of_another_window_is_that_of_the_released_code(tmp_path):
  """Which resizes it so: `torch.nn.functional.interpolate`, bicubic."""
  theirs = randomise(timm.models.SwinTransformer(img_size=56, window_size=7, embed_dim=8, depths=(2,), num_heads=(2,)))
  torch.save(microsoft(theirs.state_dict()), tmp_path / "w.pth")
  fields = dict(width=8, depths=(2,), num_heads=(2,), window_size=12, mlp_ratio=4.0, num_classes=1000)
  _, variables = zoo.load(tmp_path / "w.pth", "swin/test", layout="microsoft", resample=True, **fields)
  for i, name in enumerate(("regular", "shifted")):
    table = theirs.layers[0].blocks[i].attn.relative_position_bias_table
    square = table.detach().T.reshape(1, 2, 13, 13)
    wanted = torch.nn.functional.interpolate(square, size=(23, 23), mode="bicubic")[0].permute(1, 2, 0)
    found = variables["params"]["encoder"]["stage_0"]["block_00"][name]["relative_position_bias"]["table"]
    assert relative_error(found, wanted) < 1e-5


# ---- SimMIM ----


@pytest.mark.parametrize(("family", "side", "window"), [("Swin", 96, 3), ("Swinv2", 128, 4)])
def test_pixels_and_loss_of_masked_image_modelling(family, side, window, tmp_path):
  """Of square images, the only ones that theirs folds right."""
  more = dict(depths=(2, 2, 2, 2))
  theirs = make(f"{family}ForMaskedImageModeling", **THEIRS | more | dict(window_size=window, image_size=side))
  theirs.save_pretrained(tmp_path)
  with raises(WeightsError, "simmim"):  # nor one of Swin, whose type it is, too
    zoo.load(tmp_path)
  sizes = OURS | more | dict(window_size=window) | (V2 if family == "Swinv2" else {})
  model, variables = zoo.load(tmp_path, "simmim/test", **sizes)
  image = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)

  @jax.jit
  def learn(variables, batch):
    found = []
    recorder = SimpleNamespace(
      config=model.config, apply=lambda *a, **k: found.append(model.apply(*a, **k)) or found[0]
    )
    loss = Objective(mean=(0.4,), std=(0.3,))(recorder, variables, batch)
    (expected, aux), *_ = found
    return loss.total / loss.weight, expected, aux["masked"]

  loss, expected, masked = learn(variables, dict(image=image, valid=np.ones(2, bool), id=np.arange(2)))
  pixels = torch.from_numpy(np.array(normalise(image, (0.4,), (0.3,)))).permute(0, 3, 1, 2)
  with torch.no_grad():
    wanted = theirs(pixels, bool_masked_pos=torch.from_numpy(np.array(masked).reshape(2, -1)))
  assert relative_error(expected, wanted.reconstruction.permute(0, 2, 3, 1)) < 1e-5
  np.testing.assert_allclose(loss, wanted.loss, rtol=1e-5)
  # And back, by their names.
  zoo.save(tmp_path / "w.safetensors", "simmim/test", dataclasses.asdict(model.config), variables, layout="huggingface")
  written, state = read(tmp_path / "w.safetensors").tensors, read(tmp_path).tensors
  assert written.keys() == state.keys()
  for name, value in state.items():
    np.testing.assert_array_equal(written[name], value, err_msg=name)


def test_files_of_simmim(tmp_path):
  """Microsoft's: their encoder is that of the other files, with a name."""
  fields = dict(OURS, window_size=3, mlp_ratio=2.0, image_size=(96, 96))
  model = zoo.create("simmim/test", **fields)
  rngs = {"params": jax.random.key(0), "mask": jax.random.key(0)}
  shapes = jax.eval_shape(model.init, rngs, jnp.zeros((1, 96, 96, 3)))
  rng = np.random.default_rng(0)
  variables = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)
  zoo.save(tmp_path / "w.safetensors", "simmim/test", fields, variables, layout="microsoft")
  encoder = timm.models.SwinTransformer(
    img_size=96, window_size=3, embed_dim=8, depths=(2, 2, 4, 2), num_heads=(1, 2, 4, 8), mlp_ratio=2, num_classes=0
  )
  names = microsoft(encoder.state_dict())
  shapes = {f"encoder.{key}": tuple(value.shape) for key, value in names.items() if not key.endswith(BUFFERS)}
  shapes |= {"encoder.mask_token": (1, 1, 8), "decoder.0.weight": (3072, 64, 1, 1), "decoder.0.bias": (3072,)}
  assert {key: value.shape for key, value in read(tmp_path / "w.safetensors").tensors.items()} == shapes
  _, again = zoo.load(tmp_path / "w.safetensors", "simmim/test", layout="microsoft", **fields)
  jax.tree.map(np.testing.assert_array_equal, again, variables)
