"""ASAM: a perturbation relative to the size of each parameter."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine import partition
from optax_sam.engine.perturbation import with_radius
from optax_sam.engine.sharpness_aware import sharpness_aware
from optax_sam.methods.look_sam import _multiply_wide
from optax_sam.trees import tree_math

_UNSCALED_NAMES = ('bias', 'b', 'beta', 'offset')


def scale_to_adaptive_radius(
  rho: optax.ScalarOrSchedule,
  *,
  eta: float = 0.01,
  scaled: partition.Mask = None,
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
    wide = tree_math.widen(weight)
    if not is_scaled:
      return jnp.ones_like(wide)
    return jnp.abs(wide) + jnp.asarray(eta, wide.dtype)

  @jax.jit
  def scale(
    radius: Any, updates: optax.Updates, params: optax.Params
  ) -> optax.Updates:
    chosen = partition.chosen_leaves(scaled, params, name='scaled')
    scale = jax.tree.map(scales, chosen, params)
    once = jax.tree.map(_multiply_wide, scale, updates)
    twice = jax.tree.map(_multiply_wide, scale, once)
    perturbation = tree_math.scale_to(radius, twice, tree_math.norm(once))
    return jax.tree.map(lambda e, g: e.astype(g.dtype), perturbation, updates)

  def perturb(
    radius: Any, updates: optax.Updates, *, params: optax.Params, **_: Any
  ) -> optax.Updates:
    return scale(radius, updates, params)

  return with_radius(rho, perturb)


def _scaled_by_name(params: optax.Params) -> Any:
  def is_scaled(path: tuple[Any, ...], _: Any) -> bool:
    parts = partition.path_parts(path)
    return not parts or parts[-1] not in _UNSCALED_NAMES

  return jax.tree_util.tree_map_with_path(is_scaled, params)


def asam(
  rho: optax.ScalarOrSchedule = 0.5,
  *,
  eta: float = 0.01,
  scaled: partition.Mask = None,
  mask: partition.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Adaptive SAM (ASAM): a radius relative to the size of the weights.

  With `g` the gradient at `w`, `T = abs(w) + eta` on scaled leaves and `T = 1`
  on the others::

    epsilon = rho * T^2 * g / (norm(T * g) + 1e-12)   # norm(epsilon / T) = rho
    u       = gradient at w + epsilon

  Published programs give different numbers. The default is the rule of the
  authors' program, which scales the parameters whose name contains "weight";
  here, all but those whose last name is `bias`, `b`, `beta` or `offset`, so
  that a weight called `w` is scaled, which in their program gets plain SAM.
  `asam(2.0, eta=0.0, scaled=True)` is the widely used variant of davda54/sam,
  which doesn't perturb a bias that is zero; `scaled=True` alone is
  dbahri/universal_sam. `rho * abs(w) * g / norm(g)`, also called adaptive in
  places, is not ASAM and not offered. The paper's own rule and its `eta` could
  not be confirmed.

  Args:
    rho: radius relative to the weights, a scalar of at least 0, or a schedule
      of it by the step; usable from 0.1 to 2. 0.5 is the default of the
      authors' class and their README's value for CIFAR-10 (CIFAR-100: 1.0).
    eta: added to the size of the weights, at least 0. 0.01 is the default of
      the authors' class; their example script passes 0.
    scaled: which leaves are scaled: a bool, a prefix tree of bools or a
      function from the parameters to one; None goes by their names.
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
    Kwon, Kim, Park, Choi, `ASAM: Adaptive Sharpness-Aware Minimization for
    Scale-Invariant Learning of Deep Neural Networks
    <https://arxiv.org/abs/2102.11600>`_, ICML 2021.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.asam(rho=0.5, eta=0.0)
  >>> w = jnp.array([3.0, 4.0])
  >>> u, _ = tx.update(jnp.ones(2), tx.init(w), w, grad_fn=lambda w: w)
  >>> [round(x, 3) for x in u.tolist()]  # w + 0.5 * w^2 / 5
  [3.9, 5.6]
  """
  return sharpness_aware(
    scale_to_adaptive_radius(rho, eta=eta, scaled=scaled),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )
