"""One training step, written once for every method, and where it runs."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import optax_sam
from optax_sam.train.data import datasets
from optax_sam.train.loop.task import Collections, Task
from optax_sam.train.loop.trajectory_loss import Term

Metrics = Mapping[str, jax.Array]


class TrainingState(NamedTuple):
  """Everything that a step reads and writes.

  Attributes:
    step: number of steps taken, a scalar int32.
    params: the parameters, never perturbed between steps.
    statistics: running statistics of batch norm, empty without.
    opt_state: state of the optimizer, method and base together.
    key: typed PRNG key of the run, always the same; dropout folds the step
      in.
    average: moving averages of params and statistics, () where none is asked
      for.
    memory: what a term of the loss or an average beside the optimizer keeps,
      () where there is neither.
  """

  step: jax.Array
  params: optax.Params
  statistics: Collections
  opt_state: Any
  key: jax.Array
  average: tuple[Any, ...] = ()
  memory: Any = ()


Step = Callable[[TrainingState, datasets.Batch], tuple[TrainingState, Metrics]]


def copy(state: Any) -> Any:
  """Returns a state, or a part of one, in memory of its own."""
  return jax.tree.map(lambda leaf: leaf.copy(), state)


class _CleanPass(NamedTuple):
  """What the gradient at the unperturbed parameters leaves to the rest."""

  loss: jax.Array
  statistics: Collections
  grads: optax.Updates
  losses: jax.Array | None = None
  memory: Any = ()
  term: jax.Array | None = None


def in_one_program(
  task: Task,
  optimizer: optax.GradientTransformation,
  *,
  uses_gradient: bool = True,
  takes_single_examples: bool = False,
  term: Term | None = None,
  accumulate: Callable[[Any, optax.Params], Any] | None = None,
  ema_decay: float | None = None,
  sharding: Any = None,
  rows: jax.sharding.Sharding | None = None,
  donates: bool = False,
) -> Step:
  """Returns a jitted step; a method that skips does so inside the program.

  Args:
    task: what to train.
    optimizer: the whole of it, method and base.
    uses_gradient: whether the method reads the clean gradient. If not, the
      step doesn't log its norm either, and XLA drops that backward pass.
    takes_single_examples: whether the method differentiates the losses of
      examples one by one; these are then losses in evaluation mode.
    term: what is added to the loss that is trained on, but not to that which is
      logged.
    accumulate: what an average beside the optimizer makes of its memory and of
      the parameters after a step.
    ema_decay: weight of the past in the moving averages, None for no averages.
    sharding: of the next state: one for all leaves, or a state of them, whose
      that of `step` is also that of the metrics; None for the compiler's
      choice.
    rows: how examples that a method picks are split; None likewise, for which
      a compiler may choose to have all of them on every device.
    donates: whether the next state takes the memory of the one that the step
      is given; what reads that one later must `copy` it first.

  Returns:
    The step, from state and batch to the next state and metrics.
  """
  descend = _descending(
    task,
    optimizer,
    uses_gradient=uses_gradient,
    takes_single_examples=takes_single_examples,
    ema_decay=ema_decay,
    rows=rows,
  )

  def step(
    state: TrainingState, batch: datasets.Batch
  ) -> tuple[TrainingState, Metrics]:
    if term is not None:
      return descend(state, batch, _pass_with_term(task, term, state, batch))
    after, metrics = descend(state, batch, _clean_pass(task, state, batch))
    if accumulate is not None:
      memory = accumulate(state.memory, after.params)
      after = after._replace(memory=memory)
    return after, metrics

  of = _shardings(sharding)
  donated = 0 if donates else None
  return jax.jit(step, out_shardings=(of, of.step), donate_argnums=donated)


def branching_on_host(
  task: Task,
  optimizer: optax.GradientTransformation,
  *,
  ema_decay: float | None = None,
  sharding: Any = None,
) -> Step:
  """Returns the same step as two programs, the method's choice in between.

  The first program takes the step as if the method skipped, and says what the
  method decided; if it is to ascend, the second one takes the step anew from
  the same clean gradient. Here is no conditional, inside of which XLA's CPU
  backend would be slow at the convolutions of JAX itself; but Python waits
  for every decision.

  Args:
    task: what to train.
    optimizer: the whole of it, with a method that may skip.
    ema_decay: as of `in_one_program`.
    sharding: as of `in_one_program`.

  Returns:
    The step, from state and batch to the next state and metrics.
  """
  descend = _descending(task, optimizer, ema_decay=ema_decay)
  of = _shardings(sharding)
  results = (_without_key(of), of.step)

  # A typed key is slow to come out of a program, and while a decision is
  # waited for nothing else runs: the key of the run goes around them.
  @functools.partial(jax.jit, out_shardings=(of.step, of.params, *results))
  def skip(
    state: TrainingState, batch: datasets.Batch
  ) -> tuple[jax.Array, optax.Updates, TrainingState, Metrics]:
    clean = _clean_pass(task, state, batch)
    skipped, metrics = descend(state, batch, clean, ascend=False)
    decided = optax_sam.metrics(skipped.opt_state)['decided']
    return decided, clean.grads, _without_key(skipped), metrics

  @functools.partial(jax.jit, out_shardings=results)
  def ascend(
    state: TrainingState, batch: datasets.Batch, clean: _CleanPass
  ) -> tuple[TrainingState, Metrics]:
    ascended, metrics = descend(state, batch, clean, ascend=True)
    return _without_key(ascended), metrics

  held: list[Any] = []

  def step(
    state: TrainingState, batch: datasets.Batch
  ) -> tuple[TrainingState, Metrics]:
    decided, grads, after, metrics = skip(state, batch)
    # Arrays that nobody needs any more are freed while this program runs,
    # rather than between two of them.
    held[:] = [state, grads, metrics]
    if decided:
      clean = _CleanPass(metrics['loss'], after.statistics, grads)
      after, metrics = ascend(state, batch, clean)
    return after._replace(key=state.key), metrics

  return step


def _shardings(sharding: Any) -> TrainingState:
  if isinstance(sharding, TrainingState):
    return sharding
  return TrainingState(*[sharding] * len(TrainingState._fields))


def _without_key(state: TrainingState) -> TrainingState:
  nothing: Any = None
  return state._replace(key=nothing)


def _clean_pass(
  task: Task, state: TrainingState, batch: datasets.Batch
) -> _CleanPass:
  """The logged loss, and the only update of batch norm's statistics."""

  def mean(params: optax.Params) -> tuple[jax.Array, Any]:
    losses, statistics = task.losses(
      params, state.statistics, batch, _dropout_key(state)
    )
    return jnp.mean(losses), (losses, statistics)

  (loss, (losses, statistics)), grads = jax.value_and_grad(mean, has_aux=True)(
    state.params
  )
  return _CleanPass(loss, statistics, grads, losses)


def _pass_with_term(
  task: Task, term: Term, state: TrainingState, batch: datasets.Batch
) -> _CleanPass:
  """The same with a term added to the loss, which reads and then writes."""
  read = term.before(state.params, state.statistics, state.memory)

  def total(params: optax.Params) -> tuple[jax.Array, tuple[Any, ...]]:
    logits, statistics = task.logits(
      params, state.statistics, batch, _dropout_key(state)
    )
    losses = task.losses_of(logits, batch)
    loss, added = jnp.mean(losses), term.loss(logits, read, batch, state.step)
    found = (loss, statistics, losses, added, logits)
    return loss + added.astype(loss.dtype), found

  grads, (loss, statistics, losses, added, logits) = jax.grad(
    total, has_aux=True
  )(state.params)
  memory = term.after(logits, read, batch, state.step)
  return _CleanPass(loss, statistics, grads, losses, memory, added)


def _dropout_key(state: TrainingState) -> jax.Array:
  return jax.random.fold_in(state.key, state.step)


def _descending(
  task: Task,
  optimizer: optax.GradientTransformation,
  *,
  uses_gradient: bool = True,
  takes_single_examples: bool = False,
  ema_decay: float | None = None,
  rows: jax.sharding.Sharding | None = None,
) -> Callable[..., tuple[TrainingState, Metrics]]:
  """Returns the rest of a step, from the clean pass to the next state."""
  tx = optax.with_extra_args_support(optimizer)

  def descend(
    state: TrainingState,
    batch: datasets.Batch,
    clean: _CleanPass,
    **branch: bool,
  ) -> tuple[TrainingState, Metrics]:
    # Later passes see the same batch, the same statistics, the same dropout.
    statistics, key = state.statistics, _dropout_key(state)

    def losses(params: optax.Params, batch: datasets.Batch) -> jax.Array:
      if rows is not None:
        batch = jax.lax.with_sharding_constraint(batch, rows)
      if takes_single_examples:
        return task.single_losses(params, statistics, batch)
      return task.losses(params, statistics, batch, key)[0]

    updates, opt_state = tx.update(
      clean.grads,
      state.opt_state,
      state.params,
      value_fn=lambda p: task.loss(p, statistics, batch, key)[0],
      per_example_value_fn=losses,
      batch=batch,
      # Those of single examples are of another mode.
      losses=None if takes_single_examples else clean.losses,
      **branch,
    )
    params = optax.apply_updates(state.params, updates)
    metrics = {
      'loss': clean.loss,
      'parameter_norm': optax.tree.norm(params),
      'update_norm': optax.tree.norm(updates),
    }
    if uses_gradient:
      metrics['gradient_norm'] = optax.tree.norm(clean.grads)
    if clean.term is not None:
      metrics['trajectory_loss'] = clean.term
    average: Any = state.average
    if ema_decay is not None:
      average = optax.incremental_update(
        (params, clean.statistics), average, 1 - ema_decay
      )
    return TrainingState(
      state.step + 1,
      params,
      clean.statistics,
      opt_state,
      state.key,
      average,
      clean.memory,
    ), metrics

  return descend
