"""Perturbations of a given length, in one metric or another."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import masking, numerics, validation

_UNSCALED_NAMES = ('bias', 'b', 'beta', 'offset')


class RadiusState(NamedTuple):
  """State of a piece whose radius is a schedule; none without one.

  Attributes:
    count: number of steps so far, a scalar int32.
  """

  count: jax.Array


def scale_to_radius(
  rho: optax.ScalarOrSchedule, *, p: float = 2
) -> optax.GradientTransformationExtraArgs:
  """Scales the ascent gradient to length rho: the perturbation of SAM.

  With `g` the ascent gradient::

    p = 2:    epsilon = rho * g / (norm(g) + 1e-12)
    p = inf:  epsilon = rho * sign(g)

  A norm that is zero or not finite gives `epsilon = 0`.

  Args:
    rho: radius, at least 0, or a schedule of it.
    p: 2 or infinity, the norm in which epsilon has length rho.

  >>> piece = scale_to_radius(0.5)
  >>> piece.update(jnp.array([3.0, 4.0]), piece.init(None))[0].tolist()
  [0.30000001192092896, 0.4000000059604645]
  """
  validation.check_choice('p', p, (2, float('inf')))

  def perturb(radius: Any, updates: optax.Updates, **_: Any) -> optax.Updates:
    return _ascent_step(radius, updates, p)

  return _with_radius(rho, perturb)


def scale_by_radius(
  rho: optax.ScalarOrSchedule, *, clip: bool = False
) -> optax.GradientTransformationExtraArgs:
  """Scales the ascent gradient by rho, without normalizing it.

  `epsilon = rho * g`, or 0 if the norm of `g` isn't finite.

  Args:
    rho: factor, at least 0, or a schedule of it.
    clip: whether an epsilon longer than rho is shortened to it.
  """
  validation.check_choice('clip', clip, (True, False))

  @jax.jit
  def scale(radius: Any, updates: optax.Updates) -> optax.Updates:
    size = numerics.norm(updates)
    radius = jnp.asarray(radius, size.dtype)
    if clip:
      radius = radius / jnp.maximum(size, 1)
    return numerics.multiply_where(jnp.isfinite(size), radius, updates)

  return _with_radius(rho, lambda radius, updates, **_: scale(radius, updates))


def ascend_repeatedly(
  rho: optax.ScalarOrSchedule, steps: int, *, p: float = 2
) -> optax.GradientTransformationExtraArgs:
  """Takes several ascent steps of length rho inside the ball of radius rho.

  `steps` times, starting from `delta = 0` and with `h` the ascent gradient at
  `w + delta`::

    delta = delta + rho * h / (norm(h) + 1e-12)
    delta = delta * min(1, rho / norm(delta))  # p = inf: clipped to rho

  Each step but the first costs one more gradient.

  Args:
    rho: radius and length of a step, at least 0, or a schedule of it.
    steps: number of ascent steps, at least 1.
    p: 2 or infinity.
  """
  validation.check_static_integer('steps', steps)
  validation.check_choice('p', p, (2, float('inf')))

  def perturb(
    radius: Any,
    updates: optax.Updates,
    *,
    ascent_grad_fn: Callable[[optax.Updates], optax.Updates] | None = None,
    **_: Any,
  ) -> optax.Updates:
    delta = _ascent_step(radius, updates, p)
    for _step in range(1, steps):
      if ascent_grad_fn is None:
        msg = (
          'ascend_repeatedly needs ascent_grad_fn, a function from the '
          'perturbation to the ascent gradient there: use it as the '
          'perturbation of optax_sam.sharpness_aware, which passes it.'
        )
        raise ValueError(msg)
      step = _ascent_step(radius, ascent_grad_fn(delta), p)
      delta = _project(radius, numerics.add(delta, step), p)
    return delta

  return _with_radius(rho, perturb)


def scale_to_adaptive_radius(
  rho: optax.ScalarOrSchedule,
  *,
  eta: float = 0.01,
  scaled: masking.Mask = None,
) -> optax.GradientTransformationExtraArgs:
  """Scales the ascent gradient to a radius relative to the weights: ASAM.

  With `T = abs(w) + eta` on scaled leaves and `T = 1` on the others::

    epsilon = rho * T ^ 2 * g / (norm(T * g) + 1e-12)  # norm(epsilon/T) = rho

  Args:
    rho: radius, at least 0, or a schedule of it.
    eta: added to the size of the weights, at least 0.
    scaled: which leaves are scaled; None goes by the last part of a leaf's
      name: `bias`, `b`, `beta` and `offset` are not, all else is. A bool, a
      prefix tree or a function from the parameters overrides it.
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

  return _with_radius(rho, perturb)


def scale_to_fisher_radius(
  rho: optax.ScalarOrSchedule, *, eta: float = 1.0
) -> optax.GradientTransformationExtraArgs:
  """Scales the ascent gradient to a radius in the Fisher metric: Fisher SAM.

  With `F = 1 + eta * g^2`, elementwise, the diagonal of the metric::

    epsilon = rho * (g / F) / sqrt(sum(g ^ 2 / F))  # sum(F * epsilon^2) = rho^2

  Args:
    rho: radius, at least 0, or a schedule of it.
    eta: weight of the squared gradient, at least 0; 0 is SAM.
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

  return _with_radius(rho, lambda radius, updates, **_: scale(radius, updates))


def scale_by_trust_ratio_radius(
  rho: optax.ScalarOrSchedule,
  *,
  rule: Literal['global', 'layer', 'unit'] = 'global',
  max_ratio: float = 20.0,
) -> optax.GradientTransformationExtraArgs:
  """Scales every leaf by the size of its weights: Look-LayerSAM's ascent.

  With `w_l`, `g_l` a leaf of the parameters and of the ascent gradient::

    'global':  rho * min(norm(w_l) / norm(g_l), max_ratio) * g_l / norm(g)
    'layer':   rho * norm(w_l) * g_l / norm(g_l)^2
    'unit':    rho * g_l / norm(g_l)

  A norm of zero, of the gradient or, but for 'unit', of the weights, leaves
  the leaf unperturbed.

  Args:
    rho: radius, at least 0, or a schedule of it.
    rule: which of the three.
    max_ratio: bound of the ratio in 'global', above 0.
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

  return _with_radius(
    rho, lambda radius, updates, params, **_: scale(radius, updates, params)
  )


def _with_radius(
  rho: optax.ScalarOrSchedule, perturb: Callable[..., optax.Updates]
) -> optax.GradientTransformationExtraArgs:
  """Builds a piece that keeps nothing but the count of its schedule."""
  validation.check_radius(rho)

  def init(params: optax.Params) -> RadiusState | optax.EmptyState:
    del params
    if callable(rho):
      return RadiusState(jnp.zeros((), jnp.int32))
    return optax.EmptyState()

  def update(
    updates: Any, state: Any, params: Any = None, **extra_args: Any
  ) -> tuple[Any, Any]:
    radius = rho
    if callable(rho):
      radius = rho(state.count)
      state = RadiusState(numerics.increment(state.count))
    return perturb(radius, updates, params=params, **extra_args), state

  return optax.GradientTransformationExtraArgs(init, update)


def _ascent_step(
  radius: Any, gradient: optax.Updates, p: float
) -> optax.Updates:
  return (
    numerics.scale_to(radius, gradient)
    if p == 2
    else _sign_step(radius, gradient)
  )


@jax.jit
def _sign_step(radius: Any, gradient: optax.Updates) -> optax.Updates:
  size = numerics.norm(gradient)
  signs = jax.tree.map(jnp.sign, gradient)
  return numerics.multiply_where(
    numerics.is_usable(size), jnp.asarray(radius, size.dtype), signs
  )


def _project(radius: Any, delta: optax.Updates, p: float) -> optax.Updates:
  return _into_ball(radius, delta) if p == 2 else _into_box(radius, delta)


@jax.jit
def _into_ball(radius: Any, delta: optax.Updates) -> optax.Updates:
  size = numerics.norm(delta)
  radius = jnp.asarray(radius, size.dtype)
  outside = size > radius
  scale = jnp.where(outside, radius / jnp.where(outside, size, 1), 1)
  return numerics.multiply_where(jnp.isfinite(size), scale, delta)


@jax.jit
def _into_box(radius: Any, delta: optax.Updates) -> optax.Updates:
  def clip(leaf: jax.Array) -> jax.Array:
    bound = jnp.asarray(radius, leaf.dtype)
    return jnp.clip(leaf, -bound, bound)

  return jax.tree.map(clip, delta)


def _multiply_wide(left: jax.Array, right: jax.Array) -> jax.Array:
  dtype = numerics.wide_dtype(left, right)
  return left.astype(dtype) * right.astype(dtype)


def _scaled_by_name(params: optax.Params) -> Any:
  def is_scaled(path: tuple[Any, ...], _: Any) -> bool:
    parts = masking.path_parts(path)
    return not parts or parts[-1] not in _UNSCALED_NAMES

  return jax.tree_util.tree_map_with_path(is_scaled, params)
