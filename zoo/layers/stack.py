"""A stack of blocks: a Python loop or a scan, with any rematerialisation policy.

A loop gives parameters `block_00`, `block_01`, ...; a scan compiles one block whatever the depth and keeps
their parameters stacked in `blocks`, on a leading axis L. `stack_params` and `unstack_params` convert between the
two.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zoo.errors import nearest
from zoo.kernels.common import KERNEL_OUTPUT
from zoo.layers.norms import BACKWARD_STATISTICS, STATISTICS
from zoo.partitioning import STACKED

_UNSTACKED = re.compile(r"block_\d+")


def remat_policy(name: str) -> Callable | None:
  """A `jax.checkpoint` policy by its name in `jax.checkpoint_policies`.

  "dots_saveable" keeps what a kernel computes too, in the place of the products that it contains.

  Raises:
    ValueError: there is no policy of that name that needs no arguments.
  """
  known = [
    n for n in dir(jax.checkpoint_policies) if not n.startswith(("_", "save_", "offload")) and not n.endswith("_names")
  ]
  if name not in known:
    raise ValueError(f"unknown remat policy {name!r}{nearest(name, ['none', *known])}")
  policies = jax.checkpoint_policies
  policy = getattr(policies, name)
  if name != "dots_saveable":
    return policy
  return policies.save_from_both_policies(policy, policies.save_only_these_names(KERNEL_OUTPUT))


def run_blocks(
  make_block: functools.partial,
  x: jax.Array,
  shared_inputs: Any = None,
  *,
  drop_path_rates: np.ndarray,
  block_inputs: Any = None,
  scan: bool = False,
  remat: str = "none",
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Runs a stack of blocks; called inside a compact module, whose children the blocks become.

  Args:
    make_block: a `functools.partial` of a module class. Its call takes `(x, drop_path_rate, shared_inputs,
      block_inputs)` and returns `(x, aux)`.
    x: the input of the first block.
    shared_inputs: a tree of arrays that every block gets, such as masks.
    drop_path_rates: [L], the rate of stochastic depth of each block, which gets None for 0. Or [L, n], where a block
      has n rates.
    block_inputs: a tree of arrays [L, ...], or a list of L trees; each block gets its part, such as the memory it
      reads.
    scan: compile one block and loop over stacked parameters, instead of unrolling.
    remat: what to keep for the backward pass: "none" keeps everything; else the name of a policy in
      `jax.checkpoint_policies`, such as "nothing_saveable" or "dots_with_no_batch_dims_saveable".

  Returns:
    the last output, and aux: `block_00` (the block's output), `block_00/weights`, ...
  """
  cls, kwargs = make_block.func, make_block.keywords
  if remat != "none":
    # Inside a scan the loop itself keeps XLA from undoing the rematerialisation by common subexpressions.
    cls = nn.remat(cls, policy=remat_policy(remat), prevent_cse=not scan)
  aux = {}
  if not scan:
    for i, rate in enumerate(drop_path_rates.tolist()):
      own = block_inputs[i] if isinstance(block_inputs, list) else _slice(block_inputs, i)
      rate = [r or None for r in rate] if isinstance(rate, list) else rate or None
      x, block_aux = cls(name=f"block_{i:02d}", **kwargs)(x, rate, shared_inputs, own)
      aux |= _named(i, x, block_aux)
    return x, aux

  def step(block: Any, x: jax.Array, *inputs: Any):
    x, block_aux = block(x, *inputs)
    return x, (x, block_aux)

  scanned: Any = nn.scan(
    step,
    variable_axes={"params": 0, STATISTICS: 0, BACKWARD_STATISTICS: 0},
    split_rngs={"params": True, "dropout": True},
    in_axes=(0, nn.broadcast, 0),  # pyright: ignore[reportArgumentType] (Linen declares int)
    length=len(drop_path_rates),
  )
  # Where all rates are 0, None leaves stochastic depth out of the program.
  rates = jnp.asarray(drop_path_rates, jnp.float32) if np.any(drop_path_rates) else None
  if isinstance(block_inputs, list):
    block_inputs = jax.tree.map(lambda *parts: jnp.stack(parts), *block_inputs)
  x, outputs = scanned(cls(name=STACKED, **kwargs), x, rates, shared_inputs, block_inputs)
  for i in range(len(drop_path_rates)):
    aux |= _named(i, *_slice(outputs, i))
  return x, aux


def _named(i: int, x: jax.Array, block_aux: dict) -> dict[str, jax.Array]:
  """The output of block i and its aux, by the names they have in the aux of the stack."""
  return {f"block_{i:02d}": x} | {f"block_{i:02d}/{name}": value for name, value in block_aux.items()}


def _slice(tree, i: int):
  return jax.tree.map(lambda a: a[i], tree)


def stack_params(params: dict) -> dict:
  """The parameters of a looped model as those of a scanned one: `block_00`, ... become `blocks`."""
  names = sorted((n for n in params if _UNSTACKED.fullmatch(n)), key=lambda n: int(n[6:]))
  rest = {n: stack_params(p) if isinstance(p, dict) else p for n, p in params.items() if n not in names}
  if not names:
    return rest
  # Host arrays stay on the host, where stacking needs no compiling.
  stack = np.stack if isinstance(jax.tree.leaves(params)[0], np.ndarray) else jnp.stack
  return rest | {STACKED: jax.tree.map(lambda *p: stack(p), *(params[n] for n in names))}


def unstack_params(params: dict) -> dict:
  """The inverse of `stack_params`."""
  result = {}
  for name, value in params.items():
    if name == STACKED:
      depth = jax.tree.leaves(value)[0].shape[0]
      for i in range(depth):
        result[f"block_{i:02d}"] = jax.tree.map(lambda p, i=i: p[i], value)
    else:
      result[name] = unstack_params(value) if isinstance(value, dict) else value
  return result
