"""AE-SAM and AE-LookSAM: SAM at the steps whose gradient is large."""

import math
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine.perturbation import scale_to_radius
from optax_sam.engine.policy import Policy
from optax_sam.engine.sharpness_aware import Choices, Mask, compose
from optax_sam.methods.look_sam import reuse_orthogonal
from optax_sam.trees import tree_math


class SharpGradientsState(NamedTuple):
  """State of `on_sharp_gradients`: `step_count` and the squared norms' moments.

  The moments are `mean` and `variance`; `squared_norm` is the last finite
  squared norm, and `threshold` the smallest one for an ascent step. `unit` is
  the unit of the norms, a power of two: 1, unless fourth powers would under- or
  overflow.
  """

  step_count: jax.Array
  squared_norm: jax.Array
  mean: jax.Array
  variance: jax.Array
  threshold: jax.Array
  unit: jax.Array


def on_sharp_gradients(
  total_steps: int,
  *,
  decay: float = 0.9,
  lambda_1: float = -1.0,
  lambda_2: float = 1.0,
  initial_variance: float = 0.0,
) -> Policy:
  """Takes an ascent step if the gradient is unusually large (AE-SAM).

  See `optax_sam.ae_sam`. A gradient that is not finite leaves both moments
  unchanged, without an ascent step.

  Args:
    initial_variance: variance before the first step, at least 0. With 0 a
      factor on the loss changes no decision. Derived code uses e^-10.
  """
  validation.check_count('total_steps', total_steps)
  validation.check_number('decay', decay, at_least=0, below=1)
  validation.check_number('initial_variance', initial_variance, at_least=0)
  for name, value in (('lambda_1', lambda_1), ('lambda_2', lambda_2)):
    validation.check_number(name, value)
    is_known = all(map(validation.is_python_number, (decay, value)))
    if is_known and value > (largest := 1 / math.sqrt(1 - decay)):
      warnings.warn(
        f'{name}={value} is above 1 / sqrt(1 - decay) = {largest:.4g}, the '
        f'bound of the moving moments: there are no ascent steps then.',
        stacklevel=2,
      )

  def init(params: optax.Params) -> SharpGradientsState:
    dtype = tree_math.accumulator_dtype(params)
    moments = (jnp.full((), x, dtype) for x in (0, 0, initial_variance, 0, 1))
    return SharpGradientsState(jnp.zeros((), jnp.int32), *moments)

  def decide(grads: optax.Updates, state: Any) -> tuple[jax.Array, Any]:
    number = lambda value: jnp.asarray(value, state.mean.dtype)
    # A decision has no derivative.
    square, unit = tree_math.squared_norm(jax.lax.stop_gradient(grads))
    square, unit = number(square), number(unit) / state.unit
    # The largest known norm, in the last unit.
    largest = jnp.maximum(jnp.sqrt(square) * unit, jnp.sqrt(state.mean))
    largest = jnp.maximum(largest, jnp.sqrt(jnp.sqrt(state.variance)))
    # From 2**-16 to 2**16 no unit is needed: fourth powers fit in float32.
    change = tree_math.power_of_two(largest, 16)
    # The barrier separates the factors: their powers may overflow.
    over = lambda x: jax.lax.optimization_barrier(x * (1 / change))
    last_variance = over(over(over(over(state.variance))))
    squared_norm = square * (unit / change) * (unit / change)
    past, present = number(decay), 1 - number(decay)
    mean = past * over(over(state.mean)) + present * squared_norm
    variance = past * last_variance + present * jnp.square(squared_norm - mean)
    progress = jnp.minimum(number(state.step_count) / number(total_steps), 1)
    factor = progress * number(lambda_1) + (1 - progress) * number(lambda_2)
    threshold = mean + factor * jnp.sqrt(variance)
    finite = jnp.isfinite(squared_norm) & jnp.isfinite(variance)
    count = tree_math.increment(state.step_count)
    found = SharpGradientsState(
      count, squared_norm, mean, variance, threshold, state.unit * change
    )
    unchanged = state._replace(step_count=count)
    ascend = finite & (squared_norm >= threshold)
    return ascend, optax.tree.where(finite, found, unchanged)

  return Policy(init, decide)


@validation.method()
def ae_sam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  total_steps: int,
  decay: float = 0.9,
  lambda_1: float = -1.0,
  lambda_2: float = 1.0,
  mask: Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""Adaptive policy to employ SAM (AE-SAM): SAM where the gradient is large.

  .. math::
    \mu &\leftarrow b \mu + (1 - b)\, x, \quad x = \|g\|^2 \\
    \sigma^2 &\leftarrow b \sigma^2 + (1 - b) (x - \mu)^2 \\
    c &= (t / T)\, \lambda_1 + (1 - t / T)\, \lambda_2 \\
    u &= \tilde g \text{ of SAM if } x \ge \mu + c\, \sigma, \text{ else } g

  Here :math:`g` is averaged over devices. At first :math:`\mu = \sigma = 0`,
  without bias correction, so training starts with many SAM steps. For a
  normally distributed :math:`x` the defaults take 50 % SAM steps: 24, 41, 59
  and 77 % in the quarters of the training. Real norms are skewed: expect 2 to
  17 percentage points less. A factor on the loss changes no decision.

  Args:
    rho: radius, at least 0, or a schedule of it by the step; 0.05 is SAM's.
    total_steps: number T of all steps, at least 1; t counts from 0 up to T.
    decay: weight b of the past in the moments, in [0, 1); try 0.5 to 0.99.
    lambda_1: threshold at the end, in standard deviations above the mean.
    lambda_2: the same at the start; a value above `1 / sqrt(1 - decay)` warns.
    mask, axis_name, sync_ascent: see `optax_sam.sharpness_aware`.

  Returns:
    A gradient transformation to place first in `optax.chain`, whose `update`
    needs `value_fn` or `grad_fn`; state: moments. Cost: 1 gradient or 2.

  .. note:: No code is public; the equations follow restatements of the paper
    that agree. Unverified: the defaults of `decay` and both lambdas; the
    initial variance of 0 (an argument of `policies.on_sharp_gradients`).

  References:
    Jiang, Yang, Zhang, Kwok, `An Adaptive Policy to Employ Sharpness-Aware
    Minimization <https://arxiv.org/abs/2304.14647>`_, ICLR 2023.

  >>> import jax.numpy as jnp, optax_sam
  >>> tx, w = optax_sam.ae_sam(total_steps=100), jnp.float32(0.0)
  >>> state, decisions = tx.init(w), []
  >>> for g in jnp.array([1.0, 1.0, 0.1]):
  ...   _, state = tx.update(g, state, w, grad_fn=lambda w: w)
  ...   decisions.append(bool(state.info.ascended))
  >>> decisions
  [True, True, False]
  """
  policy = on_sharp_gradients(
    total_steps, decay=decay, lambda_1=lambda_1, lambda_2=lambda_2
  )
  choices = Choices(scale_to_radius(rho), policy=policy)
  return compose(choices, mask, axis_name, sync_ascent)


@validation.method()
def ae_look_sam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  total_steps: int,
  decay: float = 0.9,
  lambda_1: float = 0.0,
  lambda_2: float = 2.0,
  alpha: float = 0.1,
  accumulator_dtype: Any = None,
  mask: Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""AE-LookSAM: the decisions of AE-SAM, with LookSAM's reuse in between.

  Steps that AE-SAM skips reuse :math:`v`, the part of the last perturbed
  gradient :math:`\tilde g` that is orthogonal to :math:`g`, at first 0.

  .. math::
    u &= \tilde g, \quad v = \tilde g - (g^\top \tilde g / \|g\|^2)\, g
      && \text{at a SAM step} \\
    u &= g + \alpha\, (\|g\| / \|v\|)\, v && \text{otherwise}

  Args:
    rho, total_steps, decay, lambda_1, lambda_2: see `ae_sam`.
    alpha, accumulator_dtype: see `look_sam`.
    mask, axis_name, sync_ascent: see `optax_sam.sharpness_aware`. `v` and `u`
      are computed from averages in any case.

  Returns:
    A gradient transformation to place first in `optax.chain`, like `ae_sam`;
    state: moments, direction of `v`. It costs 1 gradient, 2 at a SAM step.

  .. note:: For a normally distributed squared norm the defaults take 19.5 % SAM
    steps; the paper is quoted with "about 20 %". The first step is a SAM step
    if `decay` is at least 0.75. Unverified: the defaults and the exact
    algorithm.

  References:
    Jiang, Yang, Zhang, Kwok, `An Adaptive Policy to Employ Sharpness-Aware
    Minimization <https://arxiv.org/abs/2304.14647>`_, ICLR 2023.

  >>> import jax.numpy as jnp, optax_sam
  >>> tx, w = optax_sam.ae_look_sam(total_steps=9, alpha=0.5), jnp.zeros(2)
  >>> state, grad_fn = tx.init(w), lambda _: jnp.array([2.0, 3.0])
  >>> for size in (2.0, 0.2):  # the second step is not SAM's; v = (0, 3)
  ...   g = jnp.array([size, 0.0])
  ...   u, state = tx.update(g, state, w, grad_fn=grad_fn)
  ...   print([round(x, 3) for x in u.tolist()])
  [2.0, 3.0]
  [0.2, 0.1]
  """
  policy = on_sharp_gradients(
    total_steps, decay=decay, lambda_1=lambda_1, lambda_2=lambda_2
  )
  descent = reuse_orthogonal(alpha, accumulator_dtype=accumulator_dtype)
  choices = Choices(scale_to_radius(rho), policy=policy, descent=descent)
  return compose(choices, mask, axis_name, sync_ascent)
