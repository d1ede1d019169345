"""The training step: a pure function made from an objective and an optimiser.

It knows neither config nor mesh nor logging. Compile it with `jax.jit` over sharded arrays, where sums over the
batch are global by themselves, or with `jax.pmap`, where `axis` names the devices to sum over.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from zoo.layers.norms import STATISTICS, add_gradients


class State(NamedTuple):
  """All that training changes.

  Attributes:
    step: number of steps done, int32 scalar.
    params: the model's parameters.
    model_state: its other collections, such as running statistics; often empty.
    opt_state: of the optimiser.
    ema_params: exponential moving average of the parameters, or None.
    skipped_steps: number of steps left out because loss or gradient was not finite, int32 scalar.
  """

  step: jax.Array
  params: dict
  model_state: dict
  opt_state: optax.OptState
  ema_params: dict | None
  skipped_steps: jax.Array


def init_state(variables: dict, optimizer: optax.GradientTransformation, ema: bool = False) -> State:
  """The state before the first step, from what `model.init` returned."""
  rest = dict(variables)
  params = rest.pop("params")
  average = jax.tree.map(jnp.copy, params) if ema else None  # a copy: the step gives its input buffers away
  return State(jnp.int32(0), params, rest, optimizer.init(params), average, jnp.int32(0))


def make_step(
  objective: Callable,
  model,
  optimizer: optax.GradientTransformation,
  *,
  grad_accum_steps: int = 1,
  ema_decay: float = 0.0,
  skip_nonfinite: bool = False,
  freeze: Callable[[dict], dict] = lambda params: params,
  axis: str | None = None,
) -> Callable[[State, dict, jax.Array], tuple[State, dict]]:
  """Makes `step(state, batch, root_key) -> (state, metrics)`.

  The gradient is that of the mean loss over the whole global batch: sums of losses and weights are added over
  accumulation steps and devices, and divided once.

  Args:
    objective: see `train.objectives`.
    model: what the objective applies.
    optimizer: from gradients of the mean to updates.
    grad_accum_steps: cut the batch into so many parts, to need less memory.
    ema_decay: of the average of the parameters; 0 for none.
    skip_nonfinite: leave parameters and optimiser as they were when loss or gradient is not finite, and count it.
    freeze: stops the gradient of parameters that do not train, which spares their backward pass.
    axis: the name of pmap's axis.

  Returns:
    the step; its metrics are scalars: loss, the objective's metrics (means), grad_norm, param_norm, weight.
  """

  def sums(params, statistics, variables, part, key):
    loss = objective(model, {"params": freeze(params), **variables, **statistics}, part, key)
    return loss.total, loss

  def step(state: State, batch: dict, root_key: jax.Array) -> tuple[State, dict]:
    key = jax.random.fold_in(root_key, state.step)

    def add_part(carry, part):
      grads, totals, variables = carry
      # Some norms keep statistics of the backward pass, which leave it as gradients; those of all others are 0.
      statistics = {name: tree for name, tree in variables.items() if name == STATISTICS}
      gradient = jax.grad(sums, (0, 1), has_aux=True)
      (part_grads, changes), loss = gradient(state.params, statistics, variables, part, key)
      part_totals = {"loss": loss.total, "weight": loss.weight, **loss.metrics}
      added = jax.tree.map(jnp.add, (grads, totals), (part_grads, part_totals))
      changed = {name: add_gradients(loss.variables[name], change) for name, change in changes.items()}
      return (*added, loss.variables | changed), None

    def zeros(batch):
      _, loss = jax.eval_shape(sums, state.params, {}, state.model_state, batch, key)
      totals = {"loss": loss.total, "weight": loss.weight, **loss.metrics}
      return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), (state.params, totals))

    if grad_accum_steps == 1:
      (grads, totals, variables), _ = add_part((*zeros(batch), state.model_state), batch)
    else:
      # Part i takes every n-th example, so that each device cuts up what it already holds.
      parts = jax.tree.map(lambda a: a.reshape(-1, grad_accum_steps, *a.shape[1:]).swapaxes(0, 1), batch)
      first = jax.tree.map(lambda a: a[0], parts)
      (grads, totals, variables), _ = jax.lax.scan(add_part, (*zeros(first), state.model_state), parts)
    if axis:
      grads, totals = jax.lax.psum((grads, totals), axis)
      variables = jax.lax.pmean(variables, axis)

    weight = totals.pop("weight")
    divisor = jnp.maximum(weight, 1e-9)  # a batch of padding alone has loss 0 and gradient 0
    grads, metrics = jax.tree.map(lambda a: a / divisor, (grads, totals))
    grad_norm = optax.global_norm(grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = optax.incremental_update(params, state.ema_params, 1 - ema_decay) if ema_decay else state.ema_params
    metrics |= {"weight": weight, "grad_norm": grad_norm, "param_norm": optax.global_norm(params)}
    new = State(state.step + 1, params, variables, opt_state, ema, state.skipped_steps)
    if skip_nonfinite:
      finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm)
      kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
      new = kept._replace(step=new.step, skipped_steps=state.skipped_steps + ~finite)
      metrics["skipped_steps"] = new.skipped_steps
    return new, metrics

  return step


def make_eval_step(objective: Callable, model, *, axis: str | None = None) -> Callable:
  """Makes `step(variables, batch) -> sums`: loss, weight and the objective's metrics, summed over the batch."""

  def step(variables: dict, batch: dict) -> dict:
    loss = objective(model, variables, batch, None)
    totals = {"loss": loss.total, "weight": loss.weight, **loss.metrics}
    return jax.lax.psum(totals, axis) if axis else totals

  return step
