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

  Of the paper's families of schedules, constant is a number, and its
  trigonometric one, SAM early, is `lambda t: (1 + cos(pi * t / T)) / 2`. The
  exact form of its linear one could not be confirmed; use
  `optax.linear_schedule`.

  Args:
    rho: radius, at least 0, or a schedule of it.
    probability: chance of a SAM step in [0, 1], or a schedule of it. 0.5 is
      the "propagation count 1.5" that the paper is quoted with; the authors'
      example has 0.6.
    key: integer seed or typed key; not that of the dropout.
    mask: which leaves may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: axis of `jax.pmap` or `jax.shard_map` to average over; the coin
      is the same on all devices.
    sync_ascent: whether the ascent gradient is averaged over that axis too.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `value_fn` or `grad_fn`. Cost: 1 + the mean probability.

  Raises:
    ValueError: if a Python value is out of range.

  References:
    Zhao, Zhang, Hu, `SS-SAM: Stochastic Scheduled Sharpness-Aware Minimization
    for Efficiently Training Deep Neural Networks
    <https://arxiv.org/abs/2203.09962>`_, 2022; as RST, AAAI 2023.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.ss_sam(rho=0.5, probability=1.0, key=0)
  >>> loss = lambda w: jnp.sum(w**2)
  >>> w = jnp.array([3.0, 4.0])
  >>> u, _ = tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)
  >>> [round(x, 3) for x in u.tolist()]
  [6.6, 8.8]
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
  step, counted from 0, and `T = total_steps`::

    x        = norm(gbar)^2
    mean     = decay * mean + (1 - decay) * x
    variance = decay * variance + (1 - decay) * (x - mean)^2
    c        = (t / T) * lambda_1 + (1 - t / T) * lambda_2
    u        = SAM's gradient if x >= mean + c * sqrt(variance) else g

  For a normally distributed `x` the expected share of SAM steps is 0.50 at the
  defaults, rising over training; real ones are skewed: expect somewhat less.

  The equations and their order come from restatements of the paper that agree;
  no program is public. The defaults of `decay`, `lambda_1` and `lambda_2`, and
  the initial variance of 0, could not be confirmed against the paper. A start
  at e^-10, as a derived program has it, is
  `policies.on_sharp_gradients(..., initial_variance=math.exp(-10))`.

  Args:
    rho: radius, at least 0, or a schedule of it.
    total_steps: T, number of steps of the whole training, at least 1.
    decay: weight of the past in both moments, in [0, 1); 0.5 to 0.99 are
      sensible.
    lambda_1: threshold at the end, in standard deviations above the mean.
    lambda_2: threshold at the start, likewise. Values above
      `1 / sqrt(1 - decay)` never ascend, with a warning.
    mask: which leaves may be perturbed; the policy sees the whole gradient.
    axis_name: axis of `jax.pmap` or `jax.shard_map` to average over; the
      decision is the same on all devices.
    sync_ascent: whether the ascent gradient is averaged over that axis too.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `value_fn` or `grad_fn`. Cost: 1 + the share of SAM steps;
    keeps two scalars.

  Raises:
    ValueError: if a Python value is out of range.

  References:
    Jiang, Yang, Zhang, Kwok, `An Adaptive Policy to Employ Sharpness-Aware
    Minimization <https://arxiv.org/abs/2304.14647>`_, ICLR 2023.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.ae_sam(total_steps=100)
  >>> loss = lambda w: jnp.sum(w**2)
  >>> w = jnp.array([3.0, 4.0])
  >>> u, state = tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)
  >>> bool(state.info.ascended)
  True
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
