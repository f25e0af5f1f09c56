"""Schedules of the radius."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam import numerics, validation


def rho_like_learning_rate(
  learning_rate: optax.Schedule,
  *,
  rho_max: float,
  rho_min: float,
  lr_max: float,
  lr_min: float,
) -> optax.Schedule:
  """Couples the radius to the learning rate, as GSAM does.

  With `lr_t` the learning rate at step `t`::

    rho_t = rho_min + (rho_max - rho_min) * (lr_t - lr_min) / (lr_max - lr_min)

  clamped to [rho_min, rho_max]: a warm-up that starts below `lr_min` would
  otherwise give a negative radius. See `optax_sam.gsam` for the pairs that the
  authors publish.

  Args:
    learning_rate: schedule of the absolute learning rate by the step, counted
      from 0; not of a factor from 0 to 1.
    rho_max: radius where the learning rate is `lr_max`, at least `rho_min`.
    rho_min: radius where the learning rate is `lr_min`, at least 0.
    lr_max: largest learning rate, at least `lr_min`.
    lr_min: smallest learning rate; equal to `lr_max` it gives `rho_max`.

  Returns:
    A schedule to pass as `rho` to any method; its values are float32, or
    float64 where the learning rate is.

  Raises:
    ValueError: if a Python value is out of range, or `learning_rate` no
      schedule.

  References:
    Zhuang, Gong, Yuan, Cui, Adam, Dvornek, Tatikonda, Duncan, Liu, `Surrogate
    Gap Minimization Improves Sharpness-Aware Training
    <https://arxiv.org/abs/2203.08065>`_, ICLR 2022.

  >>> schedule = rho_like_learning_rate(
  ...   optax.linear_schedule(1.0, 0.0, 10),
  ...   rho_max=0.6,
  ...   rho_min=0.1,
  ...   lr_max=1.0,
  ...   lr_min=0.0,
  ... )
  >>> [round(float(schedule(t)), 3) for t in (0, 5, 10)]
  [0.6, 0.35, 0.1]
  """
  if not callable(learning_rate):
    msg = (
      f'learning_rate must be a schedule, got {learning_rate!r}: a constant '
      f'one has a constant radius, so pass that as rho.'
    )
    raise ValueError(msg)
  validation.check_number('rho_min', rho_min, at_least=0)
  validation.check_number('rho_max', rho_max, at_least=rho_min)
  validation.check_number('lr_min', lr_min)
  validation.check_number('lr_max', lr_max, at_least=lr_min)

  def schedule(count: Any) -> jax.Array:
    rate = numerics.widen(jnp.asarray(learning_rate(count)))
    if lr_max == lr_min:
      return jnp.full_like(rate, rho_max)
    share = (rate - lr_min) / (lr_max - lr_min)
    return jnp.clip(rho_min + (rho_max - rho_min) * share, rho_min, rho_max)

  return schedule
