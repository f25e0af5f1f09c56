"""The training step of all methods, in one or two compiled functions."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import optax_sam
from optax_sam.train.data.datasets import Batch
from optax_sam.train.loop.external import External
from optax_sam.train.loop.task import Statistics, Task

Metrics = Mapping[str, jax.Array]


class TrainingState(NamedTuple):
  """The state that a step reads and writes."""

  step: jax.Array  # steps taken, scalar int32
  params: optax.Params  # never perturbed between steps
  statistics: Statistics  # of batch norm; empty without it
  opt_state: Any  # of method and base optimizer
  key: jax.Array  # typed, of the run, constant; dropout folds in the step
  memory: Any = ()  # state of the method outside of the optimizer


Step = Callable[[TrainingState, Batch], tuple[TrainingState, Metrics]]


def copy(state: Any) -> Any:
  """Returns a copy of a state, or of a part of one, in new buffers."""
  return jax.tree.map(lambda leaf: leaf.copy(), state)


class _FirstPass(NamedTuple):
  """Results of the pass at the unperturbed parameters."""

  loss: jax.Array
  statistics: Statistics
  grads: optax.Updates
  losses: jax.Array | None = None
  outputs: Any = None
  memory: Any = ()
  auxiliary_loss: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class _Step:
  """The options of `jitted_step`, and the two parts of a step."""

  task: Task
  optimizer: optax.GradientTransformation
  # Without it the norm is not logged, and XLA removes this backward pass.
  uses_gradient: bool = True
  # Those that the method differentiates one by one are in evaluation mode.
  takes_per_example_losses: bool = False
  external: External | None = None  # the logged loss excludes its loss
  # Of examples that a method selects; the compiler may replicate them.
  rows: jax.sharding.Sharding | None = None

  def first_pass(self, state: TrainingState, batch: Batch) -> _FirstPass:
    """Returns loss, gradient and statistics at the unperturbed parameters."""
    external, memory = self.external, state.memory
    if external is not None:
      memory = external.before(state.params, state.statistics, memory)

    def total(params: optax.Params) -> tuple[jax.Array, tuple[Any, ...]]:
      outputs, statistics = self.task.outputs(
        params, state.statistics, batch, _dropout_key(state)
      )
      losses = self.task.objective.training_loss(outputs, batch['labels'])
      sought = loss = jnp.mean(losses)
      added = None
      if external is not None and external.loss is not None:
        added = external.loss(outputs, memory, batch, state.step)
        sought = loss + added.astype(loss.dtype)
      return sought, (loss, statistics, losses, outputs, added)

    grads, (loss, statistics, losses, outputs, added) = jax.grad(
      total, has_aux=True
    )(state.params)
    return _FirstPass(loss, statistics, grads, losses, outputs, memory, added)

  def rest(
    self, state: TrainingState, batch: Batch, first: _FirstPass, **branch: bool
  ) -> tuple[TrainingState, Metrics]:
    """Takes the rest of a step, from the first pass to the next state."""
    # Later passes use the same batch, statistics and dropout key.
    task, statistics, key = self.task, state.statistics, _dropout_key(state)
    per_example = self.takes_per_example_losses

    def losses(params: optax.Params, batch: Batch) -> jax.Array:
      if self.rows is not None:
        batch = jax.lax.with_sharding_constraint(batch, self.rows)
      if per_example:
        return task.per_example_losses(params, statistics, batch)
      return task.losses(params, statistics, batch, key)[0]

    updates, opt_state = optax.with_extra_args_support(self.optimizer).update(
      first.grads,
      state.opt_state,
      state.params,
      value_fn=lambda p: jnp.mean(task.losses(p, statistics, batch, key)[0]),
      per_example_value_fn=losses,
      batch=batch,
      # Per-example losses are in evaluation mode.
      losses=None if per_example else first.losses,
      **branch,
    )
    params = optax.apply_updates(state.params, updates)
    metrics = {
      'loss': first.loss,
      'parameter_norm': optax.tree.norm(params),
      'update_norm': optax.tree.norm(updates),
    }
    if self.uses_gradient:
      metrics['gradient_norm'] = optax.tree.norm(first.grads)
    if first.auxiliary_loss is not None:
      metrics['trajectory_loss'] = first.auxiliary_loss
    memory = state.memory
    if self.external is not None:
      memory = self.external.after(
        first.outputs, first.memory, batch, state.step, params
      )
    return TrainingState(
      state.step + 1, params, first.statistics, opt_state, state.key, memory
    ), metrics


def jitted_step(
  task: Task,
  optimizer: optax.GradientTransformation,
  *,
  sharding: Any = None,
  donates: bool = False,
  **options: Any,
) -> Step:
  """Returns a step as one compiled function; skipping is a conditional in it.

  The sharding of the next state is one for all leaves, or a state of shardings,
  of which that of `step` also applies to the metrics. If the step `donates` the
  buffers of its input state, callers that read that state later must `copy` it
  first. For the options see `_Step`.
  """
  parts = _Step(task, optimizer, **options)

  def step(state: TrainingState, batch: Batch) -> tuple[TrainingState, Metrics]:
    return parts.rest(state, batch, parts.first_pass(state, batch))

  of = _shardings(sharding)
  donated = 0 if donates else None
  return jax.jit(step, out_shardings=(of, of.step), donate_argnums=donated)


def branching_on_host(
  task: Task, optimizer: optax.GradientTransformation, *, sharding: Any = None
) -> Step:
  """Returns the same step as two compiled functions and a choice on the host.

  The first function takes the step as if the method skipped, and returns the
  decision of the method. If the method takes an ascent step, the second
  function repeats the step from the same unperturbed gradient. So there is no
  conditional, inside of which JAX's convolutions are slow on XLA's CPU backend,
  but Python waits for every decision.
  """
  parts, of = _Step(task, optimizer), _shardings(sharding)
  # A typed key is slow to return from a compiled function, and nothing else
  # runs while Python waits for a decision. So neither function returns the key
  # of the run.
  results = (_without_key(of), of.step)

  @functools.partial(jax.jit, out_shardings=(of.step, of.params, *results))
  def skip(state: TrainingState, batch: Batch) -> tuple[Any, ...]:
    first = parts.first_pass(state, batch)
    skipped, metrics = parts.rest(state, batch, first, ascend=False)
    decided = optax_sam.metrics(skipped.opt_state)['decided']
    return decided, first.grads, _without_key(skipped), metrics

  @functools.partial(jax.jit, out_shardings=results)
  def ascend(*given: Any) -> tuple[TrainingState, Metrics]:
    ascended, metrics = parts.rest(*given, ascend=True)
    return _without_key(ascended), metrics

  held: list[Any] = []

  def step(state: TrainingState, batch: Batch) -> tuple[TrainingState, Metrics]:
    decided, grads, after, metrics = skip(state, batch)
    # Frees unused arrays while this function runs, not between two calls.
    held[:] = [state, grads, metrics]
    if decided:
      first = _FirstPass(metrics['loss'], after.statistics, grads)
      after, metrics = ascend(state, batch, first)
    return after._replace(key=state.key), metrics

  return step


def _shardings(sharding: Any) -> TrainingState:
  if isinstance(sharding, TrainingState):
    return sharding
  return TrainingState(*[sharding] * len(TrainingState._fields))


def _without_key(state: TrainingState) -> TrainingState:
  nothing: Any = None
  return state._replace(key=nothing)


def _dropout_key(state: TrainingState) -> jax.Array:
  return jax.random.fold_in(state.key, state.step)
