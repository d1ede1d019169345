"""Where weights come from: files of several formats, Hugging Face directories, runs."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors
from support import assert_bit_identical, raises, random_variables

import zoo
from train.checkpoint import Checkpoints
from train.step import State
from zoo.weights import WeightsError, tables, write_back


def test_npz(tmp_path):
  model, variables = random_variables("vit/test")
  table = tables.of("vit").tables(model.config)["timm"]
  np.savez(tmp_path / "w.npz", **write_back(variables["params"], table))
  assert_bit_identical(zoo.load(tmp_path / "w.npz", "vit/test", layout="timm")[1], variables)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_a_truncated_file_is_named(tmp_path, suffix, part):
  path = tmp_path / f"weights{suffix}"
  content = dict(weight=np.random.default_rng(0).normal(size=(50, 50)))
  np.savez(path, **content) if suffix == ".npz" else safetensors.save_file(content, path)
  path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
  with raises(WeightsError, f"weights{suffix}", "truncated"):
    zoo.load(path, "vit/test", layout="timm")


def test_pytorch_files_without_pytorch(tmp_path, monkeypatch):
  (tmp_path / "w.pth").write_bytes(b"")
  monkeypatch.setitem(sys.modules, "torch", None)
  with raises(WeightsError, "w.pth", "pip install torch"):
    zoo.load(tmp_path / "w.pth", "vit/test", layout="timm")


def test_no_such_file(tmp_path):
  (tmp_path / "weights.safetensors").touch()
  with raises(WeightsError, "wieghts.safetensors", "'weights.safetensors'"):
    zoo.load(tmp_path / "wieghts.safetensors")
  with raises(WeightsError, "'.h5'", ".safetensors"):
    (tmp_path / "w.h5").touch()
    zoo.load(tmp_path / "w.h5")


def test_a_foreign_file_needs_a_model_and_a_layout(tmp_path):
  _, variables = random_variables("vit/test")
  path = tmp_path / "w.safetensors"
  zoo.save(path, "vit/test", {}, variables, layout="timm")
  with raises(WeightsError, "w.safetensors", "model"):
    zoo.load(path)
  with raises(WeightsError, "'timm'"):
    zoo.load(path, "vit/test")
  with raises(WeightsError, "layout", "'flax'"):
    zoo.load(path, "vit/test", layout="flax")
  with raises(WeightsError, "huggingface", "'timm'"):
    zoo.load(path, "vit/test", layout="huggingface")


def huggingface(directory, name, overrides, **changes):
  """Writes one: two files and an index, as large models have."""
  model, variables = random_variables(name, **overrides)
  family = tables.of(name)
  written = write_back(variables["params"], family.tables(model.config)["huggingface"])
  directory.mkdir()
  parts = dict(list(written.items())[::2]), dict(list(written.items())[1::2])
  for i, part in enumerate(parts):
    safetensors.save_file(part, directory / f"part{i}.safetensors")
  index = {key: f"part{i}.safetensors" for i, part in enumerate(parts) for key in part}
  (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
  names = family.HUGGINGFACE["fields"]
  config = {names[k]: getattr(model.config, k) for k in names}
  config["model_type"] = next(iter(family.HUGGINGFACE["model_types"]))
  config |= {b: config[a] for a, b in family.HUGGINGFACE["equal"].items()}
  (directory / "config.json").write_text(json.dumps(config | changes))
  return model, variables


IMAGES = dict(norm_eps=1e-12, num_channels=2, image_size=(8, 12))

MARIAN = dict(
  head_bias=True,
  vocab_size=23,
  max_length=14,
  pad_token_id=5,
  bos_token_id=5,
  eos_token_id=0,
  activation="swish",
  scale_embedding=False,
)


@pytest.mark.parametrize("name, overrides", [("vit/test", IMAGES), ("mae/test", IMAGES), ("transformer/test", MARIAN)])
def test_a_huggingface_directory_determines_its_model(tmp_path, name, overrides):
  model, variables = huggingface(tmp_path / "hf", name, overrides)
  again, loaded = zoo.load(tmp_path / "hf")
  assert again == model
  assert_bit_identical(loaded, variables)


def test_a_huggingface_directory_that_is_another_model(tmp_path):
  huggingface(tmp_path / "hf", "vit/test", {})
  with raises(WeightsError, "hidden_size", 24, "vit/ti16", "width", 192):
    zoo.load(tmp_path / "hf", "vit/ti16")
  huggingface(tmp_path / "other", "vit/test", {}, model_type="clip")
  with raises(WeightsError, "model_type", "'clip'", "bert, ", "vit_mae", "swinv2", ", vit"):
    zoo.load(tmp_path / "other")
  huggingface(tmp_path / "odd", "vit/test", {"width": 28})
  with raises(WeightsError, "vit", "'width': 28", "name"):
    zoo.load(tmp_path / "odd")
  huggingface(tmp_path / "uneven", "transformer/test", {"head_bias": True}, decoder_attention_heads=2)
  with raises(WeightsError, "encoder_attention_heads", 4, "decoder_attention_heads", 2):
    zoo.load(tmp_path / "uneven")
  (tmp_path / "odd" / "model.safetensors.index.json").unlink()
  with raises(WeightsError, "model.safetensors"):
    zoo.load(tmp_path / "odd")


def run_directory(workdir, variables, ema=None, model=None):
  """As `train.loop` writes it."""
  config = {"model": model or {"name": "vit/test", "head_norm": "batch"}}
  workdir.mkdir()
  (workdir / "config.json").write_text(json.dumps(config))
  checkpoints = Checkpoints(workdir)
  rest = {k: v for k, v in variables.items() if k != "params"}
  for step in (2, 10):
    params = jax.tree.map(lambda p, step=step: p * step, variables["params"])
    state = State(jnp.int32(step), params, rest, (jnp.zeros(3),), ema, jnp.int32(0))
    checkpoints.save(state, dict(step=step, config=config))
  checkpoints.close()


def test_a_run_of_ours(tmp_path):
  model, variables = random_variables("vit/test", head_norm="batch")
  run_directory(tmp_path / "run", variables, ema=variables["params"])
  newest = variables | {"params": jax.tree.map(lambda p: p * 10, variables["params"])}
  for path in ("run", "run/checkpoints", "run/checkpoints/10"):
    again, loaded = zoo.load(tmp_path / path)
    assert again == model
    assert_bit_identical(loaded, newest)
  assert_bit_identical(zoo.load(tmp_path / "run", average=True)[1], variables)


def test_a_scanned_run_of_ours(tmp_path):
  model = {"name": "mae/test", "scan": True}
  _, variables = random_variables("mae/test", scan=True)
  run_directory(tmp_path / "run", variables, model=model)
  assert_bit_identical(
    zoo.load(tmp_path / "run" / "checkpoints" / "2")[1]["params"], jax.tree.map(lambda p: p * 2, variables["params"])
  )
  with raises(WeightsError, "average"):
    zoo.load(tmp_path / "run", average=True)
  with raises(WeightsError, tmp_path, "Hugging Face"):
    zoo.load(tmp_path)
  for file in (tmp_path / "run" / "checkpoints" / "10" / "state").rglob("*"):
    if file.is_file():
      file.write_bytes(b"")
  with raises(WeightsError, "checkpoints/10"):
    zoo.load(tmp_path / "run")
