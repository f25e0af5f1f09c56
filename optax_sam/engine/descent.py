"""Descents: which direction goes on to the base optimizer?

A descent has `init(params)`, `on_ascent(clean, perturbed, state)` for the
steps that took the second gradient, and `on_skip(clean, state)` for the
others, whose direction is the clean gradient unless a descent says otherwise;
both return (direction, new state). A descent with state is given gradients
that are averaged over the devices. Pass one to `optax_sam.sharpness_aware`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.trees import tree_math


class Descent(NamedTuple):
  """Combines the clean and the perturbed gradient into a direction.

  Attributes:
    init: from the parameters to the state of the descent, a pytree of arrays.
    on_ascent: from (clean gradient, perturbed gradient, state) to (direction,
      new state); the gradients and the direction are like the parameters.
    on_skip: from (clean gradient, state) to (direction, new state).
    both_sides: whether the perturbed gradient is a pair of them, at
      `w + epsilon` and at `w - epsilon`; it costs one gradient more.
  """

  init: Callable[[optax.Params], Any]
  on_ascent: Callable[[optax.Updates, Any, Any], tuple[Any, Any]]
  on_skip: Callable[[optax.Updates, Any], tuple[Any, Any]]
  both_sides: bool = False


def no_state(params: optax.Params) -> optax.EmptyState:
  """Keeps nothing."""
  del params
  return optax.EmptyState()


def keep_clean(clean: optax.Updates, state: Any) -> tuple[optax.Updates, Any]:
  """Descends with the clean gradient."""
  return clean, state


def perturbed_gradient() -> Descent:
  """Descends with the gradient at the perturbed parameters: SAM's descent.

  With `g` the clean and `gp` the perturbed gradient::

    on ascent:  u = gp
    on skip:    u = g

  Returns:
    A descent that keeps nothing.

  >>> clean, perturbed = jnp.array([3.0, 4.0]), jnp.array([4.0, 5.0])
  >>> perturbed_gradient().on_ascent(clean, perturbed, ())[0].tolist()
  [4.0, 5.0]
  """

  def on_ascent(
    clean: optax.Updates, perturbed: optax.Updates, state: Any
  ) -> tuple[optax.Updates, Any]:
    del clean
    return perturbed, state

  return Descent(no_state, on_ascent, keep_clean)


def mix(alpha: float, *, normalize_clean: bool = False) -> Descent:
  """Mixes the clean and the perturbed gradient: GNP and WSAM.

  With `g` the clean and `gp` the perturbed gradient::

    u = g + alpha * (gp - g)
    normalize_clean: u = (1 - alpha) * g / (norm(g) + 1e-12) + alpha * gp

  Args:
    alpha: weight of the difference, any number: 0 is the base optimizer, 1 is
      SAM, more extrapolates, as in `optax_sam.wsam`.
    normalize_clean: whether the clean gradient has unit length, as in the
      released configuration of GNP, against its own README. A norm that is
      zero or not finite then counts as `g = 0`.

  Returns:
    A descent that keeps nothing.

  Raises:
    ValueError: if `alpha` is no number, or `normalize_clean` no bool.

  References:
    Zhao, Zhang, Hu, `Penalizing Gradient Norm for Efficiently Improving
    Generalization in Deep Learning <https://arxiv.org/abs/2202.03599>`_, 2022.

  >>> clean, perturbed = jnp.array([3.0, 4.0]), jnp.array([4.0, 4.0])
  >>> mix(2.0).on_ascent(clean, perturbed, ())[0].tolist()
  [5.0, 4.0]
  >>> u, _ = mix(0.5, normalize_clean=True).on_ascent(clean, perturbed, ())
  >>> [round(x, 3) for x in u.tolist()]
  [2.3, 2.4]
  """
  validation.check_number('alpha', alpha)
  validation.check_choice('normalize_clean', normalize_clean, (True, False))

  @jax.jit
  def with_unit_clean(
    clean: optax.Updates, perturbed: optax.Updates
  ) -> optax.Updates:
    unit = tree_math.scale_to(1.0, jax.tree.map(tree_math.widen, clean))

    def leaf(u: jax.Array, gp: jax.Array) -> jax.Array:
      weight = jnp.asarray(alpha, u.dtype)
      mixed = (1 - weight) * u + weight * gp.astype(u.dtype)
      return mixed.astype(gp.dtype)

    return jax.tree.map(leaf, unit, perturbed)

  @jax.jit
  def mixed(clean: optax.Updates, perturbed: optax.Updates) -> optax.Updates:
    if normalize_clean:
      return with_unit_clean(clean, perturbed)

    def leaf(g: jax.Array, gp: jax.Array) -> jax.Array:
      wide = tree_math.widen(g)
      difference = tree_math.widen(gp) - wide
      weight = jnp.asarray(alpha, wide.dtype)
      return (wide + weight * difference).astype(g.dtype)

    return jax.tree.map(leaf, clean, perturbed)

  def on_ascent(
    clean: optax.Updates, perturbed: optax.Updates, state: Any
  ) -> tuple[optax.Updates, Any]:
    return mixed(clean, perturbed), state

  return Descent(no_state, on_ascent, keep_clean)


def orthogonal_part(
  updates: optax.Updates, *, to: optax.Updates
) -> tuple[optax.Updates, jax.Array]:
  """Returns what is left without the direction of `to`, and its norm.

  Both are 0 if that is mere rounding.
  """
  size = tree_math.norm(to)
  usable = size > 0
  slope = tree_math.dot(updates, to) / jnp.where(usable, jnp.square(size), 1)
  slope = jnp.where(usable, slope, 0)

  def leaf(x: jax.Array, y: jax.Array) -> jax.Array:
    dtype = tree_math.wide_dtype(x, y)
    return x.astype(dtype) - slope.astype(dtype) * y.astype(dtype)

  part = jax.tree.map(leaf, updates, to)
  length = tree_math.norm(part)
  # That of `updates`, by Pythagoras: one pass over the parameters less.
  whole = jnp.hypot(length, (slope * size).astype(length.dtype))
  negligible = tree_math.is_negligible(length, whole)
  part = jax.tree.map(lambda x: jnp.where(negligible, 0, x), part)
  return part, jnp.where(negligible, 0, length)
