"""Unnormalized SAM: SAM without the division by the norm."""

from typing import Any

import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine.perturbation import with_radius
from optax_sam.engine.sharpness_aware import Choices, Mask, compose
from optax_sam.trees import tree_math


def scale_by_radius(
  rho: optax.ScalarOrSchedule, *, clip: bool = False
) -> optax.GradientTransformationExtraArgs:
  """Scales the ascent gradient by rho: see `optax_sam.unnormalized_sam`.

  A norm that is not finite gives a perturbation of 0.
  """
  validation.check_choice('clip', clip, (True, False))

  def perturb(radius: Any, updates: optax.Updates, **_: Any) -> optax.Updates:
    size = tree_math.norm(updates)
    radius = jnp.asarray(radius, size.dtype)
    if clip:
      radius = radius / jnp.maximum(size, 1)
    return tree_math.multiply_where(jnp.isfinite(size), radius, updates)

  return with_radius(rho, perturb)


@validation.method()
def unnormalized_sam(
  rho: optax.ScalarOrSchedule,
  *,
  clip: bool = False,
  mask: Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""Unnormalized SAM (USAM): the perturbation shrinks with the gradient.

  .. math:: \tilde g = \nabla L(w + \rho\, g), \quad g = \nabla L(w)

  With `clip`, the perturbation is :math:`\rho\, g / \max(\|g\|, 1)`. A factor
  on the loss changes the perturbation.

  Args:
    rho: factor of at least 0, in the unit of the parameters over that of the
      gradient, or a schedule of it by the step. There is no default.
    clip: whether to shorten perturbations to length `rho`, as one branch of
      the authors' code, tml-epfl/understanding-sam. The rule agrees with it.
    mask, axis_name, sync_ascent: see `optax_sam.sharpness_aware`.

  Returns:
    A gradient transformation to place first in `optax.chain`, whose `update`
    needs `value_fn` or `grad_fn`; stateless, with 2 gradients a step.

  References:
    Andriushchenko, Flammarion, `Towards Understanding Sharpness-Aware
    Minimization <https://arxiv.org/abs/2206.06232>`_, ICML 2022.

  >>> import jax.numpy as jnp, optax_sam
  >>> tx, w = optax_sam.unnormalized_sam(0.5), jnp.array([3.0, 4.0])
  >>> u, _ = tx.update(w, tx.init(w), w, grad_fn=lambda w: w)
  >>> [round(x, 3) for x in u.tolist()]  # w + 0.5 * w
  [4.5, 6.0]
  """
  perturbation = scale_by_radius(rho, clip=clip)
  return compose(Choices(perturbation), mask, axis_name, sync_ascent)
