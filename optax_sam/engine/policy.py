"""Policies: does this step compute the perturbed gradient?

A policy has two functions. `init(params)` returns its state, and `decide(grads,
state)` returns whether this step is an ascent step, and the next state. `grads`
is the whole unperturbed gradient, averaged over the devices and not masked. If
`decide` returns a Python `True`, no conditional is compiled.
Pass one as `policy` to `optax_sam.sharpness_aware`. Under `jax.vmap` the
conditional becomes a select, which computes both branches: to skip, scan over
the members, or pass `ascend=` to `update`.
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
  """Decides at which steps the perturbed gradient is computed.

  Attributes:
    init: from the parameters to the state of the policy, a pytree of arrays.
    decide: from the unperturbed gradient and the state to (ascend, new state),
      where `ascend` is a Python bool or a scalar bool array, the same on all
      devices.
    reads_gradient: whether `decide` uses the gradient, which is then averaged
      over the devices first.
  """

  init: Callable[[optax.Params], Any]
  decide: Callable[[optax.Updates, Any], tuple[Any, Any]]
  reads_gradient: bool = True


class EveryState(NamedTuple):
  """State of `every`: `step_count`, the number of steps so far."""

  step_count: jax.Array


class AfterState(NamedTuple):
  """State of `after`: `step_count`, and the state of its `policy`."""

  step_count: jax.Array
  policy: Any


def always() -> Policy:
  """Computes the perturbed gradient at every step, without a conditional.

  This is the default of `optax_sam.sharpness_aware`.

  Returns:
    A stateless policy.

  >>> always().decide(None, always().init(None))[0]
  True
  """
  return Policy(no_state, lambda _, state: (True, state), reads_gradient=False)


def every(period: int) -> Policy:
  r"""Computes the perturbed gradient at every `period`-th step.

  With `t` the step, counted from 0, a step is an ascent step if:

  .. math::
    t \bmod \text{period} = 0

  This is the policy of LookSAM. Some ports count from 1, so that the first
  steps have nothing to reuse; see `optax_sam.look_sam`.

  Args:
    period: number of steps from one ascent step to the next, a whole number of
      at least 1; 1 is every step.

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
  """Skips all perturbed gradients before step `start`, then follows a policy.

  The state of the policy is updated from step 0 on, so that its statistics are
  known at `start`.

  Args:
    start: first step that may be an ascent step, a whole number of at least 0.
    policy: the policy from `start` on, by default `always`.

  Returns:
    A policy with state (`AfterState`).

  >>> policy = after(1)
  >>> ascend, state = policy.decide(None, policy.init(None))
  >>> bool(ascend), bool(policy.decide(None, state)[0])
  (False, True)
  """
  return between(start, None, policy)


def between(
  start: int, end: int | None, policy: Policy | None = None
) -> Policy:
  """Follows a policy from step `start` until before step `end`.

  All other steps are skipped. The state of the policy is updated at every step.

  Args:
    start: first step that may be an ascent step, a whole number of at least 0.
    end: the step after the last one, at least `start`; None for no end.
    policy: the policy in between, by default `always`.

  Returns:
    A policy with state (`AfterState`).

  >>> policy = between(1, 3)
  >>> state, took = policy.init(None), []
  >>> for _ in range(4):
  ...   ascend, state = policy.decide(None, state)
  ...   took.append(bool(ascend))
  >>> took
  [False, True, True, False]
  """
  validation.check_count('start', start, at_least=0)
  if end is not None:
    validation.check_count('end', end, at_least=0)
    if all(map(validation.is_python_number, (start, end))) and end < start:
      msg = f'end must be at least start={start!r}, got {end!r}.'
      raise ValueError(msg)
  followed = always() if policy is None else policy
  validation.check_component('policy', followed, Policy, 'policies.every(5)')

  def init(params: optax.Params) -> AfterState:
    return AfterState(jnp.zeros((), jnp.int32), followed.init(params))

  def decide(
    grads: optax.Updates, state: AfterState
  ) -> tuple[jax.Array, AfterState]:
    ascend, inner = followed.decide(grads, state.policy)
    inside = state.step_count >= jnp.asarray(start, jnp.int32)
    if end is not None:
      inside &= state.step_count < jnp.asarray(end, jnp.int32)
    new_state = AfterState(tree_math.increment(state.step_count), inner)
    return inside & jnp.asarray(ascend), new_state

  return Policy(init, decide, reads_gradient=followed.reads_gradient)
