"""Training steps of low-rank adapters: plain, Flat-LoRA and Bi-LoRA.

All arrays with at least two axes have adapters. They are read as matrices, with
the outputs on the last axis. All other parameters are frozen.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optax_sam.lora
from benchmarks.problems import Problem
from benchmarks.steps import State, Steps, base_optimizer
from optax_sam.train.models import adapters

_RANK = 4
_RHO = 0.05


def plain(problem: Problem, total_steps: int) -> Steps:
  """Returns SGD on the adapters."""
  del total_steps
  return _steps(problem, base_optimizer())


def with_flat_noise(problem: Problem, total_steps: int) -> Steps:
  """Returns Flat-LoRA."""

  def noise(kernels, step):
    return optax_sam.lora.flat_noise(kernels, 0, step, total_steps=total_steps)

  return _steps(problem, base_optimizer(), noise=noise)


def with_bi_lora(problem: Problem, total_steps: int) -> Steps:
  """Returns Bi-LoRA."""
  del total_steps
  labels = {'first': 'lora', 'second': 'ascent'}
  tx = optax_sam.lora.bi_lora(base_optimizer(), labels, rho=_RHO)
  return _steps(problem, tx, pairs=('first', 'second'))


def _steps(
  problem: Problem,
  tx: optax.GradientTransformation,
  *,
  pairs: tuple[str, ...] = ('first',),
  noise: Callable[[Any, jax.Array], Any] | None = None,
) -> Steps:
  """Returns the steps of adapters; the state holds frozen weights and count."""

  @jax.jit
  def step(state, batch):
    params, (statistics, frozen, count), opt_state = state

    def loss(params):
      weights = frozen
      for pair in params.values():
        weights = adapters.merged(weights, pair)
      if noise:
        weights = jax.tree.map(jnp.add, weights, noise(weights, count))
      return problem.loss(weights, statistics, batch)

    given, grads = jax.value_and_grad(loss, has_aux=True)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    after = optax.apply_updates(params, updates)
    rest = (given[1], frozen, count + 1)
    return State(after, rest, opt_state), given[0]

  def init():
    frozen, statistics = problem.init()
    key = jax.random.key(0)
    params = {name: adapters.new(frozen, key, _RANK) for name in pairs}
    rest = (statistics, frozen, jnp.zeros((), jnp.int32))
    return State(params, rest, jax.jit(tx.init)(params))

  arguments = (jax.eval_shape(init), problem.batches[0])
  return Steps(init, step, {'step': (step, arguments)})
