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
      clean gradient, like the parameters, float32 or wider unless a dtype was
      given.
    ratio: norm of that part over the norm of the clean gradient, a scalar; a
      sane `alpha` is close to it.
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
      return orthogonal_part(perturbed, to=clean)
    leaves, structure = jax.tree.flatten(perturbed)
    pairs = zip(leaves, jax.tree.leaves(clean), strict=True)
    parts = [orthogonal_part(gp, to=g) for gp, g in pairs]
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
