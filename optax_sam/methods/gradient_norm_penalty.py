"""Gradient norm penalty (GNP): mixes the gradient with SAM's."""

from typing import Any

import optax

from optax_sam import validation
from optax_sam.engine.descent import mix
from optax_sam.engine.perturbation import scale_to_radius
from optax_sam.engine.sharpness_aware import Choices, Mask, compose


@validation.method()
def gradient_norm_penalty(
  rho: optax.ScalarOrSchedule = 0.1,
  *,
  alpha: float = 0.8,
  normalize_clean: bool = False,
  mask: Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""Gradient norm penalty (GNP), by a finite difference.

  .. math::
    \epsilon &= \rho\, g / (\|g\| + 10^{-12}), \quad g = \nabla L(w) \\
    u &= g + \alpha\, (\tilde g - g), \quad \tilde g = \nabla L(w + \epsilon)

  To first order, `u` is the gradient of :math:`L + \alpha \rho \|\nabla L\|`.

  Args:
    rho: radius, at least 0, or a schedule; the authors' 0.1, 0.05 on ImageNet.
    alpha: in [0, 1]; 0 is the base optimizer, 1 is SAM, 0.8 the authors' value.
    normalize_clean: mixes :math:`(1 - \alpha)\, g / \|g\| + \alpha \tilde g`.
    mask, axis_name, sync_ascent: see `optax_sam.sharpness_aware`.

  Returns:
    A gradient transformation to place first in `optax.chain`, whose `update`
    needs `value_fn` or `grad_fn`; stateless. It costs 2 gradients.

  .. note:: The authors' released configuration has `normalize_clean=True`,
    contrary to their README. The penalty can harm Adam in the warm-up (arXiv
    2406.09723): use a schedule of `rho` that starts at 0.

  References:
    Zhao et al., `Penalizing Gradient Norm for Efficiently Improving
    Generalization in Deep Learning
    <https://arxiv.org/abs/2202.03599>`_, ICML 2022.

  >>> import jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.gradient_norm_penalty(rho=0.5, alpha=0.5)
  >>> w = jnp.array([3.0, 4.0])
  >>> u, _ = tx.update(w, tx.init(w), w, grad_fn=lambda w: w)
  >>> [round(x, 3) for x in u.tolist()]  # half of the way to SAM's 3.3, 4.4
  [3.15, 4.2]
  """
  validation.check_number('alpha', alpha, at_least=0, at_most=1)
  descent = mix(alpha, normalize_clean=normalize_clean)
  choices = Choices(scale_to_radius(rho), descent=descent)
  return compose(choices, mask, axis_name, sync_ascent)
