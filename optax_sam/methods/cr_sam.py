"""CR-SAM: penalizes curvature with gradients on both sides of the weights."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine.descent import Descent, stateless
from optax_sam.engine.perturbation import scale_to_radius
from optax_sam.engine.sharpness_aware import Choices, Mask, compose
from optax_sam.trees import tree_math


def regularize_curvature(gamma: float = 0.1, beta: float = 0.01) -> Descent:
  """Adds the gradient differences of `optax_sam.cr_sam` to SAM's gradient."""
  validation.check_number('gamma', gamma, at_least=0)
  validation.check_number('beta', beta, at_least=0)

  def combine(g: jax.Array, gp: jax.Array, gm: jax.Array) -> jax.Array:
    wide, gp, gm = map(tree_math.widen, (g, gp, gm))
    # As differences first, which are exactly 0 where epsilon is.
    second = jnp.asarray(gamma, wide.dtype) * ((gp - wide) + (gm - wide))
    first = jnp.asarray(beta, wide.dtype) * (gp - gm)
    return (gp + second + first).astype(g.dtype)

  return stateless(lambda g, at: jax.tree.map(combine, g, at(1), at(-1)))


@validation.method()
def cr_sam(
  rho: optax.ScalarOrSchedule = 0.1,
  *,
  gamma: float = 0.1,
  beta: float = 0.01,
  mask: Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""Curvature regularized SAM (CR-SAM): adds differences of gradients.

  .. math::
    \epsilon &= \rho\, g / (\|g\| + 10^{-12}), \quad g = \nabla L(w) \\
    g_\pm &= \nabla L(w \pm \epsilon) \\
    u &= g_+ + \gamma\, (g_+ + g_- - 2 g) + \beta\, (g_+ - g_-)

  To lowest order, the last bracket is :math:`2 H \epsilon`, with the Hessian
  :math:`H`, and the first one is the change of :math:`H \epsilon` along
  :math:`\epsilon`.

  Args:
    rho: radius, at least 0, or a schedule of it. All defaults are the authors'.
    gamma, beta: weights of the differences, at least 0; with both 0 it is SAM.
      `beta` is 0.01 in the authors' run, 0.1 in their class.
    mask, axis_name, sync_ascent: see `optax_sam.sharpness_aware`.

  Returns:
    A gradient transformation to place first in `optax.chain`, whose `update`
    needs `value_fn` or `grad_fn`; stateless. It costs 3 gradients.

  .. note:: This is the rule of the authors' code. Unverified: how it follows
    from the normalized trace of the Hessian, which the paper regularizes.

  References:
    Wu, Luo, Wunsch, `CR-SAM: Curvature Regularized Sharpness-Aware Minimization
    <https://arxiv.org/abs/2312.13555>`_, AAAI 2024.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.cr_sam(rho=1.0, gamma=0.5, beta=0.1)
  >>> loss, w = lambda w: w**3, jnp.float32(3.0)
  >>> u, _ = tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)
  >>> round(float(u), 3)  # 48 + 0.5 * (48 + 12 - 2 * 27) + 0.1 * (48 - 12)
  54.6
  """
  descent = regularize_curvature(gamma, beta)
  choices = Choices(scale_to_radius(rho), descent=descent)
  return compose(choices, mask, axis_name, sync_ascent)
