"""Fisher SAM: SAM with the radius in a Fisher metric."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine.perturbation import with_radius
from optax_sam.engine.sharpness_aware import Choices, Mask, compose
from optax_sam.trees import tree_math


def scale_to_fisher_radius(
  rho: optax.ScalarOrSchedule, *, eta: float = 1.0
) -> optax.GradientTransformationExtraArgs:
  """Scales the ascent gradient to the radius of `optax_sam.fisher_sam`."""
  validation.check_number('eta', eta, at_least=0)

  def perturb(radius: Any, updates: optax.Updates, **_: Any) -> optax.Updates:
    wide = jax.tree.map(tree_math.widen, updates)
    metric = lambda g: 1 + jnp.asarray(eta, g.dtype) * jnp.square(g)
    natural = jax.tree.map(lambda g: g / metric(g), wide)
    unit = tree_math.squared_norm(wide)[1]
    along = tree_math.dot(natural, tree_math.divide(wide, unit))
    size = jnp.sqrt(along) * jnp.sqrt(unit)
    epsilon = tree_math.scale_to(radius, natural, size)
    return optax.tree.cast_like(epsilon, updates)

  return with_radius(rho, perturb)


@validation.method()
def fisher_sam(
  rho: optax.ScalarOrSchedule = 0.1,
  *,
  eta: float = 1.0,
  mask: Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""Fisher SAM: measures the perturbation by a Fisher metric.

  .. math::
    F &= 1 + \eta\, g^2 \text{ elementwise}, \quad g = \nabla L(w) \\
    \epsilon &= \rho\, (g / F) / (\sqrt{\sum g^2 / F} + 10^{-12}) \\
    \tilde g &= \nabla L(w + \epsilon)

  :math:`\epsilon` maximizes the linearized loss within :math:`\sum F \epsilon^2
  \le \rho^2`, so steep entries move less. A factor on the loss changes
  :math:`\epsilon`.

  Args:
    rho: radius in that metric, at least 0, or a schedule of it by the step.
    eta: weight of the squared gradient, at least 0; 0 is SAM.
    mask, axis_name, sync_ascent: see `optax_sam.sharpness_aware`.

  Returns:
    A gradient transformation to place first in `optax.chain`, whose `update`
    needs `value_fn` or `grad_fn`; stateless. It costs 2 gradients.

  .. note:: The defaults are those of a community port; another port rescales
    :math:`\epsilon` to length `rho`. Unverified: the defaults, and the squared
    batch gradient in place of squared per-example gradients.

  References:
    Kim et al., `Fisher SAM: Information Geometry and Sharpness-Aware
    Minimisation <https://arxiv.org/abs/2206.04920>`_, ICML 2022.

  >>> import jax.numpy as jnp, optax_sam
  >>> tx, w = optax_sam.fisher_sam(rho=1.0), jnp.zeros(2)
  >>> g = jnp.array([1.0, 3.0])
  >>> u, _ = tx.update(g, tx.init(w), w, grad_fn=lambda w: w)
  >>> [round(x, 3) for x in u.tolist()]  # (1 / 2, 3 / 10) / sqrt(1.4)
  [0.423, 0.254]
  """
  perturbation = scale_to_fisher_radius(rho, eta=eta)
  return compose(Choices(perturbation), mask, axis_name, sync_ascent)
