"""AsyncSAM: perturbs along the gradient of the previous step."""

from typing import Any, NamedTuple

import optax

from optax_sam import validation
from optax_sam.engine import devices, partition
from optax_sam.engine.perturbation import scale_to_radius
from optax_sam.engine.sharpness_aware import Choices, compose
from optax_sam.trees import tree_math


class DelayState(NamedTuple):
  """State of `delay`: `direction`, the gradient of the previous step."""

  direction: optax.Updates


def delay(
  *, accumulator_dtype: Any = None
) -> optax.GradientTransformationExtraArgs:
  """Returns the ascent gradient of the last step; see `optax_sam.async_sam`.

  Place it before a component that scales to a radius.
  """
  validation.check_float_dtype('accumulator_dtype', accumulator_dtype)

  def init(params: optax.Params) -> DelayState:
    return DelayState(tree_math.zeros_like(params, accumulator_dtype))

  def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
    averaged = devices.average_ascent(updates, **extra)
    delayed = optax.tree.cast_like(state.direction, updates)
    return delayed, DelayState(optax.tree.cast_like(averaged, state.direction))

  return optax.GradientTransformationExtraArgs(init, update)


@validation.method()
def async_sam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  accumulator_dtype: Any = None,
  mask: partition.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""AsyncSAM: perturbs along the gradient of the previous step.

  .. math::
    \tilde g = \nabla L(w_t + \epsilon), \quad
    \epsilon = \rho\, g_{t-1} / (\|g_{t-1}\| + 10^{-12})

  Neither gradient of a step needs the other, so hardware may compute them in
  parallel. :math:`g_{t-1}` is averaged over devices, and 0 at the first step.

  Args:
    rho: radius, at least 0, or a schedule of it by the step; 0.05 is SAM's.
    accumulator_dtype: dtype of the stored gradient; None: float32 or wider.
    mask, axis_name, sync_ascent: see `optax_sam.sharpness_aware`; `sync_ascent`
      makes no difference.

  Returns:
    A gradient transformation to place first in `optax.chain`, whose `update`
    needs `value_fn` or `grad_fn`; state: one gradient. It costs 2 gradients.

  .. note:: The rule follows second-hand accounts of the paper. Ascent gradients
    of a smaller batch are not offered, because we found no description of them.

  References:
    Jo, Lim, Lee, `Asynchronous Sharpness-Aware Minimization For Fast and
    Accurate Deep Learning <https://arxiv.org/abs/2503.11147>`_, 2025.

  >>> import jax.numpy as jnp, optax_sam
  >>> tx, w = optax_sam.async_sam(rho=0.5), jnp.array([3.0, 4.0])
  >>> _, state = tx.update(w, tx.init(w), w, grad_fn=lambda w: w)
  >>> u, _ = tx.update(w, state, w, grad_fn=lambda w: w)
  >>> [round(x, 3) for x in u.tolist()]  # w + w / 10
  [3.3, 4.4]
  """
  delayed = delay(accumulator_dtype=accumulator_dtype)
  perturbation = optax.chain(delayed, scale_to_radius(rho))
  return compose(Choices(perturbation), mask, axis_name, sync_ascent)
