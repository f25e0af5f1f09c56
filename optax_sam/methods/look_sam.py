"""LookSAM: reuses the last second gradient at the steps in between."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine import partition
from optax_sam.engine.descent import Descent, orthogonal_part
from optax_sam.engine.perturbation import scale_to_radius, with_radius
from optax_sam.engine.policy import every
from optax_sam.engine.sharpness_aware import sharpness_aware
from optax_sam.trees import tree_math


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
    zero = jnp.zeros((), tree_math.accumulator_dtype(params))
    direction = tree_math.zeros_like(params, accumulator_dtype)
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
    return structure.unflatten([x for x, _ in parts]), tree_math.norm(lengths)

  def reuse(clean: optax.Updates, direction: optax.Updates) -> optax.Updates:
    direction = tree_math.widen_like(direction, clean)
    size = tree_math.norm(clean)
    wanted = jnp.asarray(alpha, size.dtype) * size
    added = tree_math.multiply_where(jnp.isfinite(wanted), wanted, direction)
    return jax.tree.map(
      lambda g, v: (tree_math.widen(g) + v).astype(g.dtype), clean, added
    )

  @jax.jit
  def on_ascent(
    clean: optax.Updates,
    perturbed: optax.Updates,
    state: ReuseOrthogonalState,
  ) -> tuple[optax.Updates, ReuseOrthogonalState]:
    direction, length = units(clean, perturbed)
    reference = tree_math.norm(clean)
    ratio = length / jnp.where(reference > 0, reference, 1)
    finite = jnp.isfinite(length) & jnp.isfinite(reference)
    direction = tree_math.cast_like(direction, state.direction)
    found = ReuseOrthogonalState(direction, ratio.astype(state.ratio.dtype))
    return perturbed, tree_math.select(finite, found, state)

  @jax.jit
  def on_skip(
    clean: optax.Updates, state: ReuseOrthogonalState
  ) -> tuple[optax.Updates, ReuseOrthogonalState]:
    if per_leaf:
      return jax.tree.map(reuse, clean, state.direction), state
    return reuse(clean, state.direction), state

  return Descent(init, on_ascent, on_skip)


def scale_by_trust_ratio_radius(
  rho: optax.ScalarOrSchedule,
  *,
  rule: Literal['global', 'layer', 'unit'] = 'global',
  max_ratio: float = 20.0,
) -> optax.GradientTransformationExtraArgs:
  """Scales every leaf by the size of its weights: Look-LayerSAM's ascent.

  With `w_l`, `g_l` a leaf of the parameters and of the ascent gradient `g`::

    'global':  rho * min(norm(w_l) / norm(g_l), max_ratio) * g_l / norm(g)
    'layer':   rho * norm(w_l) * g_l / norm(g_l)^2
    'unit':    rho * g_l / norm(g_l)

  A norm of zero, of the gradient or, but for 'unit', of the weights, leaves
  the leaf unperturbed; a gradient that isn't finite, all. The first two grow
  as the gradient fades.

  Args:
    rho: radius, a scalar of at least 0 or a schedule of it by the step,
      counted from 0; for 'unit' in the unit of the parameters.
    rule: which of the three. The paper's formula could not be confirmed:
      'global' rests on an account of it, 'layer' and 'unit' on one port each.
    max_ratio: bound of the ratio in 'global', above 0; 20 is that of one port.

  Returns:
    A perturbation, whose `update` needs `params`. Keeps nothing, or the count
    of the schedule.

  Raises:
    ValueError: if a Python value is out of range.

  References:
    Liu, Mai, Chen, Hsieh, You, `Towards Efficient and Scalable
    Sharpness-Aware Minimization <https://arxiv.org/abs/2203.02714>`_, CVPR
    2022.

  Two leaves of one weight each, where `norm(g) = 5`:

  >>> w = [jnp.array([6.0]), jnp.array([100.0])]
  >>> g = [jnp.array([3.0]), jnp.array([4.0])]
  >>> for rule in ('global', 'layer', 'unit'):
  ...   piece = scale_by_trust_ratio_radius(0.5, rule=rule)
  ...   epsilon, _ = piece.update(g, piece.init(w), w)
  ...   print([round(float(e[0]), 3) for e in epsilon])
  [0.6, 8.0]
  [1.0, 12.5]
  [0.5, 0.5]
  """
  validation.check_choice('rule', rule, ('global', 'layer', 'unit'))
  validation.check_number('max_ratio', max_ratio, above=0)

  def factor(weight: jax.Array, gradient: jax.Array, total: Any) -> Any:
    size, length = tree_math.norm(gradient), tree_math.norm(weight)
    size, length = size.astype(total.dtype), length.astype(total.dtype)
    usable = tree_math.is_usable(size) & tree_math.is_usable(total)
    divisor = jnp.where(usable, size, 1)
    if rule == 'unit':
      return usable, 1 / divisor
    usable &= tree_math.is_usable(length)
    ratio = length / divisor
    if rule == 'layer':
      return usable, ratio / divisor
    bounded = jnp.minimum(ratio, jnp.asarray(max_ratio, ratio.dtype))
    return usable, bounded / jnp.where(usable, total, 1)

  @jax.jit
  def scale(
    radius: Any, updates: optax.Updates, params: optax.Params
  ) -> optax.Updates:
    total = tree_math.norm(updates)

    def leaf(weight: jax.Array, gradient: jax.Array) -> jax.Array:
      usable, scale = factor(weight, gradient, total)
      scale *= jnp.asarray(radius, total.dtype)
      return tree_math.multiply_where(usable, scale, gradient)

    return jax.tree.map(leaf, params, updates)

  return with_radius(
    rho, lambda radius, updates, params, **_: scale(radius, updates, params)
  )


def _multiply_wide(left: jax.Array, right: jax.Array) -> jax.Array:
  dtype = tree_math.wide_dtype(left, right)
  return left.astype(dtype) * right.astype(dtype)


def look_sam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  period: int = 5,
  alpha: float = 0.1,
  per_leaf: bool = False,
  accumulator_dtype: Any = None,
  mask: partition.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """LookSAM: SAM periodically, its lasting part reused in between.

  With `g` the gradient at `w`, `gp` that at SAM's `w + epsilon`, `t` the step,
  counted from 0, and `gv` 0 at first::

    t % period == 0:  gv = gp - (dot(g, gp) / norm(g)^2) * g;   u = gp
    otherwise:        u = g + alpha * (norm(g) / norm(gv)) * gv

  A `gv` that is mere rounding against `gp` counts as 0, and `gv = 0` gives
  `u = g`. Only its direction matters: whatever `rho` is, what is added has the
  length `alpha * norm(g)`. The ratio `norm(gv) / norm(g)` grows with `rho`,
  about 0.15 at 0.05, 0.4 to 1.2 at 0.2 and 3 at 1.0, and a sane `alpha` is
  close to it: see `metrics(opt_state)['descent/ratio']`.

  No program by the authors is public, and the text of their algorithm was not
  checked. Ports take norms over all leaves, as here by default, or leaf by
  leaf; the latter turn to NaN at a leaf whose gradient is 0, `per_leaf=True`
  doesn't. Some count from 1, leave the sum out of the inner product, or double
  the gradient in between: not reproduced.

  Args:
    rho: radius in the unit of the parameters, a scalar of at least 0, or a
      schedule of it by the step. 0.05 is SAM's.
    period: number of steps from one SAM step to the next, at least 1. 5 is
      what the paper is quoted with.
    alpha: length of the reused part relative to the gradient, in [0, 1). A
      full search found 0.1 and no gain above 0.3; Becker et al. (2024, arXiv
      2401.12033) take 0.1 too. The 0.7 that the paper is quoted with belongs
      to ViT with `rho=1.0` and hardly trains at a small radius.
    per_leaf: whether norms and inner products are taken leaf by leaf.
    accumulator_dtype: dtype that `gv` is kept in, with length 1; None for
      float32 or wider, bfloat16 for half of that memory.
    mask: leaves that may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: device axis to average over; see `optax_sam.sharpness_aware`.
    sync_ascent: whether the ascent gradient is averaged too; see there.
      `gv` and all descents are of averages; only `epsilon` is a device's own.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `value_fn` or `grad_fn`. Cost: 1 + 1 / `period` gradients.
    Keeps the direction of `gv`.

  Raises:
    ValueError: if a Python value is out of range, and in `update` if what it
      needs was not passed.

  References:
    Liu, Mai, Chen, Hsieh, You, `Towards Efficient and Scalable
    Sharpness-Aware Minimization <https://arxiv.org/abs/2203.02714>`_, CVPR
    2022.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.look_sam(period=2, alpha=0.5)
  >>> w, gradient = jnp.zeros(2), jnp.array([2.0, 0.0])
  >>> grad_fn = lambda _: jnp.array([2.0, 3.0])
  >>> state = tx.init(w)
  >>> for _ in range(4):
  ...   u, state = tx.update(gradient, state, w, grad_fn=grad_fn)
  ...   print([round(x, 3) for x in u.tolist()])  # gv = (0, 3)
  [2.0, 3.0]
  [2.0, 1.0]
  [2.0, 3.0]
  [2.0, 1.0]
  """
  return sharpness_aware(
    scale_to_radius(rho),
    policy=every(period),
    descent=reuse_orthogonal(
      alpha, per_leaf=per_leaf, accumulator_dtype=accumulator_dtype
    ),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )


def look_layer_sam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  period: int = 5,
  alpha: float = 0.1,
  rule: Literal['global', 'layer', 'unit'] = 'global',
  max_ratio: float = 20.0,
  accumulator_dtype: Any = None,
  mask: partition.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Look-LayerSAM: LookSAM whose ascent is scaled layer by layer.

  A layer is a leaf; with `w_l`, `g_l` its weights and gradient, epsilon of the
  layer is::

    'global':  rho * min(norm(w_l) / norm(g_l), max_ratio) * g_l / norm(g)
    'layer':   rho * norm(w_l) * g_l / norm(g_l)^2
    'unit':    rho * g_l / norm(g_l)

  and 0 where `norm(g_l)`, or but for 'unit' `norm(w_l)`, is 0. The rest is
  `look_sam`. The paper's formula could not be confirmed: 'global' is a
  second-hand account of it, 'layer' and 'unit' are each the rule of one port.
  The first two grow as 1 / norm(g) while the training converges, and a factor
  on the loss changes them.

  Args:
    rho: factor of the above, for 'unit' the length of a layer's epsilon, a
      scalar of at least 0, or a schedule of it by the step. 0.05 is SAM's.
    period: number of steps from one SAM step to the next, at least 1; 5 as in
      `look_sam`.
    alpha: length of the reused part relative to the gradient, in [0, 1); 0.1
      as in `look_sam`.
    rule: which of the three.
    max_ratio: bound of the ratio in 'global', above 0. 20 is a port's.
    accumulator_dtype: dtype that the reused part is kept in, as in `look_sam`.
    mask: leaves that may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: device axis to average over; see `optax_sam.sharpness_aware`.
    sync_ascent: whether the ascent gradient is averaged too; see there.
      The reused part is of averages, as in `look_sam`.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `value_fn` or `grad_fn`. Cost: 1 + 1 / `period` gradients.
    Keeps the reused part.

  Raises:
    ValueError: if a Python value is out of range, and in `update` if what it
      needs was not passed.

  References:
    Liu, Mai, Chen, Hsieh, You, `Towards Efficient and Scalable
    Sharpness-Aware Minimization <https://arxiv.org/abs/2203.02714>`_, CVPR
    2022.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.look_layer_sam(rho=0.5)
  >>> w = {'a': jnp.array([4.0]), 'b': jnp.array([1.0])}
  >>> gradient = {'a': jnp.array([3.0]), 'b': jnp.array([4.0])}
  >>> u, _ = tx.update(gradient, tx.init(w), w, grad_fn=lambda w: w)
  >>> [round(float(u[name][0]), 3) for name in 'ab']  # each a tenth more
  [4.4, 1.1]
  """
  return sharpness_aware(
    scale_by_trust_ratio_radius(rho, rule=rule, max_ratio=max_ratio),
    policy=every(period),
    descent=reuse_orthogonal(alpha, accumulator_dtype=accumulator_dtype),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )
