"""Methods that look at the curvature of the loss besides its slope."""

from typing import Any

import jax
import optax

from optax_sam import descents, masking, perturbations
from optax_sam.sharpness_aware import sharpness_aware


def cr_sam(
  rho: optax.ScalarOrSchedule = 0.1,
  *,
  gamma: float = 0.1,
  beta: float = 0.01,
  mask: masking.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Curvature regularized SAM (CR-SAM): looks to both sides of the weights.

  With `g` the gradient at `w`::

    epsilon = rho * g / (norm(g) + 1e-12)
    gp      = gradient at w + epsilon
    gm      = gradient at w - epsilon
    u       = gp + gamma * (gp + gm - 2 * g) + beta * (gp - gm)

  So the rise of the loss counts more where it bends upwards. The rule is that
  of the authors' program, which gives these numbers; how it follows from the
  normalized trace of the Hessian that the paper regularizes could not be
  confirmed.

  Args:
    rho: radius in the unit of the parameters, a scalar of at least 0, or a
      schedule of it by the step. This and the other defaults are those of the
      authors' script.
    gamma: weight of the second difference, at least 0.
    beta: weight of the first difference, at least 0; with both 0 this is SAM.
    mask: leaves that may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: device axis to average over; see `optax_sam.sharpness_aware`.
    sync_ascent: whether the ascent gradient is averaged too; see there.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `value_fn` or `grad_fn`. Cost: 3 gradients. Keeps nothing.

  Raises:
    ValueError: if a Python value is out of range, and in `update` if what it
      needs was not passed.

  References:
    Wu, Luo, Wunsch, `CR-SAM: Curvature Regularized Sharpness-Aware
    Minimization <https://arxiv.org/abs/2312.13555>`_, AAAI 2024.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.cr_sam(rho=1.0, gamma=0.5, beta=0.1)
  >>> loss = lambda w: w**3
  >>> w = jnp.float32(3.0)
  >>> u, _ = tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)
  >>> round(float(u), 3)  # 48 + 0.5 * (48 + 12 - 2 * 27) + 0.1 * (48 - 12)
  54.6
  """
  return sharpness_aware(
    perturbations.scale_to_radius(rho),
    descent=descents.regularize_curvature(gamma, beta),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )


def eigen_sam(
  rho: optax.ScalarOrSchedule = 0.1,
  *,
  alpha: float = 0.2,
  refresh_every: int = 100,
  power_steps: int = 5,
  key: jax.Array | int,
  accumulator_dtype: Any = None,
  mask: masking.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Eigen-SAM: turns the perturbation to the top eigenvector of the Hessian.

  With `g` the gradient at `w`, `H` the Hessian there, of the batch, and `v` at
  first a random direction of length 1::

    every refresh_every steps, t = 0 included, power_steps times:
      v = H v / norm(H v)
    h       = g / (norm(g) + 1e-12)
    epsilon = rho * (h + alpha * sign(dot(g, v)) * (v - dot(h, v) * h))
    u       = gradient at w + epsilon

  So `epsilon` is longer than `rho`, by at most `sqrt(1 + alpha^2)`. Each
  estimate of `v` starts from the one before. A gradient or an `H v` that is
  zero or not finite leaves `v` as it was. Given `v`, the authors' program
  gives these numbers. It has no `v` for its first 100 steps and perturbs by
  `rho * g`, not normalized, until then: not reproduced.

  Args:
    rho: radius in the unit of the parameters, a scalar of at least 0, or a
      schedule of it by the step. That this and the other defaults are the
      paper's could not be confirmed.
    alpha: weight of the part of `v` that is orthogonal to `g`, at least 0; 0
      is SAM.
    refresh_every: number of steps from one estimate of `v` to the next, at
      least 1. 100 as in the authors' program.
    power_steps: number of products with the Hessian for it, at least 1.
    key: integer seed or typed key, the same on all devices.
    accumulator_dtype: dtype that `v` is kept in; None for float32 or wider,
      bfloat16 for half of that memory.
    mask: leaves that may be perturbed; see `optax_sam.sharpness_aware`.
      The Hessian is that of these leaves.
    axis_name: device axis to average over; see `optax_sam.sharpness_aware`.
    sync_ascent: whether the ascent gradient is averaged too; see there.
      `v` is of averages in any case.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `value_fn` or `grad_fn`, which is differentiated once more.
    Cost: 2 gradients, and about 2 * `power_steps` at a refresh. Keeps `v`.

  Raises:
    ValueError: if a Python value is out of range, and in `update` if what it
      needs was not passed.

  References:
    Luo, Truong, Pham, Harandi, Phung, Le, `Explicit Eigenvalue Regularization
    Improves Sharpness-Aware Minimization <https://arxiv.org/abs/2501.12666>`_,
    NeurIPS 2024.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.eigen_sam(rho=0.5, alpha=1.0, power_steps=30, key=0)
  >>> loss = lambda w: (w[0] ** 2 + 4 * w[1] ** 2) / 2
  >>> w = jnp.array([1.0, 0.001])
  >>> u, _ = tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)
  >>> [round(x, 1) for x in u.tolist()]  # epsilon is nearly (0.5, 0.5)
  [1.5, 2.0]
  """
  return sharpness_aware(
    perturbations.scale_toward_eigenvector(
      rho,
      alpha=alpha,
      refresh_every=refresh_every,
      power_steps=power_steps,
      key=key,
      accumulator_dtype=accumulator_dtype,
    ),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )
