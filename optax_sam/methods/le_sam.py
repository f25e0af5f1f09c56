"""LE-SAM: a perturbation that raises the linearized loss by a fixed amount."""

from typing import Any

import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine.perturbation import with_radius
from optax_sam.engine.sharpness_aware import Choices, Mask, compose
from optax_sam.trees import tree_math


def scale_to_loss_rise(
  sigma: optax.ScalarOrSchedule, *, max_radius: float = 0.5
) -> optax.GradientTransformationExtraArgs:
  """Scales to the rise of `optax_sam.le_sam`; `max_radius` is its `rho_max`."""
  validation.check_number('max_radius', max_radius, at_least=0)

  def perturb(rise: Any, updates: optax.Updates, **_: Any) -> optax.Updates:
    size = tree_math.norm(updates)
    # For an unusable norm `scale_to` returns 0, whatever the length.
    divisor = jnp.where(tree_math.is_usable(size), size, 1)
    length = jnp.asarray(rise, size.dtype) / tree_math.stabilized(divisor)
    length = jnp.minimum(length, jnp.asarray(max_radius, size.dtype))
    return tree_math.scale_to(length, updates, size)

  return with_radius(sigma, perturb, name='sigma', below=None)


@validation.method()
def le_sam(
  sigma: optax.ScalarOrSchedule = 0.35,
  *,
  rho_max: float = 0.5,
  mask: Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""Loss-equated SAM (LE-SAM): SAM with a fixed rise of the linearized loss.

  .. math::
    r &= \min(\sigma / (\|g\| + 10^{-12}),\, \rho_{\max}) \\
    \epsilon &= r\, g / (\|g\| + 10^{-12}), \quad g = \nabla L(w) \\
    \tilde g &= \nabla L(w + \epsilon)

  The linearized loss rises by :math:`\sigma`, so the radius :math:`r` grows as
  gradients shrink. A factor on the loss changes the perturbation.

  Args:
    sigma: rise in the unit of the loss, at least 0, or a schedule of it; 0.35
      as in the authors' README for CIFAR-100. Infinity is SAM with `rho_max`.
    rho_max: largest radius, at least 0. 0.5 is that of the authors' script;
      their release also has 0.05 and 999.
    mask, axis_name, sync_ascent: see `optax_sam.sharpness_aware`.

  Returns:
    A gradient transformation to place first in `optax.chain`, whose `update`
    needs `value_fn` or `grad_fn`; stateless. It costs 2 gradients.

  .. note:: The authors hold `sigma` and decay it to 0 over the last 20 % of the
    training: `optax.join_schedules([optax.constant_schedule(0.35),
    optax.cosine_decay_schedule(0.35, T // 5)], [T - T // 5])`. On several
    devices their code averages the ascent gradient, as `sync_ascent=True` does.

  References:
    Wang, Liu, Xie, Gao, `Fix the Loss, Not the Radius: Rethinking the
    Adversarial Perturbation of Sharpness-Aware Minimization
    <https://arxiv.org/abs/2605.10183>`_, ICML 2026.

  >>> import jax.numpy as jnp, optax_sam
  >>> tx, w = optax_sam.le_sam(sigma=5.0), jnp.array([6.0, 8.0])
  >>> u, _ = tx.update(2 * w, tx.init(w), w, grad_fn=lambda w: 2 * w)
  >>> [round(x, 3) for x in u.tolist()]  # 2 * (w + 5 / 20 * w / 10)
  [12.3, 16.4]
  """
  validation.check_number('rho_max', rho_max, at_least=0)
  perturbation = scale_to_loss_rise(sigma, max_radius=rho_max)
  return compose(Choices(perturbation), mask, axis_name, sync_ascent)
