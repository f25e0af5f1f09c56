"""GSAM: also closes the gap between the perturbed and the unperturbed loss."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine.descent import At, Descent, orthogonal_part, stateless
from optax_sam.engine.perturbation import scale_to_radius, with_radius
from optax_sam.engine.sharpness_aware import Choices, Mask, compose
from optax_sam.trees import tree_math


def surrogate_gap(alpha: float = 0.4, *, minimize_fp: bool = True) -> Descent:
  """Combines both gradients by the rule of `optax_sam.gsam`."""
  validation.check_number('alpha', alpha, at_least=0)
  validation.check_choice('minimize_fp', minimize_fp, (True, False))

  def combine(clean: optax.Updates, at: At) -> optax.Updates:
    left, to, sign = (clean, at(1), -1) if minimize_fp else (at(1), clean, 1)
    part, length = orthogonal_part(left, to=to)
    usable = tree_math.is_usable(tree_math.norm(to)) & jnp.isfinite(length)
    weight = sign * jnp.asarray(alpha, length.dtype)
    added = tree_math.multiply_where(usable, weight, part)
    moved = jax.tree.map(lambda x, y: tree_math.widen(x) + y, to, added)
    return optax.tree.cast_like(moved, to)

  return stateless(combine)


def _by_weights(radius: Any, updates: Any, *, params: Any, **_: Any) -> Any:
  wide = tree_math.widen_like(updates, params)
  scale = lambda w, g: jnp.abs(w.astype(g.dtype)) * g
  scaled = jax.tree.map(scale, params, wide)
  # The norm is that of the unscaled gradient.
  epsilon = tree_math.scale_to(radius, scaled, tree_math.norm(updates))
  return optax.tree.cast_like(epsilon, updates)


@validation.method()
def gsam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  alpha: float = 0.4,
  adaptive: bool = False,
  minimize_fp: bool = True,
  mask: Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""Surrogate gap guided SAM (GSAM): also closes the gap to the loss at `w`.

  .. math::
    \epsilon &= \rho\, g / (\|g\| + 10^{-12}), \quad g = \nabla L(w) \\
    \tilde g &= \nabla L(w + \epsilon) \\
    p &= g - (g^\top \tilde g / \|\tilde g\|^2)\, \tilde g \\
    u &= \tilde g - \alpha\, p

  To first order, :math:`-p` lowers the gap between both losses and leaves the
  perturbed loss unchanged. :math:`p = 0` if it is only rounding error, or if
  :math:`\tilde g = 0`. The paper couples `rho` to the learning rate, as
  `rho_like_learning_rate` does.

  Args:
    rho: radius, at least 0, or a schedule of it by the step; 0.05 is SAM's.
    alpha: weight of `p`, at least 0; 0 is SAM, 0.4 as the authors on CIFAR.
    adaptive: multiplies entries of `epsilon` by the sizes of their weights, as
      in big_vision, with ten times larger radii. The norm is that of `g`.
    minimize_fp: whether the perturbed loss is minimized with the gap, as in the
      paper. False minimizes the unperturbed loss and the gap, :math:`u = g +
      \alpha (\tilde g - (g^\top \tilde g / \|g\|^2)\, g)`; according to
      big_vision, the loss then has fewer spikes. Then `alpha=0` is the base
      optimizer.
    mask, axis_name, sync_ascent: see `optax_sam.sharpness_aware`. By default
      each device has its own `p`, as in the authors' code.

  Returns:
    A gradient transformation to place first in `optax.chain`, whose `update`
    needs `value_fn` or `grad_fn`; stateless. It costs 2 gradients.

  .. note:: Published code gives these numbers. The authors' radii, for the
    largest to the smallest rate: ResNet-50 and -101 0.04 to 0.02 with
    `alpha=0.01` (ResNet-152 0.005); ViT-S/32 0.6 to 0 with 0.4, S/16 0.6 to 0
    with 1.0, B/32 0.6 to 0.1 with 0.6, B/16 0.6 to 0.2 with 0.4.

  References:
    Zhuang et al., `Surrogate Gap Minimization Improves Sharpness-Aware Training
    <https://arxiv.org/abs/2203.08065>`_, ICLR 2022.

  >>> import jax.numpy as jnp, optax_sam
  >>> tx, w = optax_sam.gsam(alpha=0.5), jnp.zeros(2)
  >>> g, grad_fn = jnp.array([3.0, 4.0]), lambda _: jnp.array([0.0, 2.0])
  >>> u, _ = tx.update(g, tx.init(w), w, grad_fn=grad_fn)
  >>> [round(x, 3) for x in u.tolist()]  # perp = (3, 0)
  [-1.5, 2.0]
  """
  validation.check_choice('adaptive', adaptive, (True, False))
  scaling = with_radius(rho, _by_weights) if adaptive else scale_to_radius(rho)
  descent = surrogate_gap(alpha, minimize_fp=minimize_fp)
  choices = Choices(scaling, descent=descent)
  return compose(choices, mask, axis_name, sync_ascent)


def rho_like_learning_rate(
  learning_rate: optax.Schedule,
  *,
  rho_max: float,
  rho_min: float,
  lr_max: float,
  lr_min: float,
) -> optax.Schedule:
  r"""Couples the radius to the learning rate, as GSAM does.

  .. math::
    \rho_t = \rho_{\min} + (\rho_{\max} - \rho_{\min})
      \frac{\eta_t - \eta_{\min}}{\eta_{\max} - \eta_{\min}}

  The radius is clamped to its bounds: a warm-up of the learning rate
  :math:`\eta_t` may start below `lr_min`. The trainer in big_vision does not
  clamp, and counts steps from 1 for the radius but from 0 in the optimizer. So
  its radius, like that of the linear schedulers in the authors' README, is one
  step ahead of the rate: pass `lambda t: lr(t + 1)` to reproduce their numbers.

  Args:
    learning_rate: schedule of the learning rate, not of a factor in [0, 1].
    rho_max, rho_min: radii at `lr_max` and `lr_min`; `rho_max >= rho_min >= 0`.
    lr_max, lr_min: largest and smallest rate; if equal, they give `rho_max`.

  Returns:
    A schedule to pass as `rho`, in float32, or in float64 if the rate is.

  >>> rate = optax.linear_schedule(1.0, 0.0, 10)
  >>> schedule = rho_like_learning_rate(
  ...   rate, rho_max=0.6, rho_min=0.1, lr_max=1.0, lr_min=0.0
  ... )
  >>> [round(float(schedule(t)), 3) for t in (0, 5, 10)]
  [0.6, 0.35, 0.1]
  """
  if not callable(learning_rate):
    msg = (
      f'learning_rate must be a schedule, got {learning_rate!r}: a constant '
      f'one has a constant radius, so pass that radius as rho.'
    )
    raise ValueError(msg)
  validation.check_number('rho_min', rho_min, at_least=0)
  validation.check_number('rho_max', rho_max, at_least=rho_min)
  validation.check_number('lr_min', lr_min)
  validation.check_number('lr_max', lr_max, at_least=lr_min)

  def schedule(count: Any) -> jax.Array:
    rate = tree_math.widen(jnp.asarray(learning_rate(count)))
    if lr_max == lr_min:
      return jnp.full_like(rate, rho_max)
    fraction = (rate - lr_min) / (lr_max - lr_min)
    return jnp.clip(rho_min + (rho_max - rho_min) * fraction, rho_min, rho_max)

  return schedule
