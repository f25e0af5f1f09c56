"""Training steps of the benchmarks, without logging."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.problems import Problem

_RHO = 0.05


class State(NamedTuple):
  """The state that a step reads and writes."""

  params: Any
  statistics: Any
  opt_state: Any


@dataclasses.dataclass
class Steps:
  """A way to take steps, with its compiled functions.

  Attributes:
    init: returns the first state.
    take: maps state and batch to the next state and the unperturbed loss.
    programs: jitted functions by name, each with the arguments to lower it
      with.
  """

  init: Callable[[], State]
  take: Callable[[State, Any], tuple[State, Any]]
  programs: dict[str, tuple[Any, tuple[Any, ...]]]


def base_optimizer() -> optax.GradientTransformation:
  """Returns the base optimizer of every row."""
  return optax.sgd(0.01, momentum=0.9)


def jitted_step(
  problem: Problem,
  optimizer: optax.GradientTransformation,
  *,
  uses_clean_pass: bool = True,
) -> Steps:
  """Returns the jitted training step of this library.

  Args:
    problem: the network and its batches.
    optimizer: the whole optimizer.
    uses_clean_pass: whether the step returns the unperturbed loss and updates
      the statistics of batch norm; if not, measure these after training.
  """
  tx = optax.with_extra_args_support(optimizer)
  descend = _descending(problem, tx)

  @jax.jit
  def step(state, batch):
    (loss, losses), statistics, grads = _clean_pass(problem, state, batch)
    if not uses_clean_pass:
      loss, statistics = None, state.statistics
    return descend(state, batch, statistics, grads, losses), loss

  return _steps(problem, tx, step, step)


def sam_by_hand(problem: Problem) -> Steps:
  """Returns handwritten SAM with Optax's SGD."""
  base = base_optimizer()

  @jax.jit
  def step(state, batch):
    params, statistics, opt_state = state
    (loss, _), new_statistics, grads = _clean_pass(problem, state, batch)
    squares = [jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)]
    scale = _RHO / (jnp.sqrt(sum(squares)) + 1e-12)
    perturbed = jax.tree.map(lambda p, g: p + scale * g, params, grads)
    grads = jax.grad(lambda p: problem.loss(p, statistics, batch)[0])(perturbed)
    updates, opt_state = base.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    return State(params, new_statistics, opt_state), loss

  return _steps(problem, base, step, step)


def sam_of_optax(problem: Problem) -> Steps:
  """Returns `optax.contrib.sam` in opaque mode."""
  ascent = optax.chain(optax.contrib.normalize(), optax.sgd(_RHO))
  tx = optax.contrib.sam(base_optimizer(), ascent, opaque_mode=True)

  @jax.jit
  def step(state, batch):
    params, statistics, opt_state = state
    (loss, _), new_statistics, grads = _clean_pass(problem, state, batch)

    def grad_fn(params, _):
      return jax.grad(lambda p: problem.loss(p, statistics, batch)[0])(params)

    updates, opt_state = tx.update(grads, opt_state, params, grad_fn=grad_fn)
    params = optax.apply_updates(params, updates)
    return State(params, new_statistics, opt_state), loss

  return _steps(problem, tx, step, step)


def _clean_pass(problem: Problem, state: State, batch: Any) -> Any:
  """Returns loss, per-example losses, statistics and gradient."""

  def loss(params):
    losses, statistics = problem.losses(params, state.statistics, batch)
    mean = jnp.mean(losses)
    return mean, ((mean, losses), statistics)

  grads, (found, statistics) = jax.grad(loss, has_aux=True)(state.params)
  return found, statistics, grads


def _descending(problem: Problem, tx: Any) -> Callable[..., State]:
  def descend(state, batch, new_statistics, grads, losses):
    params, statistics, opt_state = state
    updates, opt_state = tx.update(
      grads,
      opt_state,
      params,
      value_fn=lambda p: problem.loss(p, statistics, batch)[0],
      # In training mode batch norm has no variance for a single example.
      per_example_value_fn=lambda p, b: problem.losses(
        p, statistics, b, train=len(b['labels']) > 1
      )[0],
      batch=batch,
      losses=losses,
    )
    params = optax.apply_updates(params, updates)
    return State(params, new_statistics, opt_state)

  return descend


def _steps(problem: Problem, tx: Any, take: Any, program: Any) -> Steps:
  def init():
    params, statistics = problem.init()
    return State(params, statistics, jax.jit(tx.init)(params))

  shapes = jax.eval_shape(init)
  arguments = (shapes, problem.batches[0])
  return Steps(init, take, {'step': (program, arguments)})
