"""Policies: is the second gradient taken at this step?

A policy is a pair of functions. `init(params)` returns its state, and
`decide(grads, state)` returns whether this step ascends, and the next state;
it sees the whole clean gradient, averaged over the devices and before any
mask. A Python `True` says that every step ascends, so that no conditional is
compiled at all. Pass one as `policy` to `optax_sam.sharpness_aware`. Under
`jax.vmap` the conditional becomes a select, which computes both branches: scan
over the members to skip, or pass `ascend=` to `update`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine.info import no_state
from optax_sam.trees import tree_math


class Policy(NamedTuple):
  """Decides at which steps the second gradient is taken.

  Attributes:
    init: from the parameters to the state of the policy, a pytree of arrays.
    decide: from the clean gradient and the state to (ascend, new state), where
      `ascend` is a Python bool or a scalar bool array, the same on all
      devices.
    reads_gradient: whether `decide` looks at the gradient, which then has to
      be averaged over the devices first; by default it may.
  """

  init: Callable[[optax.Params], Any]
  decide: Callable[[optax.Updates, Any], tuple[Any, Any]]
  reads_gradient: bool = True


class EveryState(NamedTuple):
  """State of `every`: `step_count` of the steps so far."""

  step_count: jax.Array


class AfterState(NamedTuple):
  """State of `after`: `step_count` of the steps, and state of its `policy`."""

  step_count: jax.Array
  policy: Any


def always() -> Policy:
  """Takes the second gradient at every step, without a conditional.

  The default of `optax_sam.sharpness_aware`.

  Returns:
    A stateless policy.

  >>> always().decide(None, always().init(None))[0]
  True
  """
  return Policy(no_state, lambda _, state: (True, state), reads_gradient=False)


def every(period: int) -> Policy:
  """Takes the second gradient at every `period`-th step, the first included.

  With `t` the step, counted from 0::

    ascend = t % period == 0

  The period of LookSAM, which some ports count from 1, so that the first steps
  have nothing to reuse; see `optax_sam.look_sam`.

  Args:
    period: number of steps from one ascent to the next, a whole number of at
      least 1; 1 is every step.

  Returns:
    A policy with state (`EveryState`).

  >>> policy = every(3)
  >>> state, took = policy.init(None), []
  >>> for _ in range(5):
  ...   ascend, state = policy.decide(None, state)
  ...   took.append(bool(ascend))
  >>> took
  [True, False, False, True, False]
  """
  validation.check_count('period', period)

  def init(params: optax.Params) -> EveryState:
    del params
    return EveryState(jnp.zeros((), jnp.int32))

  def decide(
    grads: optax.Updates, state: EveryState
  ) -> tuple[jax.Array, EveryState]:
    del grads
    ascend = state.step_count % jnp.asarray(period, jnp.int32) == 0
    return ascend, EveryState(tree_math.increment(state.step_count))

  return Policy(init, decide, reads_gradient=False)


def after(start: int, policy: Policy | None = None) -> Policy:
  """Takes no second gradient before step `start`, then follows a policy.

  With `t` the step, counted from 0::

    ascend = (t >= start) and what the policy decides

  The policy's state advances from the first step on, so that its statistics
  are warm when it takes over.

  Args:
    start: first step that may ascend, a whole number of at least 0.
    policy: what to follow from there on, by default `always`.

  Returns:
    A policy with state (`AfterState`).

  >>> policy = after(1)
  >>> ascend, state = policy.decide(None, policy.init(None))
  >>> bool(ascend), bool(policy.decide(None, state)[0])
  (False, True)
  """
  validation.check_count('start', start, at_least=0)
  followed = always() if policy is None else policy

  def init(params: optax.Params) -> AfterState:
    return AfterState(jnp.zeros((), jnp.int32), followed.init(params))

  def decide(
    grads: optax.Updates, state: AfterState
  ) -> tuple[jax.Array, AfterState]:
    ascend, inner = followed.decide(grads, state.policy)
    started = state.step_count >= jnp.asarray(start, jnp.int32)
    new_state = AfterState(tree_math.increment(state.step_count), inner)
    return started & jnp.asarray(ascend), new_state

  return Policy(init, decide, reads_gradient=followed.reads_gradient)
