"""Descents that keep something of the perturbed gradients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import numerics, validation
from optax_sam.descents.descent import Descent
from optax_sam.descents.orthogonal import orthogonal_part


class ReuseOrthogonalState(NamedTuple):
  """State of `reuse_orthogonal`.

  Attributes:
    direction: part of the last perturbed gradient that is orthogonal to its
      clean gradient, scaled to length 1 (each leaf with `per_leaf`), zeros
      where there was none; like the parameters, float32 or wider unless a
      dtype was given.
    ratio: norm of that part, unscaled, over the norm of the clean gradient, a
      scalar; a sane `alpha` is close to it.
  """

  direction: optax.Updates
  ratio: jax.Array


def reuse_orthogonal(
  alpha: float = 0.1, *, per_leaf: bool = False, accumulator_dtype: Any = None
) -> Descent:
  """Reuses, where a step skips, what the last ascent added to the gradient.

  With `g` the clean and `gp` the perturbed gradient::

    on ascent:  gv = gp - (dot(g, gp) / norm(g)^2) * g;   u = gp
    on skip:    u = g + alpha * (norm(g) / norm(gv)) * gv

  `gv = 0`, as before the first ascent, makes a skipped step the base
  optimizer's. A `gv` that is mere rounding against `gp` is stored as 0, and
  one that isn't finite is not stored. What is kept is `gv / norm(gv)`, so that
  a skipped step doesn't measure it again. Computed in float32 or wider: half
  precision would leave a part along `g`.

  Args:
    alpha: length of the reused part relative to the clean gradient, in [0, 1);
      0 is the base optimizer. See `optax_sam.look_sam` for the evidence of 0.1
      against the authors' 0.7.
    per_leaf: whether norms and inner products are taken leaf by leaf rather
      than over all leaves together. Ports do either; no program is the
      authors'.
    accumulator_dtype: dtype that the kept direction is stored in; None for
      float32 or wider. bfloat16 takes half of the memory and keeps 8 bits of
      every entry, and so of the length that a skipped step adds.

  Returns:
    A descent that keeps the direction of `gv` and its relative norm
    (`ReuseOrthogonalState`).

  Raises:
    ValueError: if a Python value is out of range.

  References:
    Liu, Mai, Chen, Hsieh, You, `Towards Efficient and Scalable Sharpness-Aware
    Minimization <https://arxiv.org/abs/2203.02714>`_, CVPR 2022.

  >>> clean, perturbed = jnp.array([4.0, 0.0]), jnp.array([5.0, 2.0])
  >>> descent = reuse_orthogonal(0.5)
  >>> _, state = descent.on_ascent(clean, perturbed, descent.init(clean))
  >>> state.direction.tolist(), float(state.ratio)
  ([0.0, 1.0], 0.5)
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

  def unit(
    clean: optax.Updates, perturbed: optax.Updates
  ) -> tuple[optax.Updates, jax.Array]:
    part, length = orthogonal_part(perturbed, to=clean)
    divisor = jnp.where(length > 0, length, 1)
    scaled = jax.tree.map(lambda x: x / divisor.astype(x.dtype), part)
    return scaled, length

  def units(
    clean: optax.Updates, perturbed: optax.Updates
  ) -> tuple[optax.Updates, jax.Array]:
    if not per_leaf:
      return unit(clean, perturbed)
    leaves, structure = jax.tree.flatten(perturbed)
    pairs = zip(leaves, jax.tree.leaves(clean), strict=True)
    parts = [unit(g, gp) for gp, g in pairs]
    lengths = [length for _, length in parts]
    return structure.unflatten([x for x, _ in parts]), numerics.norm(lengths)

  def reuse(clean: optax.Updates, direction: optax.Updates) -> optax.Updates:
    direction = numerics.widen_like(direction, clean)
    size = numerics.norm(clean)
    wanted = jnp.asarray(alpha, size.dtype) * size
    added = numerics.multiply_where(jnp.isfinite(wanted), wanted, direction)
    return jax.tree.map(
      lambda g, v: (numerics.widen(g) + v).astype(g.dtype), clean, added
    )

  @jax.jit
  def on_ascent(
    clean: optax.Updates,
    perturbed: optax.Updates,
    state: ReuseOrthogonalState,
  ) -> tuple[optax.Updates, ReuseOrthogonalState]:
    direction, length = units(clean, perturbed)
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
