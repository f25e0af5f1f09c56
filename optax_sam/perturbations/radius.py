"""Perturbations whose length is measured in one norm of all leaves together."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam import numerics, validation
from optax_sam.perturbations.scheduled import with_radius


def scale_to_radius(
  rho: optax.ScalarOrSchedule, *, p: float = 2
) -> optax.GradientTransformationExtraArgs:
  """Scales the ascent gradient to length rho: the perturbation of SAM.

  With `g` the ascent gradient and one norm over all of its leaves::

    p = 2:    epsilon = rho * g / (norm(g) + 1e-12)
    p = inf:  epsilon = rho * sign(g)                  # sign(0) = 0

  A norm that is zero or not finite gives `epsilon = 0`. Published programs add
  1e-12, 1e-16 or 1e-7 to the norm, some nothing, so that a gradient of zero
  makes NaN. See `optax_sam.sam` for usual radii and their evidence.

  Args:
    rho: radius in the unit of the parameters, a scalar of at least 0 or a
      schedule of it by the step, counted from 0.
    p: 2 or infinity, the norm in which epsilon has length rho.

  Returns:
    A perturbation. Keeps nothing, or the count of the schedule.

  Raises:
    ValueError: if a Python value is out of range.

  References:
    Foret, Kleiner, Mobahi, Neyshabur, `Sharpness-Aware Minimization for
    Efficiently Improving Generalization <https://arxiv.org/abs/2010.01412>`_,
    ICLR 2021.

  >>> g = jnp.array([3.0, -4.0])
  >>> for p in (2, float('inf')):
  ...   piece = scale_to_radius(0.5, p=p)
  ...   epsilon, _ = piece.update(g, piece.init(g))
  ...   print([round(x, 3) for x in epsilon.tolist()])
  [0.3, -0.4]
  [0.5, -0.5]
  """
  validation.check_choice('p', p, (2, float('inf')))

  def perturb(radius: Any, updates: optax.Updates, **_: Any) -> optax.Updates:
    return _ascent_step(radius, updates, p)

  return with_radius(rho, perturb)


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
    size = numerics.norm(updates)
    radius = jnp.asarray(radius, size.dtype)
    if clip:
      radius = radius / jnp.maximum(size, 1)
    return numerics.multiply_where(jnp.isfinite(size), radius, updates)

  return with_radius(rho, lambda radius, updates, **_: scale(radius, updates))


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
    size = numerics.norm(updates)
    # A norm that can't be divided by makes epsilon 0 whatever the length is.
    length = jnp.asarray(rise, size.dtype) / (size + numerics.STABILIZER)
    length = jnp.minimum(length, jnp.asarray(max_radius, size.dtype))
    return numerics.scale_to(length, updates, size)

  return with_radius(sigma, lambda rise, updates, **_: scale(rise, updates))


def ascend_repeatedly(
  rho: optax.ScalarOrSchedule, steps: int, *, p: float = 2
) -> optax.GradientTransformationExtraArgs:
  """Takes several ascent steps of length rho inside the ball of radius rho.

  `steps` times, starting from `delta = 0` and with `h` the ascent gradient at
  `w + delta`; the last `delta` is epsilon::

    delta = delta + rho * h / (norm(h) + 1e-12)
    delta = delta * min(1, rho / norm(delta))

    p = inf:  delta = clip(delta + rho * sign(h), -rho, rho)

  Each step but the first costs one more gradient. Length and projection are
  those of the program tml-epfl/understanding-sam; `optax.contrib.sam` doesn't
  project.

  Args:
    rho: radius and length of a step in the unit of the parameters, a scalar of
      at least 0 or a schedule of it by the step of training, counted from 0.
      With a schedule these gradients are taken at every step of training, also
      where a policy skips.
    steps: number of ascent steps, a Python int of at least 1; 1 is SAM.
    p: 2 or infinity, the norm of the ball.

  Returns:
    A perturbation, for `optax_sam.sharpness_aware` alone if it takes more than
    one step. Keeps nothing, or the count of the schedule.

  Raises:
    ValueError: if a Python value is out of range, and in `update` if there is
      no `ascent_grad_fn` for the second step.

  References:
    Andriushchenko, Flammarion, `Towards Understanding Sharpness-Aware
    Minimization <https://arxiv.org/abs/2206.06232>`_, ICML 2022.

  With gradients `[1, 0]`, then `[0, 1]`:

  >>> piece = ascend_repeatedly(0.5, 2)
  >>> epsilon, _ = piece.update(
  ...   jnp.array([1.0, 0.0]),
  ...   piece.init(None),
  ...   ascent_grad_fn=lambda delta: jnp.array([0.0, 1.0]),
  ... )
  >>> [round(x, 3) for x in epsilon.tolist()]  # [0.5, 0.5], projected
  [0.354, 0.354]
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
    # Half precision would round the sum of the steps away.
    wide = updates if steps == 1 else jax.tree.map(numerics.widen, updates)
    delta = _ascent_step(radius, wide, p)
    for _step in range(1, steps):
      if ascent_grad_fn is None:
        msg = (
          'ascend_repeatedly needs ascent_grad_fn, a function from the '
          'perturbation to the ascent gradient there: use it as the '
          'perturbation of optax_sam.sharpness_aware, which passes it.'
        )
        raise ValueError(msg)
      gradient = jax.tree.map(numerics.widen, ascent_grad_fn(delta))
      step = _ascent_step(radius, gradient, p)
      delta = _project(radius, numerics.add(delta, step), p)
    return numerics.cast_like(delta, updates)

  return with_radius(rho, perturb)


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
