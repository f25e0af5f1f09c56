"""Descents: which direction does the base optimizer get?

A descent has `init(params)`, `on_ascent(clean, at, state)` for the steps that
take the second gradient, and `on_skip(clean, state)` for the others. Both
return (direction, new state). `at(t)` is the gradient at `w + t * epsilon`: SAM
descends with `at(1)`, and each other multiple costs one gradient more. A
descent with state gets gradients that are averaged over the devices. Pass one
to `optax_sam.sharpness_aware`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine.info import no_state
from optax_sam.trees import tree_math

At = Callable[[float], optax.Updates]


class Descent(NamedTuple):
  """Combines the clean and the perturbed gradient into a direction.

  Attributes:
    init: from the parameters to the state of the descent, a pytree of arrays.
    on_ascent: from (clean gradient, function from t to the gradient at
      `w + t * epsilon`, state) to (direction, new state); the gradients and the
      direction are like the parameters.
    on_skip: from (clean gradient, state) to (direction, new state).
  """

  init: Callable[[optax.Params], Any]
  on_ascent: Callable[[optax.Updates, At, Any], tuple[Any, Any]]
  on_skip: Callable[[optax.Updates, Any], tuple[Any, Any]]


def keep_clean(clean: optax.Updates, state: Any) -> tuple[optax.Updates, Any]:
  """Descends with the clean gradient."""
  return clean, state


def stateless(combine: Callable[[optax.Updates, At], Any]) -> Descent:
  """Builds a descent from a function of the clean gradient and of `at`."""
  return Descent(
    no_state, lambda clean, at, state: (combine(clean, at), state), keep_clean
  )


def perturbed_gradient() -> Descent:
  """Descends with the gradient at the perturbed parameters: SAM's descent.

  With `g` the clean and `gp` the perturbed gradient::

    on ascent:  u = gp
    on skip:    u = g

  Returns:
    A stateless descent.

  >>> clean, perturbed = jnp.array([3.0, 4.0]), jnp.array([4.0, 5.0])
  >>> descent = perturbed_gradient()
  >>> descent.on_ascent(clean, lambda t: perturbed, ())[0].tolist()
  [4.0, 5.0]
  """
  return stateless(lambda _, at: at(1))


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
    A stateless descent.

  >>> clean, perturbed = jnp.array([3.0, 4.0]), jnp.array([4.0, 4.0])
  >>> mix(2.0).on_ascent(clean, lambda t: perturbed, ())[0].tolist()
  [5.0, 4.0]
  """
  validation.check_number('alpha', alpha)
  validation.check_choice('normalize_clean', normalize_clean, (True, False))

  def with_unit_clean(u: jax.Array, gp: jax.Array) -> jax.Array:
    weight = jnp.asarray(alpha, u.dtype)
    mixed = (1 - weight) * u + weight * gp.astype(u.dtype)
    return mixed.astype(gp.dtype)

  def mixed(g: jax.Array, gp: jax.Array) -> jax.Array:
    wide = tree_math.widen(g)
    # Exactly the clean gradient where both are equal.
    difference = tree_math.widen(gp) - wide
    return (wide + jnp.asarray(alpha, wide.dtype) * difference).astype(g.dtype)

  def combine(clean: optax.Updates, at: At) -> optax.Updates:
    if normalize_clean:
      unit = tree_math.scale_to(1.0, jax.tree.map(tree_math.widen, clean))
      return jax.tree.map(with_unit_clean, unit, at(1))
    return jax.tree.map(mixed, clean, at(1))

  return stateless(combine)


def orthogonal_part(
  updates: optax.Updates, *, to: optax.Updates, unit: jax.Array
) -> tuple[optax.Updates, jax.Array]:
  """Returns what is left without the direction of `to`, and its norm.

  Both are 0 if that is mere rounding.

  Args:
    updates: a tree like `to`.
    to: the direction.
    unit: the `power_of_two` of a norm of their order.
  """
  x, y = (tree_math.divide(tree, unit) for tree in (updates, to))
  square = tree_math.dot(y, y)
  usable = square > 0
  slope = jnp.where(
    usable, tree_math.dot(x, y) / jnp.where(usable, square, 1), 0
  )

  def leaf(x: jax.Array, y: jax.Array) -> jax.Array:
    dtype = tree_math.wide_dtype(x, y)
    return x.astype(dtype) - slope.astype(dtype) * y.astype(dtype)

  part = jax.tree.map(leaf, updates, to)
  length = tree_math.norm(part, unit)
  # That of `updates`, by Pythagoras: one pass over the parameters less.
  along = slope * jnp.sqrt(square) * unit.astype(square.dtype)
  whole = jnp.hypot(length, along.astype(length.dtype))
  negligible = tree_math.is_negligible(length, whole)
  part = jax.tree.map(lambda x: jnp.where(negligible, 0, x), part)
  return part, jnp.where(negligible, 0, length)
