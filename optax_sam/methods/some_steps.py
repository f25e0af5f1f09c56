"""Methods that take the second gradient at some steps, SGD in between."""

from typing import Any

import jax
import optax

from optax_sam import masking, perturbations, policies
from optax_sam.sharpness_aware import sharpness_aware


def ss_sam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  probability: optax.ScalarOrSchedule = 0.5,
  key: jax.Array | int,
  mask: masking.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Stochastic scheduled SAM (SS-SAM): a coin decides at every step.

  With `g` the gradient at `w` and `t` the step, counted from 0::

    ascend = bernoulli(fold_in(key, t), probability(t))
    u      = SAM's gradient if ascend else g

  Of the paper's families of schedules, constant is a number; piecewise is
  `lambda t: jnp.where(t < share * T, p, 1 - p)`; the trigonometric one, SAM
  early, is `lambda t: (1 + jnp.cos(jnp.pi * t / T)) / 2`. The exact form of
  its linear one could not be confirmed; use `optax.linear_schedule`.

  The authors' program draws the coin on the host and runs one of two compiled
  steps, the same law. Their later G-RST mixes both gradients where it ascends,
  a form that could not be confirmed: join `policies.bernoulli` and
  `descents.mix`; a weight of 1 / `probability` keeps SAM's strength.

  Args:
    rho: radius in the unit of the parameters, a scalar of at least 0, or a
      schedule of it by the step. 0.05 is SAM's.
    probability: chance of a SAM step in [0, 1], or a schedule of it. 0.5 is
      the "propagation count 1.5" that the paper is quoted with; the authors'
      example has 0.6.
    key: integer seed or typed key, the same on all devices; not that of the
      dropout.
    mask: leaves that may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: device axis to average over; see `optax_sam.sharpness_aware`.
    sync_ascent: whether the ascent gradient is averaged too; see there.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `value_fn` or `grad_fn`. Cost: 1 + the mean probability.
    Keeps the key.

  Raises:
    ValueError: if a Python value is out of range, and in `update` if what it
      needs was not passed.

  References:
    Zhao, Zhang, Hu, `SS-SAM: Stochastic Scheduled Sharpness-Aware Minimization
    for Efficiently Training Deep Neural Networks
    <https://arxiv.org/abs/2203.09962>`_, 2022; as RST, AAAI 2023.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> early = lambda t: jnp.where(t < 2, 1.0, 0.0)
  >>> tx = optax_sam.ss_sam(rho=0.5, probability=early, key=0)
  >>> loss = lambda w: jnp.sum(w**2)
  >>> w, directions = jnp.float32(1.0), []
  >>> state = tx.init(w)
  >>> for _ in range(4):
  ...   u, state = tx.update(jax.grad(loss)(w), state, w, value_fn=loss)
  ...   directions.append(float(u))
  >>> directions  # 2 * (w + 0.5), then 2 * w
  [3.0, 3.0, 2.0, 2.0]
  """
  return sharpness_aware(
    perturbations.scale_to_radius(rho),
    policy=policies.bernoulli(probability, key),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )


def ae_sam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  total_steps: int,
  decay: float = 0.9,
  lambda_1: float = -1.0,
  lambda_2: float = 1.0,
  mask: masking.Mask = None,
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
    perturbations.scale_to_radius(rho),
    policy=policies.on_sharp_gradients(
      total_steps, decay=decay, lambda_1=lambda_1, lambda_2=lambda_2
    ),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )
