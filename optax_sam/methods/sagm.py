"""SAGM: aligns the gradients of the loss and of the perturbed loss."""

from typing import Any

import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine.descent import mix
from optax_sam.engine.perturbation import with_radius
from optax_sam.engine.sharpness_aware import Choices, Mask, compose
from optax_sam.trees import tree_math


@validation.method()
def sagm(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  alpha: float = 0.001,
  mask: Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""SAGM: aligns the gradients of the loss and of the perturbed loss.

  The perturbation is that of SAM, shortened by a multiple of the gradient. This
  rewards equal directions of both gradients. SAGM is for domain generalization.

  .. math::
    \epsilon &= (\rho / (\|g\| + 10^{-12}) - \alpha) g, \quad g = \nabla L(w) \\
    u &= (g + \nabla L(w + \epsilon)) / 2

  Args:
    rho: radius, at least 0, or a schedule; 0.05 is the authors', with Adam.
    alpha: multiple of :math:`g`, at least 0; 0.001 is the authors' default, and
      they search from 0.01 to 0.1. A factor on the loss changes its effect.
    mask, axis_name, sync_ascent: see `optax_sam.sharpness_aware`.

  Returns:
    A gradient transformation to place first in `optax.chain`, whose `update`
    needs `value_fn` or `grad_fn`; stateless. It costs 2 gradients.

  .. note:: The rule is that of the authors' code. The paper adds the two
    losses, and its direction is twice as long.

  References:
    Wang, Zhang, Lei, Zhang, `Sharpness-Aware Gradient Matching for Domain
    Generalization <https://arxiv.org/abs/2303.10353>`_, CVPR 2023.

  >>> import jax.numpy as jnp, optax_sam
  >>> tx, w = optax_sam.sagm(rho=5.0, alpha=0.5), jnp.array([3.0, 4.0])
  >>> u, _ = tx.update(w, tx.init(w), w, grad_fn=lambda w: w)
  >>> [round(x, 3) for x in u.tolist()]  # w + (w + (5 / 5 - 0.5) * w), halved
  [3.75, 5.0]
  """
  validation.check_number('alpha', alpha, at_least=0)

  def perturb(radius: Any, updates: Any, **_: Any) -> Any:
    size = tree_math.norm(updates)
    usable = tree_math.is_usable(size)
    radius, less = (jnp.asarray(x, size.dtype) for x in (radius, alpha))
    scale = radius / tree_math.stabilized(jnp.where(usable, size, 1)) - less
    return tree_math.multiply_where(usable, scale, updates)

  choices = Choices(with_radius(rho, perturb), descent=mix(0.5))
  return compose(choices, mask, axis_name, sync_ascent)
