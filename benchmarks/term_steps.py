"""Training steps with a stateful auxiliary loss: SAF and MESA."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import optax_sam
from benchmarks.problems import CLASSES, Problem
from benchmarks.steps import State, Steps, base_optimizer

# Size of CIFAR; every step belongs to the sixth epoch, where targets begin.
_EXAMPLES = 50_000
_EPOCH = 5


def with_saf(problem: Problem) -> Steps:
  """Returns SGD with the auxiliary loss `saf_loss`; its table is donated."""
  saf = optax_sam.saf_loss()

  def ids(batch):
    # Not constants, which would be cheaper than the ids of a loader.
    places = jnp.arange(len(batch['labels'])) * 397 + jnp.sum(batch['labels'])
    return places % _EXAMPLES

  return _steps(
    problem,
    init=lambda *_: saf.init(_EXAMPLES, CLASSES),
    before=lambda *given: given[-1],
    term=lambda z, memory, batch: saf.loss(z, memory, ids(batch), _EPOCH),
    after=lambda z, memory, batch: saf.update(z, memory, ids(batch), _EPOCH),
  )


def with_mesa(problem: Problem) -> Steps:
  """Returns SGD with the auxiliary loss `mesa_loss`."""
  mesa = optax_sam.mesa_loss()

  def term(logits, memory, batch):
    params, statistics = memory.average
    targets, _ = _logits(problem, params, statistics, batch)
    return mesa.loss(logits, targets, _EPOCH)

  return _steps(
    problem,
    init=lambda *given: mesa.init(given),
    before=lambda params, statistics, memory: mesa.update(
      (params, statistics), memory
    ),
    term=term,
    after=lambda *given: given[1],
  )


def _logits(
  problem: Problem,
  params: Any,
  statistics: Any,
  batch: Any,
  train: bool = False,
) -> tuple[jax.Array, Any]:
  return problem.model.apply(
    {'params': params, **statistics},
    batch['inputs'],
    train=train,
    mutable=list(statistics) if train else [],
  )


def _steps(
  problem: Problem, *, init: Any, before: Any, term: Any, after: Any
) -> Steps:
  base = base_optimizer()

  def program(state, memory, batch):
    params, statistics, opt_state = state
    memory = before(params, statistics, memory)

    def total(params):
      logits, found = _logits(problem, params, statistics, batch, train=True)
      loss = jnp.mean(
        optax.softmax_cross_entropy_with_integer_labels(logits, batch['labels'])
      )
      return loss + term(logits, memory, batch), (loss, logits, found)

    grads, (loss, logits, found) = jax.grad(total, has_aux=True)(params)
    updates, opt_state = base.update(grads, opt_state, params)
    state = State(optax.apply_updates(params, updates), found, opt_state)
    return state, after(logits, memory, batch), loss

  step = jax.jit(program, donate_argnums=1)

  def start():
    params, statistics = problem.init()
    memory = jax.jit(init)(params, statistics)
    return State(params, statistics, (jax.jit(base.init)(params), memory))

  def take(state, batch):
    opt_state, memory = state.opt_state
    state, memory, loss = step(
      state._replace(opt_state=opt_state), memory, batch
    )
    return state._replace(opt_state=(state.opt_state, memory)), loss

  shapes = jax.eval_shape(start)
  opt_state, memory = shapes.opt_state
  arguments = (
    shapes._replace(opt_state=opt_state),
    memory,
    problem.batches[0],
  )
  return Steps(start, take, {'step': (step, arguments)})
