"""LE-SAM: a perturbation that raises the loss by a given amount."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine import partition
from optax_sam.engine.perturbation import with_radius
from optax_sam.engine.sharpness_aware import sharpness_aware
from optax_sam.trees import tree_math


def scale_to_loss_rise(
  sigma: optax.ScalarOrSchedule, *, max_radius: float = 0.5
) -> optax.GradientTransformationExtraArgs:
  """Scales the ascent gradient until the linearized loss rises by sigma.

  With `g` the ascent gradient::

    r       = min(sigma / (norm(g) + 1e-12), max_radius)
    epsilon = r * g / (norm(g) + 1e-12)
    so that dot(g, epsilon) = sigma, where max_radius allows it

  A norm that is zero or not finite gives `epsilon = 0`. A factor on the loss
  changes epsilon. See `optax_sam.le_sam`.

  Args:
    sigma: rise in the unit of the loss, a scalar of at least 0, infinity
      included, or a schedule of it by the step, counted from 0.
    max_radius: largest length of epsilon, at least 0, in the unit of the
      parameters.

  Returns:
    A perturbation. Keeps nothing, or the count of the schedule.

  Raises:
    ValueError: if a Python value is out of range.

  References:
    Wang, Liu, Xie, Gao, `Fix the Loss, Not the Radius: Rethinking the
    Adversarial Perturbation of Sharpness-Aware Minimization
    <https://arxiv.org/abs/2605.10183>`_, ICML 2026.

  >>> piece = scale_to_loss_rise(0.5, max_radius=1.0)
  >>> for g in (jnp.array([3.0, 4.0]), jnp.array([0.03, 0.04])):
  ...   epsilon, _ = piece.update(g, piece.init(g))
  ...   print([round(x, 3) for x in epsilon.tolist()])  # 0.1, then 1 long
  [0.06, 0.08]
  [0.6, 0.8]
  """
  validation.check_radius(sigma, 'sigma')
  validation.check_number('max_radius', max_radius, at_least=0)

  @jax.jit
  def scale(rise: Any, updates: optax.Updates) -> optax.Updates:
    size = tree_math.norm(updates)
    # A norm that can't be divided by makes epsilon 0 whatever the length is.
    length = jnp.asarray(rise, size.dtype) / (size + tree_math.STABILIZER)
    length = jnp.minimum(length, jnp.asarray(max_radius, size.dtype))
    return tree_math.scale_to(length, updates, size)

  return with_radius(sigma, lambda rise, updates, **_: scale(rise, updates))


def le_sam(
  sigma: optax.ScalarOrSchedule = 0.35,
  *,
  rho_max: float = 0.5,
  mask: partition.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Loss-equated SAM (LE-SAM): ascends as far as a rise of the loss allows.

  With `g` the gradient at `w`::

    r       = min(sigma / (norm(g) + 1e-12), rho_max)
    epsilon = r * g / (norm(g) + 1e-12)
    u       = gradient at w + epsilon

  So the linearized loss rises by `sigma`, and the radius grows where the
  gradient fades, up to `rho_max`. A factor on the loss changes `epsilon`. The
  authors hold `sigma`, and take it to 0 by a cosine over the last 20 % of the
  training: `optax.join_schedules([optax.constant_schedule(0.35),
  optax.cosine_decay_schedule(0.35, T // 5)], [T - T // 5])`. Their program on
  several devices averages the ascent gradient, as `sync_ascent=True`.

  Args:
    sigma: rise in the unit of the loss, a scalar of at least 0, or a schedule
      of it by the step; it stands where other methods have `rho`. 0.35 is the
      value for CIFAR-100 in the authors' README; with infinity this is SAM
      with the radius `rho_max`.
    rho_max: largest radius in the unit of the parameters, at least 0. 0.5 is
      that of the authors' script; their release also holds 0.05 and 999.
    mask: leaves that may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: device axis to average over; see `optax_sam.sharpness_aware`.
    sync_ascent: whether the ascent gradient is averaged too; see there.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `value_fn` or `grad_fn`. Cost: 2 gradients. Keeps nothing.

  Raises:
    ValueError: if a Python value is out of range, and in `update` if what it
      needs was not passed.

  References:
    Wang, Liu, Xie, Gao, `Fix the Loss, Not the Radius: Rethinking the
    Adversarial Perturbation of Sharpness-Aware Minimization
    <https://arxiv.org/abs/2605.10183>`_, ICML 2026.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.le_sam(sigma=5.0)
  >>> loss = lambda w: jnp.sum(w**2)
  >>> w = jnp.array([6.0, 8.0])
  >>> u, _ = tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)
  >>> [round(x, 3) for x in u.tolist()]  # 2 * (w + 5 / 20 * w / 10)
  [12.3, 16.4]
  """
  validation.check_number('rho_max', rho_max, at_least=0)
  return sharpness_aware(
    scale_to_loss_rise(sigma, max_radius=rho_max),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )
