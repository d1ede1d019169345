"""Device meshes and array sharding: axes data, fsdp and tensor under `jit`, or data parallelism under `pmap`."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from zoo import compat, partitioning
from zoo.errors import nearest
from zoo.partitioning import Tree

# Logical axis -> mesh axis; other axes are not sharded. Vectors are not sharded at all: the latency of gathering one
# costs more than its memory.
MESH_AXES = {
  **dict.fromkeys(("embed", "features", "query_embed", "key_embed"), "fsdp"),
  **dict.fromkeys(("root", "unit_input", "wide", "narrow_input"), "fsdp"),
  **dict.fromkeys(("heads", "kv_heads", "mlp"), "tensor"),
}
# The batch is sharded over both; fsdp is data parallelism that also shards the parameters (Rajbhandari et al. 2020).
BATCH = PartitionSpec(("data", "fsdp"))


def make_mesh(
  data: int,
  fsdp: int,
  tensor: int,
  devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
) -> Mesh:
  """A mesh of the given sizes; -1 for `data` takes all remaining devices.

  Raises:
    ValueError: the product of the sizes is not the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = dict(data=data, fsdp=fsdp, tensor=tensor)
  if wrong := {axis: n for axis, n in sizes.items() if n < 1 and (axis, n) != ("data", -1)}:
    raise ValueError(
      f"the mesh has {wrong}; wanted at least 1 device along each axis, or data=-1 for all remaining devices"
    )
  if data == -1:
    sizes["data"] = max(len(devices) // (fsdp * tensor), 1)
  if np.prod(list(sizes.values())) != len(devices):
    raise ValueError(f"a mesh of {sizes} needs {np.prod(list(sizes.values()))} devices, there are {len(devices)}")
  # Auto: the compiler propagates shardings through code that does not name them, such as Linen's.
  return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * 3, devices=devices)


def param_specs(params: dict, mesh: Mesh, axes: partitioning.Axes) -> dict:
  """The `PartitionSpec` of every parameter, by its path.

  Args:
    params: arrays or shapes. mesh: from `make_mesh`.
    axes: the `LOGICAL_AXES` of the model's family.

  Raises:
    ValueError: sizes that are not divisible by their mesh axis, all of them at once.
  """
  faults, specs, uneven = [], {}, {}
  shapes = partitioning.flatten(params)
  named = jax.tree_util.tree_leaves_with_path(
    partitioning.logical_axes(params, axes), is_leaf=lambda node: type(node) is tuple
  )
  for path, names in named:
    path = partitioning.path_name(path)
    matrix = len([name for name in names if name != "layers"]) > 1
    mesh_axes = [MESH_AXES.get(name) if matrix else None for name in names]
    for size, name, axis in zip(shapes[path].shape, names, mesh_axes, strict=True):
      if axis and size % mesh.shape[axis]:
        uneven.setdefault((name, size, axis), []).append(path)
    used = [axis for axis in mesh_axes if axis]
    if len(set(used)) < len(used):
      faults.append(f"{path}: logical axes {names} map to mesh axes {mesh_axes}; wanted each mesh axis once at most")
      continue
    specs[path] = PartitionSpec(*mesh_axes)
  faults += [
    f"{name} is {size}, not divisible by the {mesh.shape[axis]} devices on mesh axis {axis!r}: {paths[0]}"
    + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
    for (name, size, axis), paths in uneven.items()
  ]
  if faults:
    raise ValueError("\n".join(faults))
  return specs


def state_shardings(state: Any, mesh: Mesh, axes: partitioning.Axes) -> Any:
  """A sharding for each array of a training state: that of its parameter if it belongs to one, else replicated.

  Optimiser state, averages and parameters have paths that end in a parameter's path, and its shape.

  Args:
    state: `train.step.State`, or a model's variables, of arrays or shapes.
    mesh: from `make_mesh`. axes: the `LOGICAL_AXES` of the model's family.
  """
  params = state["params"] if isinstance(state, dict) else state.params
  specs = param_specs(params, mesh, axes)
  shapes = {path: leaf.shape for path, leaf in partitioning.flatten(params).items()}

  def shard(path: str, leaf):
    parts = path.split("/")
    for start in range(len(parts)):
      tail = "/".join(parts[start:])
      if shapes.get(tail) == leaf.shape:
        return NamedSharding(mesh, specs[tail])
    return NamedSharding(mesh, PartitionSpec())

  return partitioning.map_with_path(shard, state)


def check_batch(batch_size: int, devices: int, grad_accum_steps: int, processes: int = 1) -> None:
  """Raises ValueError where the batch cannot be split evenly over devices, accumulation steps and processes."""
  if batch_size < 1 or grad_accum_steps < 1:
    raise ValueError(
      f"batch_size is {batch_size} and grad_accum_steps is {grad_accum_steps}; wanted at least 1 of both"
    )
  multiple = devices * grad_accum_steps
  if batch_size % multiple or batch_size % processes:
    down, up = batch_size // multiple * multiple, -(-batch_size // multiple) * multiple
    raise ValueError(
      f"a global batch of {batch_size} cannot be split over {devices} devices x {grad_accum_steps} accumulation steps "
      f"on {processes} processes: {batch_size / multiple:.2f} examples a device and step; the nearest that can are "
      f"{' and '.join(str(size) for size in (down, up) if size)}"
    )


@dataclass(frozen=True)
class Jit:
  """One program over all devices, partitioned by the compiler (`jax.jit` with `NamedSharding`).

  Attributes:
    mesh: from `make_mesh`.
    axes: the `LOGICAL_AXES` of the model's family.
  """

  mesh: Mesh
  axes: partitioning.Axes = field(default_factory=dict, hash=False)
  axis: None = field(default=None, init=False)

  @property
  def data_devices(self) -> int:
    """The number of devices that the batch is sharded over."""
    return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

  def init(self, make_state: Callable[..., Tree], *args: Any) -> Tree:
    """`make_state(*args)`, computed sharded: no device holds more than its part."""
    shardings = state_shardings(jax.eval_shape(make_state, *args), self.mesh, self.axes)
    return jax.jit(make_state, out_shardings=shardings)(*args)

  def abstract(self, state: Tree) -> Tree:
    """Shapes of a state with the shardings of `init`, as the target of `Checkpoints.restore`."""
    return jax.tree.map(
      lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
      state,
      state_shardings(state, self.mesh, self.axes),
    )

  def put(self, tree: Tree) -> Tree:
    """Host arrays that are equal in all processes to replicated device arrays."""
    # As constants of a program, since `device_put` does not reach devices of other processes.
    return jax.jit(lambda: tree, out_shardings=NamedSharding(self.mesh, PartitionSpec()))()

  def put_batch(self, batch: dict) -> dict:
    """The part of a batch that this process has loaded, to global arrays."""
    sharding, processes = NamedSharding(self.mesh, BATCH), jax.process_count()
    return {
      k: jax.make_array_from_process_local_data(sharding, v, (len(v) * processes, *v.shape[1:]))
      for k, v in batch.items()
    }

  def _cutting(self, manual: frozenset[str] = frozenset()):
    """The scope of a traced step; `manual` are mesh axes that a `shard_map` around it has split already."""
    mesh = jax.sharding.get_abstract_mesh() if manual else self.mesh
    batch = tuple(axis for axis in BATCH[0] if axis not in manual)

    def put(spec: PartitionSpec) -> Callable:
      return lambda tree: jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, spec))

    platform = partitioning.platform_of(self.mesh.devices.flat[0])
    split = functools.partial(self._split, mesh, {"batch": batch, "heads": ("tensor",)})
    return partitioning.sharding_scope(put(PartitionSpec(batch)), put(PartitionSpec()), split, platform)

  def _split(
    self,
    mesh: Any,
    mesh_axes: dict[str, tuple[str, ...]],
    function: Callable,
    in_axes: Sequence[Sequence],
    out_axes: Sequence,
    *args: jax.Array,
  ) -> jax.Array:
    """`zoo.partitioning.split` by `jax.shard_map`; an axis that the mesh does not divide stays whole on each device."""
    sizes = {name: math.prod(mesh.shape[axis] for axis in axes) for name, axes in mesh_axes.items()}
    # (name, size) of each axis; of a flat one the size that is given with the name.
    named = [
      axis if isinstance(axis, tuple) else (axis, n)
      for a, axes in zip(args, in_axes, strict=True)
      for n, axis in zip(a.shape, axes, strict=True)
    ]
    uneven = {name for name, n in named if name and n % sizes[name]}

    def spec(axes: Sequence) -> PartitionSpec:
      names = [axis[0] if isinstance(axis, tuple) else axis for axis in axes]
      return PartitionSpec(*(None if name in uneven else mesh_axes.get(name) for name in names))

    def part(*parts: jax.Array) -> jax.Array:
      return function(jax.lax.axis_index(self.mesh.axis_names), *parts)

    # Pallas calls do not say along which mesh axes their results vary, so this cannot be checked.
    places, axes = tuple(map(spec, in_axes)), {axis for axes in mesh_axes.values() for axis in axes}
    return jax.shard_map(part, mesh=mesh, in_specs=places, out_specs=spec(out_axes), axis_names=axes, check_vma=False)(
      *args
    )

  def sum_once(self, sum_gradients: Callable) -> Callable:
    """`sum_gradients` of `train.step` over parts of a batch, whose sums cross the data axis once.

    The compiler alone would sum every part's gradients over the devices. It still does with statistics of a batch,
    which are of the whole part; with a tensor axis, along which it would here shard activations; and before JAX 0.8.
    """

    def local(state: Any, batch: dict, key: jax.Array) -> tuple[dict, dict, dict]:
      mesh, specs = jax.sharding.get_abstract_mesh(), param_specs(state.params, self.mesh, self.axes)

      def as_params(tree: dict) -> dict:
        return partitioning.map_with_path(
          lambda path, a: jax.lax.with_sharding_constraint(a, NamedSharding(mesh, specs[path])), tree
        )

      with self._cutting(frozenset({"data"})):
        grads, totals, model_state = sum_gradients(state._replace(params=as_params(state.params)), batch, key)
      grads = as_params(grads)
      return *jax.lax.psum((grads, totals), "data"), model_state

    def summed(state: Any, batch: dict, key: jax.Array) -> tuple[dict, dict, dict]:
      can = compat.CONSTRAINS_IN_SHARD_MAP and not state.model_state and self.mesh.shape["tensor"] == 1
      if not can or self.mesh.shape["data"] == 1:
        return sum_gradients(state, batch, key)
      everywhere = PartitionSpec()
      return jax.shard_map(
        local,
        mesh=self.mesh,
        in_specs=(everywhere, PartitionSpec("data"), everywhere),
        out_specs=everywhere,
        axis_names={"data"},
        check_vma=False,
      )(state, batch, key)

    return summed

  def compile(self, step: Callable) -> Callable:
    """Jits `step(state, batch, key)`; the state is donated."""

    def in_place(state, batch, key):
      with self._cutting():
        new, metrics = step(state, batch, key)
      # Without the constraint the compiler may shard a bias that was replicated.
      return jax.lax.with_sharding_constraint(new, state_shardings(new, self.mesh, self.axes)), metrics

    return jax.jit(in_place, donate_argnums=0)

  def compile_eval(self, step: Callable) -> Callable:
    """Jits `step(variables, batch)`."""

    def sharded(variables, batch):
      with self._cutting():
        return step(variables, batch)

    return jax.jit(sharded, out_shardings=NamedSharding(self.mesh, PartitionSpec()))

  def gather(self, tree: Tree) -> Tree:
    """The arrays as a checkpoint stores them: unchanged."""
    return tree

  scatter = gather

  def host(self, tree: Tree) -> Tree:
    """Whole arrays on the host; of sharded arrays all processes must call this together."""
    if not all(a.is_fully_replicated for a in jax.tree.leaves(tree) if isinstance(a, jax.Array)):
      tree = jax.jit(lambda t: t, out_shardings=NamedSharding(self.mesh, PartitionSpec()))(tree)
    return jax.device_get(tree)


@dataclass(frozen=True)
class Pmap:
  """The same program on every device, with a copy of the state and a part of the batch (`jax.pmap`)."""

  axis: str = "devices"
  sum_once: None = field(default=None, init=False)  # the step sums over devices by the axis's name

  @property
  def _sharding(self) -> NamedSharding:
    """The sharding of pmap's inputs: the first axis over the devices of this process."""
    return NamedSharding(Mesh(np.array(jax.local_devices()), (self.axis,)), PartitionSpec(self.axis))

  @property
  def data_devices(self) -> int:
    """The number of devices that the batch is sharded over."""
    return jax.device_count()

  def init(self, make_state: Callable[..., Tree], *args: Any) -> Tree:
    """`make_state(*args)` on each device."""
    return self.scatter(jax.jit(make_state)(*args))

  def abstract(self, state: Tree) -> Tree:
    """Shapes of a state as `gather` returns it, as the target of `Checkpoints.restore`."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), state)

  def put(self, tree: Tree) -> Tree:
    """Arrays to one copy for each device, along a new first axis."""
    copies = jax.local_device_count()

    def copy(tree):
      return jax.tree.map(lambda a: jnp.broadcast_to(a, (copies, *a.shape)), tree)

    replicated = jax.device_put(tree, NamedSharding(self._sharding.mesh, PartitionSpec()))
    return jax.jit(copy, out_shardings=self._sharding)(replicated)

  def put_batch(self, batch: dict) -> dict:
    """The batch [batch, ...] of this process to [devices, batch / devices, ...]."""
    devices = jax.local_device_count()
    return {k: jax.device_put(v.reshape(devices, -1, *v.shape[1:]), self._sharding) for k, v in batch.items()}

  def _scoped(self, step: Callable) -> Callable:
    def scoped(*args):
      with partitioning.sharding_scope(platform=partitioning.platform_of(jax.local_devices()[0])):
        return step(*args)

    return scoped

  def compile(self, step: Callable) -> Callable:
    """Compiles `step(state, batch, key)`; the state is donated."""
    return jax.pmap(self._scoped(step), axis_name=self.axis, in_axes=(0, 0, 0), donate_argnums=0)

  def compile_eval(self, step: Callable) -> Callable:
    """Compiles `step(variables, batch)`."""
    return jax.pmap(self._scoped(step), axis_name=self.axis)

  def gather(self, tree: Tree) -> Tree:
    """One copy, as a checkpoint stores it."""
    return jax.tree.map(lambda a: a.addressable_data(0)[0], tree)

  scatter = put

  def host(self, tree: Tree) -> Tree:
    """One copy, on the host."""
    return jax.device_get(self.gather(tree))


def parallel(
  name: str = "jit", data: int = -1, fsdp: int = 1, tensor: int = 1, *, axes: partitioning.Axes | None = None
) -> Jit | Pmap:
  """The parallelism of a training run.

  Args:
    name: "jit" or "pmap".
    data, fsdp, tensor: sizes of the mesh; -1 for `data` takes all remaining devices. pmap is data parallel only.
    axes: the `LOGICAL_AXES` of the model's family.

  Raises:
    ValueError: unknown name, or sizes that do not fit.
  """
  if name == "jit":
    mesh = make_mesh(data, fsdp, tensor)
    if any(len({d.process_index for d in group}) > 1 for group in mesh.devices.reshape(-1, tensor)):
      raise ValueError(
        f"tensor={tensor} would split a model over processes that read different data; wanted at most "
        f"{jax.local_device_count()}; fsdp shards parameters over any number of devices"
      )
    return Jit(mesh, axes or {})
  if name == "pmap":
    if (fsdp, tensor) != (1, 1) or data not in (-1, jax.device_count()):
      raise ValueError("pmap is data parallel over all devices: data=-1, fsdp=1, tensor=1; for other meshes use jit")
    if jax.process_count() > 1:
      raise ValueError("pmap is for one process; several processes run under jit")
    return Pmap()
  raise ValueError(f"unknown parallel {name!r}{nearest(name, ('jit', 'pmap'))}")
