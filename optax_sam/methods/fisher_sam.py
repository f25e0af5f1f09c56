"""Fisher SAM: the radius in the norm of the Fisher information."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine import partition
from optax_sam.engine.perturbation import with_radius
from optax_sam.engine.sharpness_aware import sharpness_aware
from optax_sam.trees import tree_math


def scale_to_fisher_radius(
  rho: optax.ScalarOrSchedule, *, eta: float = 1.0
) -> optax.GradientTransformationExtraArgs:
  """Scales the ascent gradient to a radius in the Fisher metric: Fisher SAM.

  With `g` the ascent gradient and `F = 1 + eta * g^2`, elementwise, the
  diagonal of the metric::

    epsilon = rho * (g / F) / (sqrt(sum(g^2 / F)) + 1e-12)
    so that sum(F * epsilon^2) = rho^2

  A root that is zero or not finite gives `epsilon = 0`. See
  `optax_sam.fisher_sam` for what could not be confirmed against the paper.

  Args:
    rho: radius in that metric, a scalar of at least 0 or a schedule of it by
      the step, counted from 0.
    eta: weight of the squared gradient, at least 0, in the inverse of its
      unit; 0 is SAM. 1 is the default of a community port.

  Returns:
    A perturbation. Keeps nothing, or the count of the schedule.

  Raises:
    ValueError: if a Python value is out of range.

  References:
    Kim, Li, Hu, Hospedales, `Fisher SAM: Information Geometry and
    Sharpness-Aware Minimisation <https://arxiv.org/abs/2206.04920>`_, ICML
    2022.

  The steeper entry is perturbed less:

  >>> piece = scale_to_fisher_radius(1.0)
  >>> epsilon, _ = piece.update(jnp.array([1.0, 7.0]), piece.init(None))
  >>> [round(x, 3) for x in epsilon.tolist()]  # F = [2, 50]
  [0.411, 0.115]
  """
  validation.check_number('eta', eta, at_least=0)

  @jax.jit
  def scale(radius: Any, updates: optax.Updates) -> optax.Updates:
    wide = jax.tree.map(tree_math.widen, updates)
    natural = jax.tree.map(
      lambda g: g / (1 + jnp.asarray(eta, g.dtype) * jnp.square(g)), wide
    )
    size = jnp.sqrt(tree_math.dot(natural, wide))
    epsilon = tree_math.scale_to(radius, natural, size)
    return jax.tree.map(lambda e, g: e.astype(g.dtype), epsilon, updates)

  return with_radius(rho, lambda radius, updates, **_: scale(radius, updates))


def fisher_sam(
  rho: optax.ScalarOrSchedule = 0.1,
  *,
  eta: float = 1.0,
  mask: partition.Mask = None,
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
    scale_to_fisher_radius(rho, eta=eta),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )
