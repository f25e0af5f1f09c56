"""Descents that need nothing but the gradients of the step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam import numerics, validation
from optax_sam.descents.descent import Descent, keep_clean, no_state
from optax_sam.descents.orthogonal import orthogonal_part


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
    part, length = orthogonal_part(clean, to=perturbed)
    usable = numerics.is_usable(numerics.norm(perturbed))
    usable &= jnp.isfinite(length)

    def leaf(gp: jax.Array, perp: jax.Array) -> jax.Array:
      wide = numerics.widen(gp)
      moved = wide - jnp.asarray(alpha, wide.dtype) * perp.astype(wide.dtype)
      return jnp.where(usable, moved, wide).astype(gp.dtype)

    return jax.tree.map(leaf, perturbed, part), state

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

  return Descent(no_state, on_ascent, keep_clean)


def regularize_curvature(gamma: float = 0.1, beta: float = 0.01) -> Descent:
  """Adds differences of the gradients on both sides: CR-SAM.

  With `g` the clean gradient, `gp` that at `w + epsilon`, `gm` that at
  `w - epsilon`::

    u = gp + gamma * (gp + gm - 2 * g) + beta * (gp - gm)

  To lowest order the second bracket is `2 * H epsilon`, with the Hessian H, and
  the first one the change of `H epsilon` along epsilon. Both are taken in
  float32 or wider.

  Args:
    gamma: weight of the second difference, at least 0.
    beta: weight of the first difference, at least 0. With both 0 this is SAM
      at the cost of 3 gradients.

  Returns:
    A descent that keeps nothing, and asks for both sides.

  Raises:
    ValueError: if a Python value is out of range.

  References:
    Wu, Luo, Wunsch, `CR-SAM: Curvature Regularized Sharpness-Aware
    Minimization <https://arxiv.org/abs/2312.13555>`_, AAAI 2024.

  >>> g, gp, gm = jnp.array([1.0]), jnp.array([3.0]), jnp.array([0.0])
  >>> u, _ = regularize_curvature(0.5, 0.1).on_ascent(g, (gp, gm), ())
  >>> round(float(u[0]), 3)  # 3 + 0.5 * 1 + 0.1 * 3
  3.8
  """
  validation.check_number('gamma', gamma, at_least=0)
  validation.check_number('beta', beta, at_least=0)

  @jax.jit
  def combine(
    clean: optax.Updates, ahead: optax.Updates, behind: optax.Updates
  ) -> optax.Updates:
    def leaf(g: jax.Array, gp: jax.Array, gm: jax.Array) -> jax.Array:
      wide, gp, gm = map(numerics.widen, (g, gp, gm))
      # As differences first, which are exactly 0 where epsilon is.
      second = jnp.asarray(gamma, wide.dtype) * ((gp - wide) + (gm - wide))
      first = jnp.asarray(beta, wide.dtype) * (gp - gm)
      return (gp + second + first).astype(g.dtype)

    return jax.tree.map(leaf, clean, ahead, behind)

  def on_ascent(
    clean: optax.Updates,
    perturbed: tuple[optax.Updates, optax.Updates],
    state: Any,
  ) -> tuple[optax.Updates, Any]:
    return combine(clean, *perturbed), state

  return Descent(no_state, on_ascent, keep_clean, both_sides=True)
