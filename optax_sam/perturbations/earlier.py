"""Perturbations by the gradient of an earlier step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import devices, numerics, validation


class DelayState(NamedTuple):
  """State of `delay`.

  Attributes:
    direction: gradient of the step before, like the parameters, float32 or
      wider unless a dtype was given.
  """

  direction: optax.Updates


def delay(
  *, accumulator_dtype: Any = None
) -> optax.GradientTransformationExtraArgs:
  """Hands on the gradient of the step before: AsyncSAM.

  With `g` the ascent gradient, `gbar` its average over the devices, and `last`
  starting at 0::

    d = last
    last = gbar

  So what comes out doesn't wait for the gradient of its step. A gradient that
  isn't finite is not stored; see `optax_sam.async_sam`.

  Args:
    accumulator_dtype: dtype that `last` is kept in; None for float32 or wider.
      bfloat16 takes half of the memory and keeps 8 bits of every entry.

  Returns:
    A perturbation, to be followed by one that gives epsilon a length. Keeps
    `last` (`DelayState`).

  Raises:
    ValueError: if `accumulator_dtype` is no floating-point dtype.

  References:
    Jo, Lim, Lee, `Asynchronous Sharpness-Aware Minimization For Fast and
    Accurate Deep Learning <https://arxiv.org/abs/2503.11147>`_, 2025.

  >>> piece = delay()
  >>> state = piece.init(jnp.zeros(2))
  >>> for t in range(3):
  ...   d, state = piece.update(jnp.array([t + 1.0, 0.0]), state)
  ...   print(d.tolist())
  [0.0, 0.0]
  [1.0, 0.0]
  [2.0, 0.0]
  """
  validation.check_float_dtype('accumulator_dtype', accumulator_dtype)

  def init(params: optax.Params) -> DelayState:
    return DelayState(numerics.zeros_like(params, accumulator_dtype))

  @jax.jit
  def swap(
    updates: optax.Updates, averaged: optax.Updates, state: DelayState
  ) -> tuple[optax.Updates, DelayState]:
    finite = jnp.isfinite(numerics.norm(averaged))
    found = DelayState(numerics.cast_like(averaged, state.direction))
    delayed = numerics.cast_like(state.direction, updates)
    return delayed, numerics.select(finite, found, state)

  def update(
    updates: Any,
    state: Any,
    params: Any = None,
    *,
    axis_name: Any = None,
    is_synced: bool = False,
    **_: Any,
  ) -> tuple[Any, DelayState]:
    del params
    averaged = devices.average(updates, None if is_synced else axis_name)
    return swap(updates, averaged, state)

  return optax.GradientTransformationExtraArgs(init, update)
