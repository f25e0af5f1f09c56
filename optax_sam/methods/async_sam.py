"""AsyncSAM: perturbs by the gradient of the step before."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine import devices, partition
from optax_sam.engine.perturbation import scale_to_radius
from optax_sam.engine.sharpness_aware import sharpness_aware
from optax_sam.trees import tree_math


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
    return DelayState(tree_math.zeros_like(params, accumulator_dtype))

  @jax.jit
  def swap(
    updates: optax.Updates, averaged: optax.Updates, state: DelayState
  ) -> tuple[optax.Updates, DelayState]:
    finite = jnp.isfinite(tree_math.norm(averaged))
    found = DelayState(tree_math.cast_like(averaged, state.direction))
    delayed = tree_math.cast_like(state.direction, updates)
    return delayed, tree_math.select(finite, found, state)

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


def async_sam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  accumulator_dtype: Any = None,
  mask: partition.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """AsyncSAM: perturbs by the gradient of the step before.

  With `g` the gradient at `w`, averaged over the devices, and `last` starting
  at 0::

    epsilon = rho * last / (norm(last) + 1e-12)
    u       = gradient at w + epsilon
    last    = g

  So neither gradient of a step waits for the other one: where the hardware can,
  they are computed side by side. The equation comes from second-hand accounts
  of the paper, with a delay of one step. That the ascent gradient may be that
  of a smaller batch, sized by the speed of a second device, is written down
  nowhere we could read, and not offered.

  Args:
    rho: radius in the unit of the parameters, a scalar of at least 0, or a
      schedule of it by the step. 0.05 is SAM's.
    accumulator_dtype: dtype that `last` is kept in; None for float32 or wider,
      bfloat16 for half of that memory.
    mask: leaves that may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: device axis to average over; see `optax_sam.sharpness_aware`.
    sync_ascent: whether the ascent gradient is averaged too; see there.
      `last` is an average in any case: it makes no difference.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `value_fn` or `grad_fn`. Cost: 2 gradients, independent of
    each other. Keeps `last`.

  Raises:
    ValueError: if a Python value is out of range, and in `update` if what it
      needs was not passed.

  References:
    Jo, Lim, Lee, `Asynchronous Sharpness-Aware Minimization For Fast and
    Accurate Deep Learning <https://arxiv.org/abs/2503.11147>`_, 2025.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.async_sam(rho=0.5)
  >>> loss = lambda w: jnp.sum(w**2)
  >>> w = jnp.array([3.0, 4.0])
  >>> state = tx.init(w)
  >>> for _ in range(2):
  ...   u, state = tx.update(jax.grad(loss)(w), state, w, value_fn=loss)
  ...   print([round(x, 3) for x in u.tolist()])  # 2 * w, 2 * (w + w / 10)
  [6.0, 8.0]
  [6.6, 8.8]
  """
  return sharpness_aware(
    optax.chain(
      delay(accumulator_dtype=accumulator_dtype),
      scale_to_radius(rho),
    ),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )
