"""Device meshes, array sharding, and their faults."""

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from support import assert_names, raises

import zoo
from train import sharding
from train.step import init_state
from zoo import partitioning

AXES = zoo.family("vit").LOGICAL_AXES


def params(**overrides):
  model = zoo.create("vit/test", **dict(width=16, num_heads=4, mlp_dim=24, depth=2) | overrides)
  return jax.eval_shape(model.init, {"params": jax.random.key(0)}, np.zeros((1, 20, 12, 3)))["params"]


def test_mesh_sizes():
  assert dict(sharding.make_mesh(-1, 2, 2).shape) == dict(data=2, fsdp=2, tensor=2)
  assert dict(sharding.make_mesh(1, 8, 1).shape) == dict(data=1, fsdp=8, tensor=1)
  with raises(ValueError, "'tensor': 1", "6 devices", 8):
    sharding.make_mesh(3, 2, 1)
  with raises(ValueError, "'tensor': 3", "6 devices", 8):
    sharding.make_mesh(-1, 1, 3)
  with raises(ValueError, "16 devices", 8):
    sharding.make_mesh(-1, 16, 1)


def test_every_logical_and_mesh_axis_named_exists():
  families = {zoo.family(name) for name in zoo.list_models("*/test")}
  known = {name for family in families for names in family.LOGICAL_AXES.values() for name in names}
  assert set(sharding.MESH_AXES) <= known
  assert set(sharding.MESH_AXES.values()) <= set(sharding.make_mesh(-1, 1, 1).shape)


@pytest.mark.parametrize("scan", [False, True])
def test_matrices_are_sharded_and_vectors_are_not(scan):
  specs = sharding.param_specs(params(scan=scan), sharding.make_mesh(2, 2, 2), AXES)
  first, block = ((None,), "blocks") if scan else ((), "block_01")
  assert specs[f"encoder/{block}/attn/q/kernel"] == P(*first, "fsdp", "tensor", None)
  assert specs[f"encoder/{block}/attn/out/kernel"] == P(*first, "tensor", None, "fsdp")
  assert specs[f"encoder/{block}/mlp/up/kernel"] == P(*first, "fsdp", "tensor")
  assert specs[f"encoder/{block}/mlp/down/kernel"] == P(*first, "tensor", "fsdp")
  assert specs["encoder/patch/kernel"] == P(None, "fsdp")
  assert specs["head/kernel"] == P("fsdp", None)
  for path in (f"encoder/{block}/mlp/up/bias", f"encoder/{block}/norm1/scale", "encoder/cls", "head/bias"):
    assert set(specs[path]) <= {None}, path


def test_all_unshardable_axes_in_one_error():
  with pytest.raises(ValueError) as error:
    sharding.param_specs(params(num_heads=2, mlp_dim=26), sharding.make_mesh(2, 1, 4), AXES)
  # Of two blocks: kernels and biases of q; of k and v; kernels of up and down. And those of out.
  wanted = {"heads is 2": ("attn/", 5), "kv_heads is 2": ("attn/", 7), "mlp is 26": ("mlp/", 3)}
  lines = str(error.value).splitlines()
  assert {line.partition(",")[0] for line in lines} == {*wanted}
  for line in lines:
    layer, others = wanted[line.partition(",")[0]]
    assert_names(line, "4 devices", "'tensor'", f"encoder/block_00/{layer}", f"{others} more")


def test_a_mesh_axis_shards_one_axis_of_a_parameter():
  shapes = {"head": {"kernel": jax.ShapeDtypeStruct((8, 8), np.float32)}}
  with raises(ValueError, "head/kernel", "'features', 'embed'", "'fsdp', 'fsdp'"):
    sharding.param_specs(shapes, sharding.make_mesh(2, 2, 2), {"head/kernel": ("features", "embed")})


@pytest.mark.parametrize("optimizer", [optax.adamw(1.0), optax.adafactor(1.0), optax.contrib.muon(1.0)])
def test_optimiser_state_and_averages_are_sharded_as_their_parameters(optimizer):
  mesh = sharding.make_mesh(2, 2, 2)
  shapes = params()
  state = jax.eval_shape(lambda p: init_state({"params": p}, optimizer, ema=True), shapes)
  shardings = partitioning.flatten(sharding.state_shardings(state, mesh, AXES))
  specs = sharding.param_specs(shapes, mesh, AXES)
  for path, leaf in partitioning.flatten(state).items():
    of = next((p for p in specs if path.endswith(f"/{p}")), None)
    same = of and partitioning.flatten(shapes)[of].shape == leaf.shape  # Adafactor keeps rows and columns: replicated
    assert shardings[path].spec == (specs[of] if same else P()), path
  assert shardings["ema_params/encoder/block_00/mlp/up/kernel"].spec == P("fsdp", "tensor")
  assert shardings["step"].spec == P()


def test_a_batch_not_divisible_by_the_devices():
  sharding.check_batch(64, devices=8, grad_accum_steps=4)
  sharding.check_batch(64, devices=8, grad_accum_steps=4, processes=2)
  with raises(ValueError, 100, "8 devices", "4 accumulation steps", 3.12, 96, 128):
    sharding.check_batch(100, devices=8, grad_accum_steps=4)
  with raises(ValueError, "global batch of 5", 8):
    sharding.check_batch(5, devices=8, grad_accum_steps=1)


def test_invalid_parallel_settings():
  with raises(ValueError, "parallel", "'pmp'", "'pmap'"):
    sharding.parallel("pmp")
  for sizes in (dict(fsdp=2), dict(tensor=2), dict(data=4)):
    with raises(ValueError, "pmap"):
      sharding.parallel("pmap", **sizes)
  assert sharding.parallel("pmap", data=8).data_devices == 8
  assert sharding.parallel(data=2, fsdp=2, tensor=2).data_devices == 4


@pytest.mark.parametrize("name", ["jit", "pmap"])
def test_put_and_host_are_inverse(name):
  parallel = sharding.parallel(name)
  tree = {"a": np.arange(6.0, dtype=np.float32).reshape(2, 3), "b": np.int32(4)}
  jax.tree.map(np.testing.assert_array_equal, parallel.host(parallel.put(tree)), tree)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(parallel.gather(parallel.scatter(tree))), tree)
  batch = {"id": np.arange(16), "image": np.zeros((16, 2), np.uint8)}
  put = parallel.put_batch(batch)
  assert put["id"].reshape(-1).tolist() == list(range(16))
  assert {s.data.size for s in put["id"].addressable_shards} == {2}
  key = parallel.put(jax.random.key(3))
  assert jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
