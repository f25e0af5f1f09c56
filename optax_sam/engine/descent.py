"""Combination rules: from the gradients to the update direction.

A combination rule (`Descent`) has `init(params)`, `on_ascent(clean, at,
state)` for steps with a perturbed gradient, and `on_skip(clean, state)` for the
others. Both return (direction, new state). `clean` is the unperturbed gradient,
and `at(t)` the gradient at `w + t * epsilon`: SAM returns `at(1)`; each further
multiple costs one more gradient. The gradients that a rule with state receives
are averaged over the devices. Pass a rule to `optax_sam.sharpness_aware`.
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
  """A combination rule: from both gradients to the update direction.

  Attributes:
    init: from the parameters to the state of the rule, a pytree of arrays.
    on_ascent: from (unperturbed gradient, function from t to the gradient at
      `w + t * epsilon`, state) to (direction, new state); the gradients and the
      direction are like the parameters.
    on_skip: from (unperturbed gradient, state) to (direction, new state).
  """

  init: Callable[[optax.Params], Any]
  on_ascent: Callable[[optax.Updates, At, Any], tuple[Any, Any]]
  on_skip: Callable[[optax.Updates, Any], tuple[Any, Any]]


def keep_clean(clean: optax.Updates, state: Any) -> tuple[optax.Updates, Any]:
  """Returns the unperturbed gradient and the state as they are."""
  return clean, state


def stateless(combine: Callable[[optax.Updates, At], Any]) -> Descent:
  """Builds a stateless rule from a function of the gradient and `at`."""
  return Descent(
    no_state, lambda clean, at, state: (combine(clean, at), state), keep_clean
  )


def perturbed_gradient() -> Descent:
  r"""Uses the perturbed gradient as the direction, as SAM does.

  .. math::
    \begin{align*}
      u &= \nabla L(w + \epsilon) \text{ at an ascent step} \\
      u &= \nabla L(w) \text{ at a skipped step}
    \end{align*}

  Returns:
    A stateless combination rule.

  >>> clean, perturbed = jnp.array([3.0, 4.0]), jnp.array([4.0, 5.0])
  >>> rule = perturbed_gradient()
  >>> rule.on_ascent(clean, lambda t: perturbed, ())[0].tolist()
  [4.0, 5.0]
  """
  return stateless(lambda _, at: at(1))


def mix(alpha: float, *, normalize_clean: bool = False) -> Descent:
  r"""Mixes the unperturbed and the perturbed gradient: GNP and WSAM.

  .. math::
    \begin{align*}
      g &= \nabla L(w), \quad \tilde g = \nabla L(w + \epsilon) \\
      u &= g + \alpha (\tilde g - g) \\
      u &= (1 - \alpha)\, g / (\|g\| + 10^{-12}) + \alpha \tilde g
        \text{ if normalized}
    \end{align*}

  Args:
    alpha: weight of the difference, any number: 0 is the base optimizer, 1 is
      SAM; above 1 it extrapolates, as in `optax_sam.wsam`.
    normalize_clean: whether `g` is normalized to unit length, as in the
      released configuration of GNP, against its own README. A norm that is zero
      or not finite then counts as `g = 0`.

  Returns:
    A stateless combination rule.

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
    # Exactly the unperturbed gradient where both are equal.
    difference = tree_math.widen(gp) - wide
    return (wide + jnp.asarray(alpha, wide.dtype) * difference).astype(g.dtype)

  def combine(clean: optax.Updates, at: At) -> optax.Updates:
    if normalize_clean:
      unit = tree_math.scale_to(1.0, jax.tree.map(tree_math.widen, clean))
      return jax.tree.map(with_unit_clean, unit, at(1))
    return jax.tree.map(mixed, clean, at(1))

  return stateless(combine)


def add_change() -> Descent:
  r"""Adds to the unperturbed gradient the change of the perturbed one.

  For `selections.weighted`, whose loss :math:`S` is a part of the loss of the
  batch: :math:`u = g + \nabla S(w + \epsilon) - \nabla S(w)`.

  Returns:
    A stateless combination rule.

  >>> clean, gradients = jnp.array([3.0]), {0: jnp.array([1.0]), 1: jnp.ones(1)}
  >>> add_change().on_ascent(clean, lambda t: 2.0 * gradients[t], ())[
  ...   0
  ... ].tolist()
  [3.0]
  """

  def change(g: jax.Array, after: jax.Array, before: jax.Array) -> jax.Array:
    wide, before = tree_math.widen(g), tree_math.widen(before)
    return (wide + (tree_math.widen(after) - before)).astype(g.dtype)

  return stateless(lambda clean, at: jax.tree.map(change, clean, at(1), at(0)))


def orthogonal_part(
  updates: optax.Updates, *, to: optax.Updates
) -> tuple[optax.Updates, jax.Array]:
  """Returns the part of a tree that is orthogonal to `to`, and its norm.

  Both are 0 if the part is within rounding error.
  """
  square, unit = tree_math.squared_norm(to)
  along = tree_math.dot_in_unit(updates, to, unit)
  usable = square > 0
  size = jnp.sqrt(jnp.where(usable, square, 1))
  along = jnp.where(usable, along / size, 0)
  slope = along / size / unit

  def leaf(x: jax.Array, y: jax.Array) -> jax.Array:
    dtype = tree_math.wide_dtype(x, y)
    return x.astype(dtype) - slope.astype(dtype) * y.astype(dtype)

  part = jax.tree.map(leaf, updates, to)
  length = tree_math.norm(part)
  # The norm of `updates`, by Pythagoras: saves a pass over the parameters.
  whole = jnp.hypot(length, along.astype(length.dtype))
  negligible = tree_math.is_negligible(length, whole)
  part = jax.tree.map(lambda x: jnp.where(negligible, 0, x), part)
  return part, jnp.where(negligible, 0, length)
