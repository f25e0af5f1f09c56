"""ZSharp: perturbs only entries whose gradient is an outlier."""

import fractions
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine.perturbation import scale_to_radius, with_radius
from optax_sam.engine.sharpness_aware import Choices, Mask, compose
from optax_sam.trees import sparse_masks, tree_math


def keep_outliers(quantile: float = 0.95) -> optax.GradientTransformation:
  """Returns the `f` of `optax_sam.z_sharp`, or the gradient if `f` is 0.

  Distances are compared in float32. Entries that tie with the quantile are
  zeroed, as with a sort. A leaf that is not finite is unchanged, so that its
  norm shows it. Place it before a component that scales to a radius.
  """
  sparse_masks.check_fraction('quantile', quantile, below=1)

  def keep(updates: optax.Updates, _: Any) -> optax.Updates:
    kept = jax.tree.map(lambda g: _filtered(g, quantile), updates)
    return optax.tree.where(tree_math.norm(kept) == 0, updates, kept)

  return optax.stateless(keep)


def scale_outliers_to_radius(
  rho: optax.ScalarOrSchedule, quantile: float = 0.95
) -> optax.GradientTransformationExtraArgs:
  """Perturbs every leaf by rho: 'per_tensor' of `optax_sam.z_sharp`.

  A leaf without outliers is not perturbed. If a norm is not finite, no leaf is
  perturbed.
  """
  sparse_masks.check_fraction('quantile', quantile, below=1)

  def perturb(radius: Any, updates: optax.Updates, **_: Any) -> optax.Updates:
    size = tree_math.norm(updates)
    usable = tree_math.is_usable(size)

    def leaf(g: jax.Array) -> jax.Array:
      if g.ndim < 2:
        whole = size.astype(tree_math.wide_dtype(g))
        return tree_math.scale_to(radius, g, whole)
      epsilon = tree_math.scale_to(radius, _filtered(g, quantile))
      return jnp.where(usable, epsilon, 0)

    return jax.tree.map(leaf, updates)

  return with_radius(rho, perturb)


def _filtered(gradient: jax.Array, quantile: float) -> jax.Array:
  """Zeroes the entries that are not above the quantile of their leaf."""
  if gradient.ndim < 2 or not gradient.size:
    return gradient
  wide = tree_math.widen(gradient)
  mean = jnp.mean(wide)
  distance = jnp.abs(wide - mean).astype(jnp.float32)
  below = fractions.Fraction(str(quantile)) * (gradient.size - 1)
  kept = gradient.size - 1 - math.floor(below)
  farthest = sparse_masks.largest(distance, kept)
  # Entries that tie with an excluded one are not above the quantile.
  rest = jnp.max(jnp.where(farthest, -1, distance))
  keep = (distance > rest) | ~jnp.isfinite(mean)
  return jnp.where(keep, gradient, 0)


@validation.method('quantile')
def z_sharp(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  quantile: float = 0.95,
  radius: Literal['global', 'per_tensor'] = 'global',
  mask: Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""ZSharp: perturbs only entries whose gradient is an outlier.

  Outliers are the entries of a leaf with at least two axes whose :math:`|z|`
  is above the given quantile of the leaf.

  .. math::
    z &= (g - \text{mean}) / (\text{std} + 10^{-12}), \quad g = \nabla L(w) \\
    f &= g \text{ at outliers and in leaves with fewer axes, else } 0 \\
    \epsilon &= \rho\, f / (\|f\| + 10^{-12}) \\
    \tilde g &= \nabla L(w + \epsilon)

  Mean and std are of the leaf. The norm is over all leaves, where :math:`f = g`
  if :math:`f` is 0; with 'per_tensor' it is that of the leaf, and that of
  :math:`g` for leaves with fewer axes. Of n entries without ties `n - 1 -
  floor((n - 1) * quantile)` are outliers. All are updated; no time is saved.

  Args:
    rho: radius, at least 0, or a schedule of it by the step; 0.05 is SAM's.
    quantile: fraction of the entries of a leaf that is not perturbed, a Python
      number in [0, 1). 0.95 is the author's value.
    radius: whether `rho` is the length over all leaves, 'global', or that of
      each leaf, 'per_tensor'.
    mask, axis_name, sync_ascent: see `optax_sam.sharpness_aware`.

  Returns:
    A gradient transformation to place first in `optax.chain`, whose `update`
    needs `value_fn` or `grad_fn`; stateless. It costs 2 gradients.

  .. note:: 'per_tensor' is the author's code, with a perturbation up to
    `sqrt(number of leaves) * rho` long. 'global' is the default, as `rho` is
    the radius in all methods here. Unverified: which one the paper means.

  References:
    Yun, `Sharpness-Aware Minimization with Z-Score Gradient Filtering for
    Neural Networks <https://arxiv.org/abs/2505.02369>`_, 2025.

  >>> import jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.z_sharp(rho=0.5, quantile=0.5)
  >>> w, g = jnp.zeros((2, 2)), jnp.array([[1.0, -3.0], [2.0, 4.0]])
  >>> u, _ = tx.update(g, tx.init(w), w, grad_fn=lambda w: w)
  >>> [[round(x, 3) for x in row] for row in u.tolist()]  # the mean is 1
  [[0.0, -0.3], [0.0, 0.4]]
  """
  validation.check_choice('radius', radius, ('global', 'per_tensor'))
  if radius == 'global':
    perturbation = optax.chain(keep_outliers(quantile), scale_to_radius(rho))
  else:
    perturbation = scale_outliers_to_radius(rho, quantile)
  return compose(Choices(perturbation), mask, axis_name, sync_ascent)
