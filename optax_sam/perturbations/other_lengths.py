"""Perturbations whose length depends on the weights, or on the Fisher metric.

They need the parameters: `optax_sam.sharpness_aware` passes those that may be
perturbed.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from optax_sam import masking, numerics, validation
from optax_sam.perturbations.scheduled import with_radius

_UNSCALED_NAMES = ('bias', 'b', 'beta', 'offset')


def scale_to_adaptive_radius(
  rho: optax.ScalarOrSchedule,
  *,
  eta: float = 0.01,
  scaled: masking.Mask = None,
) -> optax.GradientTransformationExtraArgs:
  """Scales the ascent gradient to a radius relative to the weights: ASAM.

  With `g` the ascent gradient at `w`, `T = abs(w) + eta` on scaled leaves and
  `T = 1` on the others::

    epsilon = rho * T^2 * g / (norm(T * g) + 1e-12)
    so that norm(epsilon / T) = rho

  A `norm(T * g)` that is zero or not finite gives `epsilon = 0`. Published
  programs differ; see `optax_sam.asam` for which one the defaults follow.

  Args:
    rho: radius as a share of the weights, a scalar of at least 0 or a schedule
      of it by the step, counted from 0.
    eta: added to the size of the weights, in their unit, at least 0. 0.01 is
      the default of the authors' class; the paper's could not be confirmed.
    scaled: which leaves are scaled; None goes by the last part of a leaf's
      name: `bias`, `b`, `beta` and `offset` are not, all else is. A bool, a
      prefix tree of bools or a function from the parameters to one overrides
      it.

  Returns:
    A perturbation, whose `update` needs `params`. Keeps nothing, or the count
    of the schedule.

  Raises:
    ValueError: if a Python value is out of range, and in `update` if `scaled`
      doesn't fit the parameters.

  References:
    Kwon, Kim, Park, Choi, `ASAM: Adaptive Sharpness-Aware Minimization for
    Scale-Invariant Learning of Deep Neural Networks
    <https://arxiv.org/abs/2102.11600>`_, ICML 2021.

  >>> w, g = jnp.array([3.0, 4.0]), jnp.array([1.0, 1.0])
  >>> piece = scale_to_adaptive_radius(0.5, eta=0.0)
  >>> epsilon, _ = piece.update(g, piece.init(w), w)
  >>> [round(x, 3) for x in epsilon.tolist()]  # 0.5 * w^2 / 5
  [0.9, 1.6]
  """
  validation.check_number('eta', eta, at_least=0)
  if scaled is None:
    scaled = _scaled_by_name

  def scales(is_scaled: bool, weight: jax.Array) -> jax.Array:
    wide = numerics.widen(weight)
    if not is_scaled:
      return jnp.ones_like(wide)
    return jnp.abs(wide) + jnp.asarray(eta, wide.dtype)

  @jax.jit
  def scale(
    radius: Any, updates: optax.Updates, params: optax.Params
  ) -> optax.Updates:
    chosen = masking.chosen_leaves(scaled, params, name='scaled')
    scale = jax.tree.map(scales, chosen, params)
    once = jax.tree.map(_multiply_wide, scale, updates)
    twice = jax.tree.map(_multiply_wide, scale, once)
    perturbation = numerics.scale_to(radius, twice, numerics.norm(once))
    return jax.tree.map(lambda e, g: e.astype(g.dtype), perturbation, updates)

  def perturb(
    radius: Any, updates: optax.Updates, *, params: optax.Params, **_: Any
  ) -> optax.Updates:
    return scale(radius, updates, params)

  return with_radius(rho, perturb)


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
    wide = jax.tree.map(numerics.widen, updates)
    natural = jax.tree.map(
      lambda g: g / (1 + jnp.asarray(eta, g.dtype) * jnp.square(g)), wide
    )
    size = jnp.sqrt(numerics.dot(natural, wide))
    epsilon = numerics.scale_to(radius, natural, size)
    return jax.tree.map(lambda e, g: e.astype(g.dtype), epsilon, updates)

  return with_radius(rho, lambda radius, updates, **_: scale(radius, updates))


def scale_by_trust_ratio_radius(
  rho: optax.ScalarOrSchedule,
  *,
  rule: Literal['global', 'layer', 'unit'] = 'global',
  max_ratio: float = 20.0,
) -> optax.GradientTransformationExtraArgs:
  """Scales every leaf by the size of its weights: Look-LayerSAM's ascent.

  With `w_l`, `g_l` a leaf of the parameters and of the ascent gradient `g`::

    'global':  rho * min(norm(w_l) / norm(g_l), max_ratio) * g_l / norm(g)
    'layer':   rho * norm(w_l) * g_l / norm(g_l)^2
    'unit':    rho * g_l / norm(g_l)

  A norm of zero, of the gradient or, but for 'unit', of the weights, leaves
  the leaf unperturbed; a gradient that isn't finite, all. The first two grow
  as the gradient fades.

  Args:
    rho: radius, a scalar of at least 0 or a schedule of it by the step,
      counted from 0; for 'unit' in the unit of the parameters.
    rule: which of the three. The paper's formula could not be confirmed:
      'global' rests on an account of it, 'layer' and 'unit' on one port each.
    max_ratio: bound of the ratio in 'global', above 0; 20 is that of one port.

  Returns:
    A perturbation, whose `update` needs `params`. Keeps nothing, or the count
    of the schedule.

  Raises:
    ValueError: if a Python value is out of range.

  References:
    Liu, Mai, Chen, Hsieh, You, `Towards Efficient and Scalable
    Sharpness-Aware Minimization <https://arxiv.org/abs/2203.02714>`_, CVPR
    2022.

  Two leaves of one weight each, where `norm(g) = 5`:

  >>> w = [jnp.array([6.0]), jnp.array([100.0])]
  >>> g = [jnp.array([3.0]), jnp.array([4.0])]
  >>> for rule in ('global', 'layer', 'unit'):
  ...   piece = scale_by_trust_ratio_radius(0.5, rule=rule)
  ...   epsilon, _ = piece.update(g, piece.init(w), w)
  ...   print([round(float(e[0]), 3) for e in epsilon])
  [0.6, 8.0]
  [1.0, 12.5]
  [0.5, 0.5]
  """
  validation.check_choice('rule', rule, ('global', 'layer', 'unit'))
  validation.check_number('max_ratio', max_ratio, above=0)

  def factor(weight: jax.Array, gradient: jax.Array, total: Any) -> Any:
    size, length = numerics.norm(gradient), numerics.norm(weight)
    size, length = size.astype(total.dtype), length.astype(total.dtype)
    usable = numerics.is_usable(size) & numerics.is_usable(total)
    divisor = jnp.where(usable, size, 1)
    if rule == 'unit':
      return usable, 1 / divisor
    usable &= numerics.is_usable(length)
    ratio = length / divisor
    if rule == 'layer':
      return usable, ratio / divisor
    bounded = jnp.minimum(ratio, jnp.asarray(max_ratio, ratio.dtype))
    return usable, bounded / jnp.where(usable, total, 1)

  @jax.jit
  def scale(
    radius: Any, updates: optax.Updates, params: optax.Params
  ) -> optax.Updates:
    total = numerics.norm(updates)

    def leaf(weight: jax.Array, gradient: jax.Array) -> jax.Array:
      usable, scale = factor(weight, gradient, total)
      scale *= jnp.asarray(radius, total.dtype)
      return numerics.multiply_where(usable, scale, gradient)

    return jax.tree.map(leaf, params, updates)

  return with_radius(
    rho, lambda radius, updates, params, **_: scale(radius, updates, params)
  )


def _multiply_wide(left: jax.Array, right: jax.Array) -> jax.Array:
  dtype = numerics.wide_dtype(left, right)
  return left.astype(dtype) * right.astype(dtype)


def _scaled_by_name(params: optax.Params) -> Any:
  def is_scaled(path: tuple[Any, ...], _: Any) -> bool:
    parts = masking.path_parts(path)
    return not parts or parts[-1] not in _UNSCALED_NAMES

  return jax.tree_util.tree_map_with_path(is_scaled, params)
