"""Methods that descend with the clean and the perturbed gradient together."""

from typing import Any

import optax

from optax_sam import descents, masking, perturbations, validation
from optax_sam.sharpness_aware import sharpness_aware


def gsam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  alpha: float = 0.4,
  mask: masking.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Surrogate gap guided SAM (GSAM): also closes the gap to the clean loss.

  With `g` the gradient at `w`::

    epsilon = rho * g / (norm(g) + 1e-12)
    gp      = gradient at w + epsilon
    perp    = g - (dot(g, gp) / norm(gp)^2) * gp
    u       = gp - alpha * perp

  So the part of the clean gradient that is orthogonal to the perturbed one is
  taken away. `u = gp` where that part is mere rounding against `g`, and where
  `gp` is 0. Published code gives these numbers.

  The paper couples the radius to the learning rate, by
  `rho=rho_like_learning_rate(...)`. With the linear schedulers of the authors'
  README the radius runs one step ahead of the rate; here both are read at the
  same step. Their published pairs, as the radius from the first to the last
  learning rate: ResNet-50 and -101 0.04 to 0.02 with `alpha=0.01` (ResNet-152
  0.005); ViT-S/32 0.6 to 0 with 0.4, S/16 0.6 to 0 with 1.0, B/32 0.6 to 0.1
  with 0.6, B/16 0.6 to 0.2 with 0.4.

  Args:
    rho: radius in the unit of the parameters, a scalar of at least 0, or a
      schedule of it by the step. 0.05 is SAM's; see above.
    alpha: weight of `perp`, at least 0; 0 is SAM. 0.4 is that of the authors'
      CIFAR example and of ViT-S/32.
    mask: leaves that may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: device axis to average over; see `optax_sam.sharpness_aware`.
    sync_ascent: whether the ascent gradient is averaged too; see there.
      By default `perp` is a device's own too, as in the authors' program.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `value_fn` or `grad_fn`. Cost: 2 gradients. Keeps nothing.

  Raises:
    ValueError: if a Python value is out of range, and in `update` if what it
      needs was not passed.

  References:
    Zhuang, Gong, Yuan, Cui, Adam, Dvornek, Tatikonda, Duncan, Liu, `Surrogate
    Gap Minimization Improves Sharpness-Aware Training
    <https://arxiv.org/abs/2203.08065>`_, ICLR 2022.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.gsam(alpha=0.5)
  >>> w, gradient = jnp.zeros(2), jnp.array([3.0, 4.0])
  >>> grad_fn = lambda _: jnp.array([0.0, 2.0])
  >>> u, _ = tx.update(gradient, tx.init(w), w, grad_fn=grad_fn)
  >>> [round(x, 3) for x in u.tolist()]  # perp = (3, 0)
  [-1.5, 2.0]
  """
  return sharpness_aware(
    perturbations.scale_to_radius(rho),
    descent=descents.surrogate_gap(alpha),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )


def gradient_norm_penalty(
  rho: optax.ScalarOrSchedule = 0.1,
  *,
  alpha: float = 0.8,
  normalize_clean: bool = False,
  mask: masking.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Penalizes the norm of the gradient (GNP), by a finite difference.

  With `g` the gradient at `w`::

    epsilon = rho * g / (norm(g) + 1e-12)
    gp      = gradient at w + epsilon
    u       = g + alpha * (gp - g)

  which is the gradient of `L + lambda * norm(grad L)` with
  `lambda = alpha * rho`, to first order in `rho`. The released configuration
  mixes with the clean gradient at unit length, against its own README; that is
  `normalize_clean=True`. The penalty can hurt Adam during warm-up (arXiv
  2406.09723): give `rho` a schedule that starts at 0.

  Args:
    rho: radius in the unit of the parameters, a scalar of at least 0, or a
      schedule of it by the step. 0.1 is the authors' value; they use 0.05 for
      ImageNet.
    alpha: weight of the difference, in [0, 1]; 0 is the base optimizer, 1 is
      SAM. 0.8 is the authors' value.
    normalize_clean: whether `u = (1 - alpha) * g / norm(g) + alpha * gp`.
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
    Zhao, Zhang, Hu, `Penalizing Gradient Norm for Efficiently Improving
    Generalization in Deep Learning <https://arxiv.org/abs/2202.03599>`_, ICML
    2022.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.gradient_norm_penalty(rho=0.5, alpha=0.5)
  >>> loss = lambda w: jnp.sum(w**2)
  >>> w = jnp.array([3.0, 4.0])
  >>> u, _ = tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)
  >>> [round(x, 3) for x in u.tolist()]  # half of the way to SAM's 6.6, 8.8
  [6.3, 8.4]
  """
  validation.check_number('alpha', alpha, at_least=0, at_most=1)
  return sharpness_aware(
    perturbations.scale_to_radius(rho),
    descent=descents.mix(alpha, normalize_clean=normalize_clean),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )


def wsam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  gamma: float = 0.9,
  mask: masking.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Weighted SAM (WSAM), coupled: weighs the sharpness against the loss.

  With `g` the gradient at `w` and `a = gamma / (1 - gamma)`::

    epsilon = rho * g / (norm(g) + 1e-12)
    gp      = gradient at w + epsilon
    u       = g + a * (gp - g)

  The authors default to the decoupled form, `wsam_decoupled`, which adds the
  second term outside of the base optimizer; under plain SGD both are equal.
  This one is the default here as it needs no access to the base optimizer.
  Both are as in the authors' program.

  Args:
    rho: radius in the unit of the parameters, a scalar of at least 0, or a
      schedule of it by the step. 0.05 is SAM's.
    gamma: weight of the sharpness, in [0, 1); 0 is the base optimizer, 0.5 is
      SAM. 0.9 lies in the range that the authors advise, 0.8 to 0.95.
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
    Yue, Jiang, Ye, Gao, Liu, Zhang, `Sharpness-Aware Minimization Revisited:
    Weighted Sharpness as a Regularization Term
    <https://arxiv.org/abs/2305.15817>`_, KDD 2023.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.wsam(rho=0.5, gamma=0.75)
  >>> loss = lambda w: jnp.sum(w**2)
  >>> w = jnp.array([3.0, 4.0])
  >>> u, _ = tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)
  >>> [round(x, 3) for x in u.tolist()]  # g + 3 * (gp - g)
  [7.8, 10.4]
  """
  validation.check_number('gamma', gamma, at_least=0, below=1)
  return sharpness_aware(
    perturbations.scale_to_radius(rho),
    descent=descents.mix(gamma / (1 - gamma)),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )
