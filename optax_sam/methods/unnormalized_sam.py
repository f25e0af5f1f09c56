"""SAM without the division by the norm."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine import partition
from optax_sam.engine.perturbation import with_radius
from optax_sam.engine.sharpness_aware import sharpness_aware
from optax_sam.trees import tree_math


def scale_by_radius(
  rho: optax.ScalarOrSchedule, *, clip: bool = False
) -> optax.GradientTransformationExtraArgs:
  """Scales the ascent gradient by rho, without normalizing it.

  With `g` the ascent gradient::

    clip = False:  epsilon = rho * g
    clip = True:   epsilon = rho * g / max(norm(g), 1)  # norm(epsilon) <= rho

  A norm that isn't finite gives `epsilon = 0`. A factor on the loss is one on
  epsilon. See `optax_sam.unnormalized_sam`.

  Args:
    rho: factor of at least 0, in the unit of the parameters over that of the
      gradient, or a schedule of it by the step, counted from 0.
    clip: whether an epsilon longer than rho is shortened to it, as on one path
      of the authors' program tml-epfl/understanding-sam.

  Returns:
    A perturbation. Keeps nothing, or the count of the schedule.

  Raises:
    ValueError: if a Python value is out of range.

  References:
    Andriushchenko, Flammarion, `Towards Understanding Sharpness-Aware
    Minimization <https://arxiv.org/abs/2206.06232>`_, ICML 2022.

  >>> g = jnp.array([3.0, 4.0])
  >>> for clip in (False, True):
  ...   piece = scale_by_radius(0.5, clip=clip)
  ...   epsilon, _ = piece.update(g, piece.init(g))
  ...   print([round(x, 3) for x in epsilon.tolist()])
  [1.5, 2.0]
  [0.3, 0.4]
  """
  validation.check_choice('clip', clip, (True, False))

  @jax.jit
  def scale(radius: Any, updates: optax.Updates) -> optax.Updates:
    size = tree_math.norm(updates)
    radius = jnp.asarray(radius, size.dtype)
    if clip:
      radius = radius / jnp.maximum(size, 1)
    return tree_math.multiply_where(jnp.isfinite(size), radius, updates)

  return with_radius(rho, lambda radius, updates, **_: scale(radius, updates))


def unnormalized_sam(
  rho: optax.ScalarOrSchedule,
  *,
  clip: bool = False,
  mask: partition.Mask = None,
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
    scale_by_radius(rho, clip=clip),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )
