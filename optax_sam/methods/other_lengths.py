"""Methods that measure the length of the perturbation in another way."""

from typing import Any

import optax

from optax_sam import masking, perturbations, validation
from optax_sam.sharpness_aware import sharpness_aware


def fisher_sam(
  rho: optax.ScalarOrSchedule = 0.1,
  *,
  eta: float = 1.0,
  mask: masking.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Fisher SAM: measures the perturbation by a Fisher metric.

  With `g` the gradient at `w` and `F = 1 + eta * g^2`, elementwise::

    epsilon = rho * (g / F) / (sqrt(sum(g^2 / F)) + 1e-12)
    u       = gradient at w + epsilon

  This `epsilon` is where the linearized loss rises most within
  `sum(F * epsilon^2) <= rho^2`: steep entries move less. The defaults are
  those of a community port. Neither they nor the square of the batch gradient,
  in place of squares of single examples' gradients, could be confirmed against
  the paper. Another port rescales `epsilon` to length `rho`. A factor on the
  loss changes `epsilon`.

  Args:
    rho: radius in that metric, a scalar of at least 0, or a schedule of it by
      the step. 0.1 is a port's.
    eta: weight of the squared gradient, at least 0; 0 is SAM. 1 is a port's.
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
    Kim, Li, Hu, Hospedales, `Fisher SAM: Information Geometry and
    Sharpness-Aware Minimisation <https://arxiv.org/abs/2206.04920>`_, ICML
    2022.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.fisher_sam(rho=1.0)
  >>> w, gradient = jnp.zeros(2), jnp.array([1.0, 3.0])
  >>> u, _ = tx.update(gradient, tx.init(w), w, grad_fn=lambda w: w)
  >>> [round(x, 3) for x in u.tolist()]  # (1 / 2, 3 / 10) / sqrt(1.4)
  [0.423, 0.254]
  """
  return sharpness_aware(
    perturbations.scale_to_fisher_radius(rho, eta=eta),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )


def unnormalized_sam(
  rho: optax.ScalarOrSchedule,
  *,
  clip: bool = False,
  mask: masking.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """SAM without normalization: the perturbation fades with the gradient.

  With `g` the gradient at `w`::

    epsilon = rho * g                # clip=True: shortened to length rho
    u       = gradient at w + epsilon

  The authors' program gives these numbers. A factor on the loss changes
  `epsilon`, so mind the scale of the loss.

  Args:
    rho: factor, a scalar of at least 0, or a schedule of it by the step. There
      is no default.
    clip: whether an `epsilon` longer than `rho` is shortened to it, as on one
      path of the authors' program.
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
    Andriushchenko, Flammarion, `Towards Understanding Sharpness-Aware
    Minimization <https://arxiv.org/abs/2206.06232>`_, ICML 2022.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.unnormalized_sam(0.5)
  >>> loss = lambda w: jnp.sum(w**2)
  >>> w = jnp.array([3.0, 4.0])
  >>> u, _ = tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)
  >>> [round(x, 3) for x in u.tolist()]  # 2 * (w + 0.5 * 2 * w)
  [12.0, 16.0]
  """
  return sharpness_aware(
    perturbations.scale_by_radius(rho, clip=clip),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )


def le_sam(
  sigma: optax.ScalarOrSchedule = 0.35,
  *,
  rho_max: float = 0.5,
  mask: masking.Mask = None,
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
    perturbations.scale_to_loss_rise(sigma, max_radius=rho_max),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )
