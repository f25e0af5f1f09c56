"""VaSSO: perturbs along a moving average of the gradients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine import devices, partition
from optax_sam.engine.perturbation import scale_to_radius
from optax_sam.engine.sharpness_aware import Choices, compose
from optax_sam.trees import tree_math


class AverageGradientState(NamedTuple):
  """State of `average_gradient`: `average`, and `started` after a step."""

  average: optax.Updates
  started: jax.Array


def average_gradient(
  theta: float = 0.9, *, accumulator_dtype: Any = None
) -> optax.GradientTransformationExtraArgs:
  """Averages the ascent gradient to the `d` of `optax_sam.vasso`.

  Place it before a component that scales to a radius.
  """
  validation.check_number('theta', theta, above=0, at_most=1)
  validation.check_float_dtype('accumulator_dtype', accumulator_dtype)

  def init(params: optax.Params) -> AverageGradientState:
    average = tree_math.zeros_like(params, accumulator_dtype)
    return AverageGradientState(average, jnp.zeros((), bool))

  def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
    def mix(g: jax.Array, d: jax.Array) -> jax.Array:
      wide = d.astype(tree_math.wide_dtype(g, d))
      weight, new = jnp.asarray(theta, wide.dtype), g.astype(wide.dtype)
      return jnp.where(state.started, (1 - weight) * wide + weight * new, new)

    averaged = devices.average_ascent(updates, **extra)
    direction = jax.tree.map(mix, updates, state.average)
    average = jax.tree.map(mix, averaged, state.average)
    average = optax.tree.cast_like(average, state.average)
    found = AverageGradientState(average, jnp.ones((), bool))
    return optax.tree.cast_like(direction, updates), found

  return optax.GradientTransformationExtraArgs(init, update)


@validation.method()
def vasso(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  theta: float = 0.9,
  accumulator_dtype: Any = None,
  mask: partition.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""VaSSO: perturbs along a moving average, which has less noise.

  .. math::
    d &\leftarrow (1 - \theta)\, d + \theta g, \quad g = \nabla L(w) \\
    \epsilon &= \rho\, d / (\|d\| + 10^{-12}) \\
    \tilde g &= \nabla L(w + \epsilon)

  :math:`d = g` at the first step. On several devices each adds its own
  :math:`g` to the average of all, and stores the average over the devices.

  Args:
    rho: radius, at least 0, or a schedule of it by the step. The authors' class
      has 0.05, their run with WRN-28-10 on CIFAR-100 0.2.
    theta: weight :math:`\theta` of the new gradient, in (0, 1]: 1 is SAM.
    accumulator_dtype: dtype of `d`; None for float32 or wider.
    mask, axis_name, sync_ascent: see `optax_sam.sharpness_aware`.

  Returns:
    A gradient transformation to place first in `optax.chain`, whose `update`
    needs `value_fn` or `grad_fn`; state: `d`. It costs 2 gradients.

  .. note:: Rule and default are of the authors' code, which adds 1e-7 to norms.

  References:
    Li, Giannakis, `Enhancing Sharpness-Aware Optimization Through Variance
    Suppression <https://arxiv.org/abs/2309.15639>`_, NeurIPS 2023.

  >>> import jax.numpy as jnp, optax_sam
  >>> tx, w = optax_sam.vasso(rho=5.0, theta=0.5), jnp.zeros(2)
  >>> state = tx.init(w)
  >>> for g in jnp.array([[2.0, 8.0], [4.0, 0.0]]):
  ...   u, state = tx.update(g, state, w, grad_fn=lambda w: w)
  >>> [round(x, 3) for x in u.tolist()]  # along (2, 8) / 2 + (4, 0) / 2
  [3.0, 4.0]
  """
  average = average_gradient(theta, accumulator_dtype=accumulator_dtype)
  perturbation = optax.chain(average, scale_to_radius(rho))
  return compose(Choices(perturbation), mask, axis_name, sync_ascent)
