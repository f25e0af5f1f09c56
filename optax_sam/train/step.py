"""One training step, written once for every method, and where it runs."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import optax

from optax_sam.train import data
from optax_sam.train.task import Collections, Task

Metrics = Mapping[str, jax.Array]


class TrainingState(NamedTuple):
  """Everything that a step reads and writes.

  Attributes:
    step: number of steps taken, a scalar int32.
    params: the parameters, never perturbed between steps.
    statistics: running statistics of batch norm, empty without.
    opt_state: state of the chain of method and base optimizer.
    key: typed PRNG key of the run; dropout folds the step in.
  """

  step: jax.Array
  params: optax.Params
  statistics: Collections
  opt_state: Any
  key: jax.Array


Step = Callable[[TrainingState, data.Batch], tuple[TrainingState, Metrics]]


def in_one_program(
  task: Task,
  method: optax.GradientTransformation,
  base: optax.GradientTransformation,
  *,
  uses_gradient: bool = True,
  takes_single_examples: bool = False,
) -> Step:
  """Returns a jitted step; a method that skips does so inside the program.

  Args:
    task: what to train.
    method: the first element of the chain.
    base: the base optimizer, the rest of it.
    uses_gradient: whether the method reads the clean gradient. If not, the
      step doesn't log its norm either, and XLA drops that backward pass.
    takes_single_examples: whether the method differentiates the losses of
      examples one by one; these are then losses in evaluation mode.

  Returns:
    The step, from state and batch to the next state and metrics.
  """
  tx = optax.with_extra_args_support(optax.chain(method, base))

  def step(
    state: TrainingState, batch: data.Batch
  ) -> tuple[TrainingState, Metrics]:
    statistics = state.statistics
    key = jax.random.fold_in(state.key, state.step)

    # The clean pass: the logged loss, and the only update of batch norm's
    # running statistics.
    (loss, new_statistics), grads = jax.value_and_grad(task.loss, has_aux=True)(
      state.params, statistics, batch, key
    )

    def losses(params: optax.Params, batch: data.Batch) -> jax.Array:
      if takes_single_examples:
        return task.single_losses(params, statistics, batch)
      return task.losses(params, statistics, batch, key)[0]

    # Later passes see the same batch, the same statistics, the same dropout.
    updates, opt_state = tx.update(
      grads,
      state.opt_state,
      state.params,
      value_fn=lambda p: task.loss(p, statistics, batch, key)[0],
      per_example_value_fn=losses,
      batch=batch,
    )
    params = optax.apply_updates(state.params, updates)
    metrics = {
      'loss': loss,
      'parameter_norm': optax.tree.norm(params),
      'update_norm': optax.tree.norm(updates),
    }
    if uses_gradient:
      metrics['gradient_norm'] = optax.tree.norm(grads)
    return TrainingState(
      state.step + 1, params, new_statistics, opt_state, state.key
    ), metrics

  return jax.jit(step)


def branching_on_host(
  task: Task,
  method: optax.GradientTransformation,
  base: optax.GradientTransformation,
) -> Step:
  """Returns the same step in several programs, the method's choice in between.

  The method sees concrete arrays, so it decides in Python whether to call
  `grad_fn`. XLA's CPU backend is slow at convolutions inside a conditional;
  here every gradient is a program of its own.
  """
  method = optax.with_extra_args_support(method)

  # Each program is given what it needs and no more: outside of a program every
  # array costs time to hand over.
  @jax.jit
  def clean_pass(
    params: optax.Params,
    statistics: Collections,
    batch: data.Batch,
    key: jax.Array,
    count: jax.Array,
  ) -> tuple[jax.Array, Collections, optax.Updates, jax.Array]:
    key = jax.random.fold_in(key, count)
    (loss, statistics), grads = jax.value_and_grad(task.loss, has_aux=True)(
      params, statistics, batch, key
    )
    return loss, statistics, grads, key

  @jax.jit
  def gradient(
    params: optax.Params,
    statistics: Collections,
    batch: data.Batch,
    key: jax.Array,
  ) -> tuple[jax.Array, optax.Updates]:
    def loss(params: optax.Params) -> jax.Array:
      return task.loss(params, statistics, batch, key)[0]

    return jax.value_and_grad(loss)(params)

  @jax.jit
  def descend(
    params: optax.Params,
    direction: optax.Updates,
    base_state: optax.OptState,
    count: jax.Array,
  ) -> tuple[optax.Params, optax.OptState, jax.Array]:
    updates, base_state = base.update(direction, base_state, params)
    return optax.apply_updates(params, updates), base_state, count + 1

  @jax.jit
  def norms(
    grads: optax.Updates, before: optax.Params, after: optax.Params
  ) -> Metrics:
    return {
      'gradient_norm': optax.tree.norm(grads),
      'parameter_norm': optax.tree.norm(after),
      'update_norm': optax.tree.norm(optax.tree.sub(after, before)),
    }

  def step(
    state: TrainingState, batch: data.Batch
  ) -> tuple[TrainingState, Metrics]:
    method_state, base_state = state.opt_state
    loss, statistics, grads, key = clean_pass(
      state.params, state.statistics, batch, state.key, state.step
    )
    direction, method_state = method.update(
      grads,
      method_state,
      state.params,
      grad_fn=lambda p: gradient(p, state.statistics, batch, key),
      per_example_value_fn=lambda p, b: task.losses(
        p, state.statistics, b, key
      )[0],
      batch=batch,
    )
    params, base_state, count = descend(
      state.params, direction, base_state, state.step
    )
    new_state = TrainingState(
      count, params, statistics, (method_state, base_state), state.key
    )
    return new_state, _OnDemand(
      lambda: {'loss': loss, **norms(grads, state.params, params)}
    )

  return step


class _OnDemand(Mapping[str, jax.Array]):
  """Metrics that cost a program of their own, run once they are looked at."""

  def __init__(self, compute: Callable[[], Metrics]) -> None:
    self._compute = functools.cache(compute)

  def __getitem__(self, name: str) -> jax.Array:
    return self._compute()[name]

  def __iter__(self) -> Iterator[str]:
    return iter(self._compute())

  def __len__(self) -> int:
    return len(self._compute())
