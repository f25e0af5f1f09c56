"""AE-SAM and AE-LookSAM: the second gradient where the gradient is large."""

import math
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine import partition
from optax_sam.engine.perturbation import scale_to_radius
from optax_sam.engine.policy import Policy
from optax_sam.engine.sharpness_aware import sharpness_aware
from optax_sam.methods.look_sam import reuse_orthogonal
from optax_sam.trees import tree_math


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
    dtype = tree_math.accumulator_dtype(params)
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

    squared_norm = tree_math.dot(grads, grads).astype(dtype)
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
    count = tree_math.increment(state.count)
    found = SharpGradientsState(count, squared_norm, mean, variance, threshold)
    kept = state._replace(count=count)
    ascend = finite & (squared_norm >= threshold)
    return ascend, tree_math.select(finite, found, kept)

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


def ae_sam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  total_steps: int,
  decay: float = 0.9,
  lambda_1: float = -1.0,
  lambda_2: float = 1.0,
  mask: partition.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Adaptive policy to employ SAM (AE-SAM): SAM where the landscape is sharp.

  With `g` the gradient at `w`, `gbar` its average over the devices, `t` the
  step, counted from 0, `T = total_steps`, and both moments 0 at first::

    x        = norm(gbar)^2
    mean     = decay * mean + (1 - decay) * x
    variance = decay * variance + (1 - decay) * (x - mean)^2   # the new mean
    c        = (t / T) * lambda_1 + (1 - t / T) * lambda_2     # t / T <= 1
    u        = SAM's gradient if x >= mean + c * sqrt(variance) else g

  For a normally distributed `x` the expected share of SAM steps is 0.50 at the
  defaults: 24, 41, 59, 77 % in the quarters of the training, since `lambda_2`
  is where the threshold starts. Squared norms of real gradients are skewed:
  expect 2 to 17 points less. The start at 0 makes a burst of SAM steps at
  first. The scale of the loss doesn't matter.

  The equations and their order come from restatements of the paper that agree;
  no program is public. The defaults of `decay`, `lambda_1` and `lambda_2`, and
  the initial variance of 0, could not be confirmed against the paper. A start
  at e^-10, as a derived program has it, is
  `policies.on_sharp_gradients(..., initial_variance=math.exp(-10))`.

  Args:
    rho: radius in the unit of the parameters, a scalar of at least 0, or a
      schedule of it by the step. 0.05 is SAM's.
    total_steps: T, number of steps of the whole training, at least 1.
    decay: weight of the past in both moments, in [0, 1), as in `optax.ema`;
      0.5 to 0.99 are sensible.
    lambda_1: threshold at the end, in standard deviations above the mean.
    lambda_2: threshold at the start, likewise. `x` is never more than
      `1 / sqrt(1 - decay)` above, 3.16 at 0.9: no step ascends beyond that.
    mask: leaves that may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: device axis to average over; see `optax_sam.sharpness_aware`.
    sync_ascent: whether the ascent gradient is averaged too; see there.
      The decision sees all leaves and is the same on all devices.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `value_fn` or `grad_fn`. Cost: 1 + the share of SAM steps.
    Keeps two scalars.

  Raises:
    ValueError: if a Python value is out of range, and in `update` if what it
      needs was not passed.

  Warns:
    UserWarning: if a lambda is so large that no step ascends.

  References:
    Jiang, Yang, Zhang, Kwok, `An Adaptive Policy to Employ Sharpness-Aware
    Minimization <https://arxiv.org/abs/2304.14647>`_, ICLR 2023.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.ae_sam(total_steps=100)
  >>> w, decisions = jnp.float32(0.0), []
  >>> state = tx.init(w)
  >>> for gradient in (1.0, 1.0, 0.1):
  ...   gradient = jnp.float32(gradient)
  ...   _, state = tx.update(gradient, state, w, grad_fn=lambda w: w)
  ...   decisions.append(bool(state.info.ascended))
  >>> decisions
  [True, True, False]
  """
  return sharpness_aware(
    scale_to_radius(rho),
    policy=on_sharp_gradients(
      total_steps, decay=decay, lambda_1=lambda_1, lambda_2=lambda_2
    ),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )


def ae_look_sam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  total_steps: int,
  decay: float = 0.9,
  lambda_1: float = 0.0,
  lambda_2: float = 2.0,
  alpha: float = 0.1,
  accumulator_dtype: Any = None,
  mask: partition.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """AE-SAM's decisions with LookSAM's reuse in between (AE-LookSAM).

  With `g` the gradient at `w`, `gp` that at SAM's `w + epsilon`, the decision
  of `ae_sam` in place of a period, and `gv` 0 at first::

    on ascent:  gv = gp - (dot(g, gp) / norm(g)^2) * g;   u = gp
    otherwise:  u = g + alpha * (norm(g) / norm(gv)) * gv

  For a normally distributed squared gradient norm the expected share of SAM
  steps is 0.195 at the defaults; "about 20 %" is what the paper is quoted
  with. Neither the defaults nor the exact algorithm could be confirmed against
  the paper. At these lambdas the first step ascends if `decay` is at least
  0.75. The rest is as in `ae_sam` and `look_sam`.

  Args:
    rho: radius in the unit of the parameters, a scalar of at least 0, or a
      schedule of it by the step. 0.05 is SAM's.
    total_steps: T, number of steps of the whole training, at least 1.
    decay: weight of the past in both moments, in [0, 1).
    lambda_1: threshold at the end, in standard deviations above the mean.
    lambda_2: threshold at the start, likewise.
    alpha: length of the reused part relative to the gradient, in [0, 1); 0.1
      as in `look_sam`.
    accumulator_dtype: dtype that `gv` is kept in, with length 1; None for
      float32 or wider, bfloat16 for half of that memory.
    mask: leaves that may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: device axis to average over; see `optax_sam.sharpness_aware`.
    sync_ascent: whether the ascent gradient is averaged too; see there.
      The decision, `gv` and all descents are of averages.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `value_fn` or `grad_fn`. Cost: 1 + the share of SAM steps.
    Keeps two scalars and the direction of `gv`.

  Raises:
    ValueError: if a Python value is out of range, and in `update` if what it
      needs was not passed.

  Warns:
    UserWarning: if a lambda is so large that no step ascends.

  References:
    Jiang, Yang, Zhang, Kwok, `An Adaptive Policy to Employ Sharpness-Aware
    Minimization <https://arxiv.org/abs/2304.14647>`_, ICLR 2023.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.ae_look_sam(total_steps=100, alpha=0.5)
  >>> w, grad_fn = jnp.zeros(2), lambda _: jnp.array([2.0, 3.0])
  >>> state = tx.init(w)
  >>> for size in (2.0, 0.2):  # at the second step no SAM, but gv = (0, 3)
  ...   gradient = jnp.array([size, 0.0])
  ...   u, state = tx.update(gradient, state, w, grad_fn=grad_fn)
  ...   print([round(x, 3) for x in u.tolist()])
  [2.0, 3.0]
  [0.2, 0.1]
  """
  return sharpness_aware(
    scale_to_radius(rho),
    policy=on_sharp_gradients(
      total_steps, decay=decay, lambda_1=lambda_1, lambda_2=lambda_2
    ),
    descent=reuse_orthogonal(alpha, accumulator_dtype=accumulator_dtype),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )
