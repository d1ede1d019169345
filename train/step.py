"""The training step: a pure function made from an objective and an optimiser.

It depends on no config, mesh or log. Compile it with `jax.jit` over sharded arrays, where sums over the batch are
global, or with `jax.pmap`, where `axis` names the devices to sum over.
"""

from collections.abc import Callable
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from train.objectives import Loss
from zoo.layers.norms import BACKWARD_STATISTICS


class State(NamedTuple):
  """Everything that a training step changes.

  Attributes:
    step: number of completed steps, int32 scalar.
    params: the model's parameters.
    model_state: its other collections, such as running statistics; often empty.
    opt_state: state of the optimiser.
    ema_params: exponential moving average of the parameters, or None.
    skipped_steps: number of steps left out because loss or gradient was not finite, int32 scalar.
  """

  step: jax.Array
  params: dict
  model_state: dict
  opt_state: optax.OptState
  ema_params: dict | None
  skipped_steps: jax.Array

  def eval_variables(self) -> dict:
    """The variables to evaluate and export: with the averaged parameters if there is an average."""
    return {"params": self.params if self.ema_params is None else self.ema_params, **self.model_state}


def init_state(variables: dict, optimizer: optax.GradientTransformation, ema: bool = False) -> State:
  """The state before the first step, from what `model.init` returned."""
  model_state = dict(variables)
  params = model_state.pop("params")
  ema_params = jax.tree.map(jnp.copy, params) if ema else None  # a copy: the step donates its input buffers
  return State(jnp.int32(0), params, model_state, optimizer.init(params), ema_params, jnp.int32(0))


def make_step(
  objective: Callable[..., Loss],
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  *,
  grad_accum_steps: int = 1,
  ema_decay: float = 0.0,
  skip_nonfinite: bool = False,
  freeze: Callable[[dict], dict] = lambda params: params,
  axis: str | None = None,
  sum_once: Callable[[Callable], Callable] | None = None,
) -> Callable[[State, dict, jax.Array], tuple[State, dict]]:
  """Makes `step(state, batch, root_key) -> (state, metrics)`.

  The gradient is that of the mean loss over the whole global batch: sums of losses and weights are added over
  accumulation steps and devices, and divided once.

  Args:
    objective: see `train.objectives`.
    model: the model that the objective applies.
    optimizer: from gradients of the mean loss to updates.
    grad_accum_steps: number of parts that the batch is processed in, to need less memory.
    ema_decay: of the average of the parameters; 0 for none.
    skip_nonfinite: if loss or gradient is not finite, keep parameters and optimiser state unchanged and count the step.
    freeze: stops the gradients of frozen parameters, so that their backward pass is not computed.
    axis: the name of pmap's axis.
    sum_once: makes the sum over accumulation steps and devices of the one over accumulation steps
      (`train.sharding.Jit.sum_once`); None for what the compiler makes of it.

  Returns:
    the step; its metrics are scalars: loss, the objective's metrics (means), grad_norm, param_norm, weight.
  """
  sum_gradients = make_sum_gradients(objective, model, grad_accum_steps, freeze)
  if sum_once and grad_accum_steps > 1:
    sum_gradients = sum_once(sum_gradients)

  def step(state: State, batch: dict, root_key: jax.Array) -> tuple[State, dict]:
    key = jax.random.fold_in(root_key, state.step)
    grads, totals, model_state = sum_gradients(state, batch, key)
    if axis:
      grads, totals = jax.lax.psum((grads, totals), axis)
      model_state = jax.lax.pmean(model_state, axis)

    weight = totals.pop("weight")
    divisor = jnp.maximum(weight, 1e-9)  # a batch of only padding has loss 0 and gradient 0
    grads, metrics = jax.tree.map(lambda a: a / divisor, (grads, totals))
    grad_norm = optax.global_norm(grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = cast(dict, optax.apply_updates(state.params, updates))
    ema_params = state.ema_params
    if ema_decay:
      ema_params = cast(dict, optax.incremental_update(params, cast(dict, ema_params), 1 - ema_decay))
    metrics |= {"weight": weight, "grad_norm": grad_norm, "param_norm": optax.global_norm(params)}
    new = State(state.step + 1, params, model_state, opt_state, ema_params, state.skipped_steps)
    if skip_nonfinite:
      finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm)
      kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
      new = kept._replace(step=new.step, skipped_steps=state.skipped_steps + ~finite)
      metrics["skipped_steps"] = new.skipped_steps
    return new, metrics

  return step


def make_sum_gradients(
  objective: Callable[..., Loss], model: nn.Module, grad_accum_steps: int, freeze: Callable[[dict], dict]
) -> Callable[[State, dict, jax.Array], tuple[dict, dict, dict]]:
  """Makes `sum_gradients(state, batch, key) -> (gradients, totals, model_state)`, by parts of the batch.

  The gradients are those of the sum of the losses. `totals` has the sums "loss" and "weight" and the objective's
  metrics. See `make_step` for the arguments.
  """

  def loss_sum(params, backward, model_state, part, key):
    loss = objective(model, {"params": freeze(params), **model_state, **backward}, part, key)
    return loss.total, loss

  def totals_of(loss) -> dict:
    return {"loss": loss.total, "weight": loss.weight, **loss.metrics}

  def sum_gradients(state: State, batch: dict, key: jax.Array) -> tuple[dict, dict, dict]:
    def add_part(carry, part):
      grads, totals, model_state = carry
      backward = {name: tree for name, tree in model_state.items() if name == BACKWARD_STATISTICS}
      gradient = jax.grad(loss_sum, (0, 1), has_aux=True)
      (part_grads, changes), loss = gradient(state.params, backward, model_state, part, key)
      grads, totals = jax.tree.map(jnp.add, (grads, totals), (part_grads, totals_of(loss)))
      # The gradient with respect to a statistic of the backward pass is its change.
      return (grads, totals, loss.variables | jax.tree.map(jnp.add, backward, changes)), None

    def zeros(part):
      _, loss = jax.eval_shape(loss_sum, state.params, {}, state.model_state, part, key)
      return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), (state.params, totals_of(loss)))

    if grad_accum_steps == 1:
      return add_part((*zeros(batch), state.model_state), batch)[0]
    # Part i takes every n-th example, so that no example moves to another device.
    parts = jax.tree.map(lambda a: a.reshape(-1, grad_accum_steps, *a.shape[1:]).swapaxes(0, 1), batch)
    first = jax.tree.map(lambda a: a[0], parts)
    return jax.lax.scan(add_part, (*zeros(first), state.model_state), parts)[0]

  return sum_gradients


def make_eval_step(
  objective: Callable[..., Loss], model: nn.Module, *, axis: str | None = None
) -> Callable[[dict, dict], dict]:
  """Makes `step(variables, batch) -> sums`: loss, weight and the objective's metrics, summed over the batch."""

  def step(variables: dict, batch: dict) -> dict:
    loss = objective(model, variables, batch, None)
    totals = {"loss": loss.total, "weight": loss.weight, **loss.metrics}
    return jax.lax.psum(totals, axis) if axis else totals

  return step
