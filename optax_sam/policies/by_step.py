"""Policies that go by the number of the step, whatever the gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import numerics, validation
from optax_sam.policies.policy import Policy


class EveryState(NamedTuple):
  """State of `every`.

  Attributes:
    count: number of steps so far, a scalar int32.
  """

  count: jax.Array


class BernoulliState(NamedTuple):
  """State of `bernoulli`.

  Attributes:
    count: number of steps so far, a scalar int32.
    key: typed PRNG key that all draws derive from.
  """

  count: jax.Array
  key: jax.Array


class AfterState(NamedTuple):
  """State of `after`.

  Attributes:
    count: number of steps so far, a scalar int32.
    policy: state of the policy that is followed afterwards.
  """

  count: jax.Array
  policy: Any


def _zero_count() -> jax.Array:
  return jnp.zeros((), jnp.int32)


def always() -> Policy:
  """Takes the second gradient at every step, without a conditional.

  The default of `optax_sam.sharpness_aware`.

  Returns:
    A policy that keeps nothing.

  >>> always().decide(None, always().init(None))[0]
  True
  """

  def init(params: optax.Params) -> optax.EmptyState:
    del params
    return optax.EmptyState()

  def decide(grads: optax.Updates, state: Any) -> tuple[bool, Any]:
    del grads
    return True, state

  return Policy(init, decide, reads_gradient=False)


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
    A policy that keeps a count (`EveryState`).

  Raises:
    ValueError: if a Python value is out of range.

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
    return EveryState(_zero_count())

  @jax.jit
  def decide(
    grads: optax.Updates, state: EveryState
  ) -> tuple[jax.Array, EveryState]:
    del grads
    ascend = state.count % jnp.asarray(period, jnp.int32) == 0
    return ascend, EveryState(numerics.increment(state.count))

  return Policy(init, _without_gradient(decide), reads_gradient=False)


def bernoulli(
  probability: optax.ScalarOrSchedule, key: jax.Array | int
) -> Policy:
  """Tosses one coin a step, the same on all devices.

  With `t` the step, counted from 0::

    ascend = bernoulli(fold_in(key, t), probability(t))

  The coin of SS-SAM; see `optax_sam.ss_sam` for the schedules of the paper.

  Args:
    probability: chance of an ascent, a scalar in [0, 1], taken in float32, or
      a schedule of it, whose values are not checked: below 0 is never, above 1
      always.
    key: integer seed or one typed key, the same on all devices; not the key of
      the dropout.

  Returns:
    A policy that keeps a count and the key (`BernoulliState`).

  Raises:
    ValueError: if a Python value is out of range, or the key is none.

  References:
    Zhao, Zhang, Hu, `SS-SAM: Stochastic Scheduled Sharpness-Aware Minimization
    for Efficiently Training Deep Neural Networks
    <https://arxiv.org/abs/2203.09962>`_, 2022; as RST, AAAI 2023.

  >>> policy = bernoulli(optax.linear_schedule(1.0, 0.0, 4), key=0)
  >>> state, took = policy.init(None), []
  >>> for _ in range(5):
  ...   ascend, state = policy.decide(None, state)
  ...   took.append(bool(ascend))
  >>> took
  [True, True, False, False, False]
  """
  if not callable(probability):
    validation.check_number('probability', probability, at_least=0, at_most=1)
  validation.check_key(key)

  def init(params: optax.Params) -> BernoulliState:
    del params
    return BernoulliState(_zero_count(), validation.as_key(key))

  @jax.jit
  def decide(
    grads: optax.Updates, state: BernoulliState
  ) -> tuple[jax.Array, BernoulliState]:
    del grads
    chance = probability(state.count) if callable(probability) else probability
    coin = jax.random.fold_in(state.key, state.count)
    ascend = jax.random.bernoulli(coin, jnp.asarray(chance, jnp.float32))
    return ascend, state._replace(count=numerics.increment(state.count))

  return Policy(init, _without_gradient(decide), reads_gradient=False)


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
    A policy that keeps a count and the other's state (`AfterState`).

  Raises:
    ValueError: if a Python value is out of range.

  >>> policy = after(1)
  >>> ascend, state = policy.decide(None, policy.init(None))
  >>> bool(ascend), bool(policy.decide(None, state)[0])
  (False, True)
  """
  validation.check_count('start', start, at_least=0)
  followed = always() if policy is None else policy

  def init(params: optax.Params) -> AfterState:
    return AfterState(_zero_count(), followed.init(params))

  def decide(
    grads: optax.Updates, state: AfterState
  ) -> tuple[jax.Array, AfterState]:
    ascend, inner = followed.decide(grads, state.policy)
    started = state.count >= jnp.asarray(start, jnp.int32)
    new_state = AfterState(numerics.increment(state.count), inner)
    return started & jnp.asarray(ascend), new_state

  return Policy(init, decide, reads_gradient=followed.reads_gradient)


def _without_gradient(decide: Callable[..., Any]) -> Callable[..., Any]:
  """Keeps an unused gradient out of a jitted call."""
  return lambda _, state: decide(None, state)
