"""Where arrays live: a mesh with the axes data, fsdp and tensor under `jit`, or one copy a device under `pmap`."""

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from queue import Full, Queue

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from zoo import partitioning
from zoo.errors import nearest

# Logical axis -> mesh axis; what is not named here is not cut. Vectors are not cut at all: gathering one costs more
# than its bytes.
MESH_AXES = {
  **dict.fromkeys(("embed", "features", "query_embed", "key_embed"), "fsdp"),
  **dict.fromkeys(("root", "unit_input", "wide", "narrow_input"), "fsdp"),
  **dict.fromkeys(("heads", "kv_heads", "mlp"), "tensor"),
}
# The batch is cut over both; fsdp is data parallelism that also cuts the parameters (Rajbhandari et al. 2020).
BATCH = PartitionSpec(("data", "fsdp"))


def make_mesh(data: int, fsdp: int, tensor: int, devices=None) -> Mesh:
  """A mesh of the given sizes; -1 for `data` takes all devices that the others leave.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = dict(data=data, fsdp=fsdp, tensor=tensor)
  if wrong := {axis: n for axis, n in sizes.items() if n < 1 and (axis, n) != ("data", -1)}:
    raise ValueError(f"the mesh has {wrong}; wanted at least 1 device along each axis, data=-1 for all that are left")
  if data == -1:
    sizes["data"] = max(len(devices) // (fsdp * tensor), 1)
  if np.prod(list(sizes.values())) != len(devices):
    raise ValueError(f"a mesh of {sizes} needs {np.prod(list(sizes.values()))} devices, there are {len(devices)}")
  # Auto: the compiler propagates shardings through code that does not mention them, such as Linen's.
  return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * 3, devices=devices)


def param_specs(params: dict, mesh: Mesh, axes: partitioning.Axes) -> dict:
  """The `PartitionSpec` of every parameter, by its path.

  Args:
    params: arrays or shapes. mesh: from `make_mesh`.
    axes: the `LOGICAL_AXES` of the model's family.

  Raises:
    ValueError: a size that its mesh axis does not divide, all of them at once.
  """
  faults, specs = [], {}
  shapes = partitioning.flatten(params)
  named = jax.tree_util.tree_leaves_with_path(
    partitioning.logical_axes(params, axes), is_leaf=lambda node: type(node) is tuple
  )
  for path, names in named:
    path = partitioning.path_name(path)
    matrix = len([name for name in names if name != "layers"]) > 1
    cut = [MESH_AXES.get(name) if matrix else None for name in names]
    for size, name, axis in zip(shapes[path].shape, names, cut, strict=True):
      if axis and size % mesh.shape[axis]:
        faults.append(f"{path}: {name} is {size}, which {mesh.shape[axis]} devices on mesh axis {axis!r} do not divide")
    specs[path] = PartitionSpec(*cut)
  if faults:
    raise ValueError("\n".join(faults))
  return specs


def state_shardings(state, mesh: Mesh, axes: partitioning.Axes):
  """A sharding for each array of a training state: like its parameter's where it belongs to one, else replicated.

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
  """Raises ValueError, with global and per-device sizes, where the batch cannot be cut evenly."""
  if batch_size < 1 or grad_accum_steps < 1:
    raise ValueError(
      f"batch_size is {batch_size} and grad_accum_steps is {grad_accum_steps}; wanted at least 1 of both"
    )
  share = devices * grad_accum_steps
  if batch_size % share or batch_size % processes:
    down, up = batch_size // share * share, -(-batch_size // share) * share
    raise ValueError(
      f"a global batch of {batch_size} cannot be cut over {devices} devices x {grad_accum_steps} accumulation steps on "
      f"{processes} processes: {batch_size / share:.2f} examples a device and step; the nearest that can are "
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
    """Over how many devices the batch is cut."""
    return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

  def init(self, make_state: Callable, *args):
    """`make_state(*args)`, computed in place: no device ever holds more than its part."""
    shardings = state_shardings(jax.eval_shape(make_state, *args), self.mesh, self.axes)
    return jax.jit(make_state, out_shardings=shardings)(*args)

  def abstract(self, state):
    """Shapes of a state, with the shardings that `init` gives it: what a checkpoint is restored to."""
    return jax.tree.map(
      lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
      state,
      state_shardings(state, self.mesh, self.axes),
    )

  def put(self, tree):
    """Host arrays, the same in every process, to replicated ones."""
    # As constants of a program: `device_put` knows no devices of other processes.
    return jax.jit(lambda: tree, out_shardings=NamedSharding(self.mesh, PartitionSpec()))()

  def put_batch(self, batch: dict) -> dict:
    """The process's part of a batch to global arrays."""
    sharding, processes = NamedSharding(self.mesh, BATCH), jax.process_count()
    return {
      k: jax.make_array_from_process_local_data(sharding, v, (len(v) * processes, *v.shape[1:]))
      for k, v in batch.items()
    }

  def _cutting(self):
    def put(spec: PartitionSpec) -> Callable:
      return lambda tree: jax.lax.with_sharding_constraint(tree, NamedSharding(self.mesh, spec))

    return partitioning.sharding_scope(put(BATCH), put(PartitionSpec()))

  def compile(self, step: Callable) -> Callable:
    """For `step(state, batch, key)`: the old state's memory becomes the new one's."""

    def in_place(state, batch, key):
      with self._cutting():
        new, metrics = step(state, batch, key)
      # The new state lies as the old one did: left to itself, the compiler may cut a bias that came whole.
      return jax.lax.with_sharding_constraint(new, state_shardings(new, self.mesh, self.axes)), metrics

    return jax.jit(in_place, donate_argnums=0)

  def compile_eval(self, step: Callable) -> Callable:
    """For `step(variables, batch)`."""

    def sharded(variables, batch):
      with self._cutting():
        return step(variables, batch)

    return jax.jit(sharded, out_shardings=NamedSharding(self.mesh, PartitionSpec()))

  def gather(self, tree):
    """The whole arrays, as a checkpoint holds them: here as they are."""
    return tree

  scatter = gather

  def host(self, tree):
    """Whole arrays on the host; all processes must ask together for arrays that are cut."""
    if not all(a.is_fully_replicated for a in jax.tree.leaves(tree) if isinstance(a, jax.Array)):
      tree = jax.jit(lambda t: t, out_shardings=NamedSharding(self.mesh, PartitionSpec()))(tree)
    return jax.device_get(tree)


@dataclass(frozen=True)
class Pmap:
  """The same program on every device, each with a copy of the state and a part of the batch (`jax.pmap`)."""

  axis: str = "devices"

  @property
  def _sharding(self) -> NamedSharding:
    """What pmap wants: the first axis over this process's devices."""
    return NamedSharding(Mesh(np.array(jax.local_devices()), (self.axis,)), PartitionSpec(self.axis))

  @property
  def data_devices(self) -> int:
    """Over how many devices the batch is cut."""
    return jax.device_count()

  def init(self, make_state: Callable, *args):
    """`make_state(*args)` on each device."""
    return self.scatter(jax.jit(make_state)(*args))

  def abstract(self, state):
    """Shapes of a state as `gather` gives it: what a checkpoint is restored to."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), state)

  def put(self, tree):
    """Arrays to one copy a device, on a new first axis."""
    copies = jax.local_device_count()

    def copy(tree):
      return jax.tree.map(lambda a: jnp.broadcast_to(a, (copies, *a.shape)), tree)

    replicated = jax.device_put(tree, NamedSharding(self._sharding.mesh, PartitionSpec()))
    return jax.jit(copy, out_shardings=self._sharding)(replicated)

  def put_batch(self, batch: dict) -> dict:
    """[b, ...] of this process to [devices, b / devices, ...]."""
    devices = jax.local_device_count()
    return {k: jax.device_put(v.reshape(devices, -1, *v.shape[1:]), self._sharding) for k, v in batch.items()}

  def compile(self, step: Callable) -> Callable:
    """For `step(state, batch, key)`: the old state's memory becomes the new one's."""
    return jax.pmap(step, axis_name=self.axis, in_axes=(0, 0, 0), donate_argnums=0)

  def compile_eval(self, step: Callable) -> Callable:
    """For `step(variables, batch)`."""
    return jax.pmap(step, axis_name=self.axis)

  def gather(self, tree):
    """One copy, as a checkpoint holds it."""
    return jax.tree.map(lambda a: a.addressable_data(0)[0], tree)

  scatter = put

  def host(self, tree):
    """One copy, on the host."""
    return jax.device_get(self.gather(tree))


def parallel(
  name: str = "jit", data: int = -1, fsdp: int = 1, tensor: int = 1, *, axes: partitioning.Axes | None = None
) -> Jit | Pmap:
  """How the step runs on the devices.

  Args:
    name: "jit" or "pmap".
    data, fsdp, tensor: sizes of the mesh; -1 for `data` takes what the others leave. pmap is data parallel only.
    axes: the `LOGICAL_AXES` of the model's family.

  Raises:
    ValueError: unknown name, or sizes that do not fit.
  """
  if name == "jit":
    mesh = make_mesh(data, fsdp, tensor)
    if any(len({d.process_index for d in group}) > 1 for group in mesh.devices.reshape(-1, tensor)):
      raise ValueError(
        f"tensor={tensor} would cut one model over several processes, which read different data; wanted at most "
        f"{jax.local_device_count()}; fsdp cuts parameters over any number"
      )
    return Jit(mesh, axes or {})
  if name == "pmap":
    if (fsdp, tensor) != (1, 1) or data not in (-1, jax.device_count()):
      raise ValueError("pmap is data parallel over all devices: data=-1, fsdp=1, tensor=1; for other meshes use jit")
    if jax.process_count() > 1:
      raise ValueError("pmap is for one process; several processes run under jit")
    return Pmap()
  raise ValueError(f"unknown parallel {name!r}{nearest(name, ('jit', 'pmap'))}")


def prefetch(batches: Iterable[dict], put: Callable[[dict], dict], ahead: int = 2) -> Iterator[dict]:
  """Fetches batches and starts their transfer in a thread, up to `ahead` of who asks for them.

  So neither the pipeline nor the copies make the step wait. What fails in the thread is raised here.
  """
  queue: Queue = Queue(ahead)
  stopped = threading.Event()

  def hand_over(kind: str, value) -> None:
    while not stopped.is_set():
      try:
        return queue.put((kind, value), timeout=0.1)
      except Full:
        continue

  def work() -> None:
    try:
      for batch in batches:
        hand_over("batch", put(batch))
        if stopped.is_set():
          return
      hand_over("end", None)
    except BaseException as error:
      hand_over("error", error)

  thread = threading.Thread(target=work, daemon=True)
  thread.start()
  try:
    while True:
      kind, value = queue.get()
      if kind == "error":
        raise value
      if kind == "end":
        return
      yield value
  finally:
    stopped.set()
    thread.join()
