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

from optax_sam import numerics, validation


class Descent(NamedTuple):
  """Combines the clean and the perturbed gradient into a direction.

  Attributes:
    init: from the parameters to the state of the descent, a pytree of arrays.
    on_ascent: from (clean gradient, perturbed gradient, state) to (direction,
      new state); the gradients and the direction are like the parameters.
    on_skip: from (clean gradient, state) to (direction, new state).
  """

  init: Callable[[optax.Params], Any]
  on_ascent: Callable[[optax.Updates, optax.Updates, Any], tuple[Any, Any]]
  on_skip: Callable[[optax.Updates, Any], tuple[Any, Any]]


class ReuseOrthogonalState(NamedTuple):
  """State of `reuse_orthogonal`.

  Attributes:
    direction: part of the last perturbed gradient that is orthogonal to its
      clean gradient, like the parameters, float32 or wider unless a dtype was
      given.
    ratio: norm of that part over the norm of the clean gradient, a scalar; a
      sane `alpha` is close to it.
  """

  direction: optax.Updates
  ratio: jax.Array


def _no_state(params: optax.Params) -> optax.EmptyState:
  del params
  return optax.EmptyState()


def _keep_clean(clean: optax.Updates, state: Any) -> tuple[optax.Updates, Any]:
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

  return Descent(_no_state, on_ascent, _keep_clean)


def surrogate_gap(alpha: float = 0.4) -> Descent:
  """Descends on the perturbed loss and on its gap to the clean one: GSAM.

  With `g` the clean and `gp` the perturbed gradient::

    perp = g - (dot(g, gp) / norm(gp) ^ 2) * gp
    u = gp - alpha * perp

  A `perp` that is mere rounding against `g`, or a `gp` of 0, gives `u = gp`. On
  several devices each decomposes its own gradients, as in the authors' program.

  Args:
    alpha: weight of the part of the clean gradient that is orthogonal to the
      perturbed one, at least 0; 0 is SAM. 0.4 is that of the authors' CIFAR
      example and ViT-S/32; see `optax_sam.gsam` for others.

  Returns:
    A descent that keeps nothing.

  Raises:
    ValueError: if a Python value is out of range.

  References:
    Zhuang et al., `Surrogate Gap Minimization Improves Sharpness-Aware
    Training <https://arxiv.org/abs/2203.08065>`_, ICLR 2022.

  >>> clean, perturbed = jnp.array([1.0, 2.0]), jnp.array([2.0, 0.0])
  >>> surrogate_gap(0.5).on_ascent(clean, perturbed, ())[0].tolist()
  [2.0, -1.0]
  """
  validation.check_number('alpha', alpha, at_least=0)

  @jax.jit
  def on_ascent(
    clean: optax.Updates, perturbed: optax.Updates, state: Any
  ) -> tuple[optax.Updates, Any]:
    part, length = _orthogonal_part(clean, to=perturbed)
    usable = numerics.is_usable(numerics.norm(perturbed))
    usable &= jnp.isfinite(length)

    def leaf(gp: jax.Array, perp: jax.Array) -> jax.Array:
      wide = numerics.widen(gp)
      moved = wide - jnp.asarray(alpha, wide.dtype) * perp.astype(wide.dtype)
      return jnp.where(usable, moved, wide).astype(gp.dtype)

    return jax.tree.map(leaf, perturbed, part), state

  return Descent(_no_state, on_ascent, _keep_clean)


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
    unit = numerics.scale_to(1.0, jax.tree.map(numerics.widen, clean))

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
      wide = numerics.widen(g)
      difference = numerics.widen(gp) - wide
      weight = jnp.asarray(alpha, wide.dtype)
      return (wide + weight * difference).astype(g.dtype)

    return jax.tree.map(leaf, clean, perturbed)

  def on_ascent(
    clean: optax.Updates, perturbed: optax.Updates, state: Any
  ) -> tuple[optax.Updates, Any]:
    return mixed(clean, perturbed), state

  return Descent(_no_state, on_ascent, _keep_clean)


def reuse_orthogonal(
  alpha: float = 0.1, *, per_leaf: bool = False, accumulator_dtype: Any = None
) -> Descent:
  """Reuses, where a step skips, what the last ascent added to the gradient.

  With `g` the clean and `gp` the perturbed gradient::

    on ascent:  gv = gp - (dot(g, gp) / norm(g)^2) * g;   u = gp
    on skip:    u = g + alpha * (norm(g) / norm(gv)) * gv

  `gv = 0`, as before the first ascent, makes a skipped step the base
  optimizer's. A `gv` that is mere rounding against `gp` is stored as 0, and
  one that isn't finite is not stored. Computed in float32 or wider: half
  precision would leave a part along `g`.

  Args:
    alpha: length of the reused part relative to the clean gradient, in [0, 1);
      0 is the base optimizer. See `optax_sam.look_sam` for the evidence of 0.1
      against the authors' 0.7.
    per_leaf: whether norms and inner products are taken leaf by leaf rather
      than over all leaves together. Ports do either; no program is the
      authors'.
    accumulator_dtype: dtype that `gv` is kept in; None for float32 or wider.
      bfloat16 takes half of the memory and keeps 8 bits of every entry.

  Returns:
    A descent that keeps `gv` and its relative norm (`ReuseOrthogonalState`).

  Raises:
    ValueError: if a Python value is out of range.

  References:
    Liu, Mai, Chen, Hsieh, You, `Towards Efficient and Scalable Sharpness-Aware
    Minimization <https://arxiv.org/abs/2203.02714>`_, CVPR 2022.

  >>> clean, perturbed = jnp.array([4.0, 0.0]), jnp.array([5.0, 2.0])
  >>> descent = reuse_orthogonal(0.5)
  >>> _, state = descent.on_ascent(clean, perturbed, descent.init(clean))
  >>> state.direction.tolist(), float(state.ratio)
  ([0.0, 2.0], 0.5)
  >>> descent.on_skip(2 * clean, state)[0].tolist()  # adds half of 8 along gv
  [8.0, 4.0]
  """
  validation.check_number('alpha', alpha, at_least=0, below=1)
  validation.check_choice('per_leaf', per_leaf, (True, False))
  validation.check_float_dtype('accumulator_dtype', accumulator_dtype)

  def init(params: optax.Params) -> ReuseOrthogonalState:
    zero = jnp.zeros((), numerics.accumulator_dtype(params))
    direction = numerics.zeros_like(params, accumulator_dtype)
    return ReuseOrthogonalState(direction, zero)

  def orthogonal(
    clean: optax.Updates, perturbed: optax.Updates
  ) -> tuple[optax.Updates, jax.Array]:
    if not per_leaf:
      return _orthogonal_part(perturbed, to=clean)
    leaves, structure = jax.tree.flatten(perturbed)
    pairs = zip(leaves, jax.tree.leaves(clean), strict=True)
    parts = [_orthogonal_part(gp, to=g) for gp, g in pairs]
    lengths = [length for _, length in parts]
    return structure.unflatten([x for x, _ in parts]), numerics.norm(lengths)

  def reuse(clean: optax.Updates, direction: optax.Updates) -> optax.Updates:
    direction = numerics.widen_like(direction, clean)
    available = numerics.norm(direction)
    wanted = jnp.asarray(alpha, available.dtype) * numerics.norm(clean)
    usable = numerics.is_usable(available) & jnp.isfinite(wanted)
    scale = wanted.astype(available.dtype) / jnp.where(usable, available, 1)
    added = numerics.multiply_where(usable, scale, direction)
    return jax.tree.map(
      lambda g, v: (numerics.widen(g) + v).astype(g.dtype), clean, added
    )

  @jax.jit
  def on_ascent(
    clean: optax.Updates,
    perturbed: optax.Updates,
    state: ReuseOrthogonalState,
  ) -> tuple[optax.Updates, ReuseOrthogonalState]:
    direction, length = orthogonal(clean, perturbed)
    reference = numerics.norm(clean)
    ratio = length / jnp.where(reference > 0, reference, 1)
    finite = jnp.isfinite(length) & jnp.isfinite(reference)
    direction = numerics.cast_like(direction, state.direction)
    found = ReuseOrthogonalState(direction, ratio.astype(state.ratio.dtype))
    return perturbed, numerics.select(finite, found, state)

  @jax.jit
  def on_skip(
    clean: optax.Updates, state: ReuseOrthogonalState
  ) -> tuple[optax.Updates, ReuseOrthogonalState]:
    if per_leaf:
      return jax.tree.map(reuse, clean, state.direction), state
    return reuse(clean, state.direction), state

  return Descent(init, on_ascent, on_skip)


def _orthogonal_part(
  updates: optax.Updates, *, to: optax.Updates
) -> tuple[optax.Updates, jax.Array]:
  """Returns what is left without the direction of `to`, and its norm.

  Both are 0 if that is mere rounding.
  """
  size = numerics.norm(to)
  usable = size > 0
  slope = numerics.dot(updates, to) / jnp.where(usable, jnp.square(size), 1)
  slope = jnp.where(usable, slope, 0)

  def leaf(x: jax.Array, y: jax.Array) -> jax.Array:
    dtype = numerics.wide_dtype(x, y)
    return x.astype(dtype) - slope.astype(dtype) * y.astype(dtype)

  part = jax.tree.map(leaf, updates, to)
  length = numerics.norm(part)
  # That of `updates`, by Pythagoras: one pass over the parameters less.
  whole = jnp.hypot(length, (slope * size).astype(length.dtype))
  negligible = numerics.is_negligible(length, whole)
  part = jax.tree.map(lambda x: jnp.where(negligible, 0, x), part)
  return part, jnp.where(negligible, 0, length)
