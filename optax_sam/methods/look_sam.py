"""LookSAM and Look-LayerSAM: reuse a part of the gradient of SAM steps."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine.descent import At, Descent, orthogonal_part
from optax_sam.engine.perturbation import scale_to_radius, with_radius
from optax_sam.engine.policy import every
from optax_sam.engine.sharpness_aware import Choices, Mask, compose
from optax_sam.trees import tree_math


class ReuseOrthogonalState(NamedTuple):
  """State of `reuse_orthogonal`, where `ratio` is `norm(v) / norm(g)`.

  `direction` is `v` scaled to length 1 (each leaf with `per_leaf`) or zeros.
  """

  direction: optax.Updates
  ratio: jax.Array


def reuse_orthogonal(
  alpha: float = 0.1, *, per_leaf: bool = False, accumulator_dtype: Any = None
) -> Descent:
  """Reuses a part of the last perturbed gradient: see `optax_sam.look_sam`.

  It computes in at least float32, and stores no `v` that is not finite.
  """
  validation.check_number('alpha', alpha, at_least=0, below=1)
  validation.check_choice('per_leaf', per_leaf, (True, False))
  validation.check_float_dtype('accumulator_dtype', accumulator_dtype)

  def init(params: optax.Params) -> ReuseOrthogonalState:
    zero = jnp.zeros((), tree_math.accumulator_dtype(params))
    direction = tree_math.zeros_like(params, accumulator_dtype)
    return ReuseOrthogonalState(direction, zero)

  def unit(clean: Any, perturbed: Any) -> tuple[Any, jax.Array]:
    part, length = orthogonal_part(perturbed, to=clean)
    divisor = jnp.where(length > 0, length, 1)
    return jax.tree.map(lambda x: x / divisor.astype(x.dtype), part), length

  def reuse(clean: optax.Updates, direction: optax.Updates) -> optax.Updates:
    size, wide = tree_math.norm(clean), tree_math.widen_like(direction, clean)
    wanted = jnp.asarray(alpha, size.dtype) * size
    added = tree_math.multiply_where(jnp.isfinite(wanted), wanted, wide)
    add = lambda g, v: (tree_math.widen(g) + v).astype(g.dtype)
    return jax.tree.map(add, clean, added)

  def on_ascent(clean: Any, at: At, state: Any) -> tuple[Any, Any]:
    perturbed = at(1)
    if per_leaf:
      outer, pair = jax.tree.structure(clean), jax.tree.structure((0, 0))
      found = jax.tree.map(unit, clean, perturbed)
      direction, lengths = jax.tree.transpose(outer, pair, found)
      length = tree_math.norm(lengths)
    else:
      direction, length = unit(clean, perturbed)
    reference = tree_math.norm(clean)
    ratio = length / jnp.where(reference > 0, reference, 1)
    finite = jnp.isfinite(length) & jnp.isfinite(reference)
    found = optax.tree.cast_like(ReuseOrthogonalState(direction, ratio), state)
    return perturbed, optax.tree.where(finite, found, state)

  def on_skip(clean: Any, state: Any) -> tuple[Any, Any]:
    if per_leaf:
      return jax.tree.map(reuse, clean, state.direction), state
    return reuse(clean, state.direction), state

  return Descent(init, on_ascent, on_skip)


def scale_by_trust_ratio_radius(
  rho: optax.ScalarOrSchedule,
  *,
  rule: Literal['global', 'layer', 'unit', 'relative'] = 'global',
  max_ratio: float = 20.0,
) -> optax.GradientTransformationExtraArgs:
  """Scales the ascent gradient leaf by leaf: see `optax_sam.look_layer_sam`.

  A gradient that is not finite gives 0.
  """
  validation.check_choice('rule', rule, ('global', 'layer', 'unit', 'relative'))
  validation.check_number('max_ratio', max_ratio, above=0)

  def perturb(radius: Any, updates: Any, *, params: Any, **_: Any) -> Any:
    total = tree_math.norm(updates)

    def leaf(weight: jax.Array, gradient: jax.Array) -> jax.Array:
      number = lambda x: jnp.asarray(x, total.dtype)
      length, size = (number(tree_math.norm(x)) for x in (weight, gradient))
      usable = tree_math.is_usable(size) & tree_math.is_usable(total)
      divisor = jnp.where(usable, size, 1)
      scale = (1 if rule == 'unit' else length) / divisor
      if rule == 'layer':
        scale /= divisor
      elif rule == 'global':
        scale = jnp.minimum(scale, number(max_ratio))
        scale /= jnp.where(usable, total, 1)
      if rule != 'unit':
        usable &= tree_math.is_usable(length)
      return tree_math.multiply_where(usable, scale * number(radius), gradient)

    return jax.tree.map(leaf, params, updates)

  return with_radius(rho, perturb)


@validation.method()
def look_sam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  period: int = 5,
  alpha: float = 0.1,
  per_leaf: bool = False,
  accumulator_dtype: Any = None,
  mask: Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""LookSAM: SAM at every k-th step, a part of its gradient reused in between.

  The steps in between cost one gradient. They reuse :math:`v`, the part of
  the last perturbed gradient :math:`\tilde g` orthogonal to :math:`g`.

  .. math::
    u &= \tilde g, \quad v = \tilde g - (g^\top \tilde g / \|g\|^2)\, g
      && \text{every k-th step, 0 included} \\
    u &= g + \alpha\, (\|g\| / \|v\|)\, v && \text{otherwise}

  If :math:`v` is 0, or only rounding against :math:`\tilde g`, then
  :math:`u = g`. For any `rho` the added part is :math:`\alpha \|g\|` long, but
  :math:`\|v\| / \|g\|` grows with it: about 0.15 at 0.05, 0.4 to 1.2 at 0.2, 3
  at 1. Choose `alpha` near this ratio, `metrics(opt_state)['descent/ratio']`.

  Args:
    rho: radius, at least 0, or a schedule of it by the step; 0.05 is SAM's.
    period: k, at least 1; the paper is quoted with 5.
    alpha: length of the reused part relative to `g`, in [0, 1). A full search
      found 0.1 and no gain above 0.3; Becker et al. (2024, arXiv 2401.12033)
      use 0.1 too. The paper is quoted with 0.7, which belongs to ViT with
      `rho=1.0` and hardly trains at a small radius.
    per_leaf: whether norms and inner products are those of single leaves.
    accumulator_dtype: dtype of the stored direction; None: float32 or wider.
    mask, axis_name, sync_ascent: see `optax_sam.sharpness_aware`. `v` and `u`
      are computed from averages in any case.

  Returns:
    A gradient transformation to place first in `optax.chain`, whose `update`
    needs `value_fn` or `grad_fn`; state: `v`; 1 + 1 / `period` gradients.

  .. note:: The authors have no public code; the text of their algorithm is
    unverified. Some ports take norms over all leaves. Others take them leaf by
    leaf, and return NaN where a leaf has no gradient, unlike `per_leaf=True`.
    Unlike ours, some count steps from 1, do not sum the inner product, or
    double :math:`g` at the steps in between.

  References:
    Liu et al., `Towards Efficient and Scalable Sharpness-Aware Minimization
    <https://arxiv.org/abs/2203.02714>`_, CVPR 2022.

  >>> import jax.numpy as jnp, optax_sam
  >>> tx, w = optax_sam.look_sam(period=2, alpha=0.5), jnp.zeros(2)
  >>> g, grad_fn = jnp.array([2.0, 0.0]), lambda _: jnp.array([2.0, 3.0])
  >>> state = tx.init(w)
  >>> for _ in range(3):
  ...   u, state = tx.update(g, state, w, grad_fn=grad_fn)
  ...   print([round(x, 3) for x in u.tolist()])  # v = (0, 3)
  [2.0, 3.0]
  [2.0, 1.0]
  [2.0, 3.0]
  """
  descent = reuse_orthogonal(
    alpha, per_leaf=per_leaf, accumulator_dtype=accumulator_dtype
  )
  choices = Choices(scale_to_radius(rho), policy=every(period), descent=descent)
  return compose(choices, mask, axis_name, sync_ascent)


@validation.method()
def look_layer_sam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  period: int = 5,
  alpha: float = 0.1,
  rule: Literal['global', 'layer', 'unit', 'relative'] = 'global',
  max_ratio: float = 20.0,
  accumulator_dtype: Any = None,
  mask: Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""Look-LayerSAM: LookSAM with a perturbation scaled layer by layer.

  A layer is a leaf, with weights :math:`w_l` and gradient :math:`g_l`. Its
  perturbation depends on `rule`; the rest is `look_sam`.

  .. math::
    \text{global: } &\rho \min(\|w_l\| / \|g_l\|, r_{\max})\, g_l / \|g\| \\
    \text{layer: } &\rho\, \|w_l\|\, g_l / \|g_l\|^2 \\
    \text{unit: } &\rho\, g_l / \|g_l\| \\
    \text{relative: } &\rho\, \|w_l\|\, g_l / \|g_l\|

  They are 0 where :math:`\|g_l\| = 0`, and, except with 'unit', where
  :math:`\|w_l\| = 0`. The first two grow as gradients shrink, and a factor on
  the loss changes them.

  Args:
    rho: factor, at least 0, or a schedule of it. With 'unit' it is the length
      of a layer's epsilon, with 'relative' this length over that of the layer.
      0.05 is SAM's.
    period, alpha: see `look_sam`.
    rule: 'global', 'layer', 'unit' or 'relative'.
    max_ratio: upper bound :math:`r_{\max}`, above 0. 20 is a port's.
    accumulator_dtype, mask, axis_name, sync_ascent: see `look_sam`.

  Returns:
    A gradient transformation like `look_sam`.

  .. note:: Unverified: the paper's formula. 'global' is a second-hand account
    of it, 'layer' and 'unit' are of ports, and 'relative' is the rule of
    `adversarial_weight_perturbation`.

  References:
    Liu et al., `Towards Efficient and Scalable Sharpness-Aware Minimization
    <https://arxiv.org/abs/2203.02714>`_, CVPR 2022.

  >>> import jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.look_layer_sam(rho=0.5)
  >>> w = {'a': jnp.array([4.0]), 'b': jnp.array([1.0])}
  >>> g = {'a': jnp.array([3.0]), 'b': jnp.array([4.0])}
  >>> u, _ = tx.update(g, tx.init(w), w, grad_fn=lambda w: w)
  >>> [round(float(u[name][0]), 3) for name in 'ab']  # each a tenth more
  [4.4, 1.1]
  """
  perturbation = scale_by_trust_ratio_radius(
    rho, rule=rule, max_ratio=max_ratio
  )
  descent = reuse_orthogonal(alpha, accumulator_dtype=accumulator_dtype)
  choices = Choices(perturbation, policy=every(period), descent=descent)
  return compose(choices, mask, axis_name, sync_ascent)
