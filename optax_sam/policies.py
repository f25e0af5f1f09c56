"""Policies: is the second gradient taken at this step?

A policy is a pair of functions. `init(params)` returns its state, and
`decide(grads, state)` returns whether this step ascends, and the next state;
it sees the whole clean gradient. A Python `True` says that every step ascends,
so that no conditional is compiled at all.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import numerics, validation


class Policy(NamedTuple):
  """Decides at which steps the second gradient is taken.

  Attributes:
    init: from the parameters to the state of the policy.
    decide: from the clean gradient and the state to (ascend, new state), where
      `ascend` is a Python bool or a scalar bool array.
    reads_gradient: whether `decide` looks at the gradient, which then has to
      be averaged over the devices first.
  """

  init: Callable[[optax.Params], Any]
  decide: Callable[[optax.Updates, Any], tuple[Any, Any]]
  reads_gradient: bool = True


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


class SharpGradientsState(NamedTuple):
  """State of `on_sharp_gradients`.

  Attributes:
    count: number of steps so far, a scalar int32.
    squared_norm: squared norm of the last finite clean gradient, a scalar.
    mean: moving average of the squared norm, a scalar.
    variance: moving average of its squared deviation, a scalar.
    threshold: what `squared_norm` had to reach at that step, a scalar.
  """

  count: jax.Array
  squared_norm: jax.Array
  mean: jax.Array
  variance: jax.Array
  threshold: jax.Array


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

  Args:
    period: number of steps from one ascent to the next, at least 1.

  >>> policy = every(2)
  >>> ascend, state = policy.decide(None, policy.init(None))
  >>> bool(ascend), bool(policy.decide(None, state)[0])
  (True, False)
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

  Args:
    probability: chance of an ascent in [0, 1], or a schedule of it.
    key: integer seed or typed key; not the key of the dropout.

  >>> policy = bernoulli(1.0, key=0)
  >>> bool(policy.decide(None, policy.init(None))[0])
  True
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


def on_sharp_gradients(
  total_steps: int,
  *,
  decay: float = 0.9,
  lambda_1: float = -1.0,
  lambda_2: float = 1.0,
  initial_variance: float = 0.0,
) -> Policy:
  """Takes the second gradient where the gradient is large for its time.

  With `x = norm(gbar)^2` of the clean gradient `gbar`, `t` the step from 0 and
  `T = total_steps`::

    mean = decay * mean + (1 - decay) * x
    variance = decay * variance + (1 - decay) * (x - mean) ^ 2  # new mean
    c = (t / T) * lambda_1 + (1 - t / T) * lambda_2  # t / T <= 1
    ascend = x >= mean + c * sqrt(variance)

  A gradient that isn't finite doesn't ascend and leaves both moments alone.
  See `optax_sam.ae_sam` for the defaults and their evidence.

  Args:
    total_steps: T, number of steps of the whole training, at least 1.
    decay: weight of the past in both moments, in [0, 1).
    lambda_1: threshold at the end, in standard deviations above the mean.
    lambda_2: threshold at the start, likewise.
    initial_variance: variance before the first step, at least 0.

  Raises:
    ValueError: if a Python value is outside of its range.
  """
  validation.check_number('total_steps', total_steps, at_least=1)
  validation.check_number('decay', decay, at_least=0, below=1)
  validation.check_number('lambda_1', lambda_1)
  validation.check_number('lambda_2', lambda_2)
  validation.check_number('initial_variance', initial_variance, at_least=0)
  _warn_if_unreachable(decay, lambda_1=lambda_1, lambda_2=lambda_2)

  def init(params: optax.Params) -> SharpGradientsState:
    dtype = numerics.accumulator_dtype(params)
    return SharpGradientsState(
      count=_zero_count(),
      squared_norm=jnp.zeros((), dtype),
      mean=jnp.zeros((), dtype),
      variance=jnp.full((), initial_variance, dtype),
      threshold=jnp.zeros((), dtype),
    )

  @jax.jit
  def decide(
    grads: optax.Updates, state: SharpGradientsState
  ) -> tuple[jax.Array, SharpGradientsState]:
    dtype = state.mean.dtype

    def cast(number: Any) -> jax.Array:
      return jnp.asarray(number, dtype)

    squared_norm = numerics.dot(grads, grads).astype(dtype)
    past, present = cast(decay), 1 - cast(decay)
    mean = past * state.mean + present * squared_norm
    deviation = jnp.square(squared_norm - mean)
    variance = past * state.variance + present * deviation
    progress = jnp.minimum(
      state.count.astype(dtype) / cast(total_steps), cast(1)
    )
    factor = progress * cast(lambda_1) + (1 - progress) * cast(lambda_2)
    threshold = mean + factor * jnp.sqrt(variance)
    finite = jnp.isfinite(squared_norm) & jnp.isfinite(variance)
    count = numerics.increment(state.count)
    found = SharpGradientsState(count, squared_norm, mean, variance, threshold)
    kept = state._replace(count=count)
    ascend = finite & (squared_norm >= threshold)
    return ascend, numerics.select(finite, found, kept)

  return Policy(init, decide)


def after(start: int, policy: Policy | None = None) -> Policy:
  """Takes no second gradient before step `start`, then follows a policy.

  The policy's state advances from the first step on, so that its statistics
  are warm when it takes over.

  Args:
    start: first step, counted from 0, that may ascend; at least 0.
    policy: what to follow from there on, by default `always`.

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


def _warn_if_unreachable(decay: Any, **lambdas: Any) -> None:
  if not validation.is_python_number(decay):
    return
  largest = 1 / math.sqrt(1 - decay)
  for name, value in lambdas.items():
    if validation.is_python_number(value) and value > largest:
      warnings.warn(
        f'{name}={value} is above 1 / sqrt(1 - decay) = {largest:.4g}, more '
        f'standard deviations than the moving moments can ever show: no step '
        f'ascends while the threshold is that high.',
        stacklevel=3,
      )
