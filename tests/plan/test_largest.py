"""The largest arrays of a step that does not fit: of programs whose arrays are known."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from train.plan.largest import largest_arrays
from train.plan.macs import needed_jaxpr

BATCH, WIDTH, HIDDEN, DEPTH, DEVICES = 24, 5, 7, 3, 4
MESH = Mesh(np.array(jax.devices()[:DEVICES]), "data")


def spec(shape, *axes):
  return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(MESH, PartitionSpec(*axes)))


def block(x, up):
  with jax.named_scope("mlp"):
    return x + jnp.sin(x @ up) @ up.T


def unrolled(params, batch):
  x = batch
  for i in range(DEPTH):
    with jax.named_scope(f"block_{i}"):
      x = block(x, params["up"][i])
  return jnp.square(x).sum()


def scanned(params, batch):
  with jax.named_scope("blocks"):
    return jnp.square(jax.lax.scan(lambda x, up: (block(x, up), None), batch, params["up"])[0]).sum()


def found(loss):
  arguments = dict(up=spec((DEPTH, WIDTH, HIDDEN))), spec((BATCH, WIDTH), "data")
  traced = needed_jaxpr(jax.jit(jax.grad(loss)), *arguments)
  return dict(largest_arrays(traced, dict(params=arguments[0], batch=arguments[1]), BATCH, DEVICES, most=99))


def test_arguments_by_path_as_they_are_split():
  arrays = found(unrolled)
  assert arrays[f"params/up float32[{DEPTH},{WIDTH},{HIDDEN}]"] == 4 * DEPTH * WIDTH * HIDDEN
  assert arrays[f"batch float32[{BATCH},{WIDTH}]"] == 4 * BATCH * WIDTH // DEVICES


def test_hidden_values_of_all_layers_under_the_path_of_their_module():
  """The backward pass reads the sine and the cosine of each."""
  size = 4 * DEPTH * BATCH * HIDDEN // DEVICES
  assert found(unrolled)[f"{2 * DEPTH} x block_*/mlp float32[{BATCH},{HIDDEN}]"] == 2 * size
  assert found(scanned)[f"2 x blocks/mlp float32[{DEPTH},{BATCH},{HIDDEN}]"] == 2 * size


def test_what_is_recomputed_is_not_kept():
  def loss(params, batch):
    return jax.checkpoint(scanned)(params, batch)

  assert not [name for name in found(loss) if name.startswith("2 x ")]


def test_the_largest_come_first():
  arrays = list(found(unrolled).values())
  assert arrays == sorted(arrays, reverse=True)
