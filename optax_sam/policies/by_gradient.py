"""Policies that look at the clean gradient."""

import math
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import numerics, validation
from optax_sam.policies.policy import Policy


class SharpGradientsState(NamedTuple):
  """State of `on_sharp_gradients`.

  Attributes:
    count: number of steps so far, a scalar int32.
    squared_norm: squared norm of the last finite clean gradient, a scalar,
      float32, or float64 for parameters in float64, as all that follow.
    mean: moving average of the squared norm, a scalar.
    variance: moving average of its squared deviation, a scalar.
    threshold: what `squared_norm` had to reach at that step, a scalar.
  """

  count: jax.Array
  squared_norm: jax.Array
  mean: jax.Array
  variance: jax.Array
  threshold: jax.Array


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

    mean     = decay * mean + (1 - decay) * x
    variance = decay * variance + (1 - decay) * (x - mean)^2    # the new mean
    c        = s * lambda_1 + (1 - s) * lambda_2  with  s = min(t / T, 1)
    ascend   = (x >= mean + c * sqrt(variance))

  Both moments start at 0, without a correction for it: the first steps ascend
  more often. A gradient that isn't finite doesn't ascend and leaves both
  alone. The equations and their order rest on restatements of the paper that
  agree; see `optax_sam.ae_sam`.

  Args:
    total_steps: T, number of steps of the whole training, at least 1.
    decay: weight of the past in both moments, in [0, 1). This default and
      those of the lambdas could not be confirmed against the paper.
    lambda_1: threshold at the end, in standard deviations above the mean, any
      number.
    lambda_2: threshold at the start, likewise.
    initial_variance: variance before the first step, at least 0, in the unit
      of x squared. 0 makes the decisions independent of the scale of the loss;
      a derived program has e^-10; the paper's could not be confirmed.

  Returns:
    A policy that keeps both moments (`SharpGradientsState`).

  Raises:
    ValueError: if a Python value is out of range.

  Warns:
    UserWarning: if a lambda is above `1 / sqrt(1 - decay)`, the most standard
      deviations that such moments can show: then no step ascends.

  References:
    Jiang, Yang, Zhang, Kwok, `An Adaptive Policy to Employ Sharpness-Aware
    Minimization <https://arxiv.org/abs/2304.14647>`_, ICLR 2023.

  With x = 1, then 2, then 0.01, each with the threshold that it is held
  against:

  >>> policy = on_sharp_gradients(total_steps=100)
  >>> state = policy.init(jnp.zeros(1))
  >>> for gradient in (1.0, 2.0**0.5, 0.1):
  ...   ascend, state = policy.decide(jnp.array([gradient]), state)
  ...   print(bool(ascend), round(float(state.threshold), 3))
  True 0.385
  True 0.882
  False 0.818
  """
  validation.check_count('total_steps', total_steps)
  validation.check_number('decay', decay, at_least=0, below=1)
  validation.check_number('lambda_1', lambda_1)
  validation.check_number('lambda_2', lambda_2)
  validation.check_number('initial_variance', initial_variance, at_least=0)
  _warn_if_unreachable(decay, lambda_1=lambda_1, lambda_2=lambda_2)

  def init(params: optax.Params) -> SharpGradientsState:
    dtype = numerics.accumulator_dtype(params)
    return SharpGradientsState(
      count=jnp.zeros((), jnp.int32),
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
