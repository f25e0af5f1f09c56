"""SAM: perturbs along the gradient, in one step or in several."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine.perturbation import ascent_step, with_radius
from optax_sam.engine.sharpness_aware import Choices, Mask, compose
from optax_sam.trees import tree_math


def ascend_repeatedly(
  rho: optax.ScalarOrSchedule, steps: int, *, p: float = 2
) -> optax.GradientTransformationExtraArgs:
  """Takes several ascent steps in the ball of radius rho: `optax_sam.sam`.

  Each ascent step after the first needs `ascent_grad_fn` and costs one
  gradient; if `rho` is a schedule, even at a step that a policy skips.
  """
  validation.check_static_integer('steps', steps)
  validation.check_choice('p', p, (2, float('inf')))

  def perturb(
    radius: Any, updates: Any, *, ascent_grad_fn: Any = None, **_: Any
  ) -> optax.Updates:
    if steps > 1 and ascent_grad_fn is None:
      msg = (
        'ascend_repeatedly needs ascent_grad_fn, a function from the '
        'perturbation to the ascent gradient there: use it as the '
        'perturbation of optax_sam.sharpness_aware, which passes it.'
      )
      raise ValueError(msg)
    # Half precision would round the sum of the steps away.
    wide = updates if steps == 1 else jax.tree.map(tree_math.widen, updates)
    delta = ascent_step(radius, wide, p)
    for _step in range(1, steps):
      gradient = jax.tree.map(tree_math.widen, ascent_grad_fn(delta))
      step = ascent_step(radius, gradient, p)
      delta = _project(radius, tree_math.add(delta, step), p)
    return optax.tree.cast_like(delta, updates)

  return with_radius(rho, perturb)


def _project(radius: Any, delta: optax.Updates, p: float) -> optax.Updates:
  if p != 2:
    bound = lambda x: jnp.asarray(radius, x.dtype)
    return jax.tree.map(lambda x: jnp.clip(x, -bound(x), bound(x)), delta)
  size = tree_math.norm(delta)
  radius = jnp.asarray(radius, size.dtype)
  outside = size > radius
  scale = jnp.where(outside, radius / jnp.where(outside, size, 1), 1)
  return tree_math.multiply_where(jnp.isfinite(size), scale, delta)


@validation.method('p', 'ascent_steps')
def sam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  p: float = 2,
  ascent_steps: int = 1,
  mask: Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""Sharpness-aware minimization (SAM): the gradient at perturbed parameters.

  SAM perturbs the weights by a step of length rho along the gradient, and
  descends by the gradient there, with :math:`\epsilon` held constant.

  .. math::
    \epsilon &= \rho\, g / (\|g\| + 10^{-12}), \quad g = \nabla L(w) \\
    \tilde g &= \nabla L(w + \epsilon)

  Each further ascent step adds :math:`\rho\, h / (\|h\| + 10^{-12})`, where
  :math:`h = \nabla L(w + \epsilon)`, and multiplies the sum by
  :math:`\min(1, \rho / \|\epsilon\|)`. With p = inf, normalized gradients are
  signs, and sums are clipped to +-rho.

  Args:
    rho: radius in the unit of the parameters, at least 0, or a schedule of it
      by the step. 0.05 is the authors', also for ImageNet; their grid is 0.01
      to 0.5, and they use 0.1 for noisy labels.
    p: 2 or infinity, the norm in which the perturbation has length `rho`.
    ascent_steps: number of ascent steps, at least 1. Published code uses 1.
    mask, axis_name, sync_ascent: see `optax_sam.sharpness_aware`.

  Returns:
    A gradient transformation to place first in `optax.chain`, whose `update`
    needs `value_fn` or `grad_fn`; stateless. 1 + `ascent_steps` gradients.

  .. note:: The code of six publications agrees with the rule. The paper's
    appendix prints a squared norm in one place, unlike its equation 2. The
    authors report worse results with a differentiated :math:`\epsilon`. Several
    steps follow Andriushchenko and Flammarion (2022, arXiv 2206.06232);
    `optax.contrib.sam` does not project.

  References:
    Foret et al., `Sharpness-Aware Minimization for Efficiently Improving
    Generalization <https://arxiv.org/abs/2010.01412>`_, ICLR 2021. Smaller
    parts of the batch generalized better there: `m_sam`.

  >>> import jax, jax.numpy as jnp, optax, optax_sam
  >>> tx = optax.chain(optax_sam.sam(rho=0.5), optax.sgd(0.1))
  >>> loss, w = lambda w: jnp.sum(w**2), jnp.array([3.0, 4.0])
  >>> updates, _ = tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)
  >>> [round(x, 3) for x in updates.tolist()]  # -0.1 * 2 * (w + 0.5 * w / 5)
  [-0.66, -0.88]
  """
  validation.check_static_integer('ascent_steps', ascent_steps)
  perturbation = ascend_repeatedly(rho, ascent_steps, p=p)
  return compose(Choices(perturbation), mask, axis_name, sync_ascent)
