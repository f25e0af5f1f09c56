"""Adversarial weight perturbation: SAM with a radius for each layer."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine.sharpness_aware import Choices, Mask, compose
from optax_sam.methods.look_sam import scale_by_trust_ratio_radius


@validation.method()
def adversarial_weight_perturbation(
  gamma: optax.ScalarOrSchedule = 0.01,
  *,
  mask: Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""Adversarial weight perturbation (AWP): a radius relative to each layer.

  .. math::
    \epsilon_l &= \gamma \|w_l\|\, g_l / \|g_l\|
      \text{ for each leaf } l \text{ with two axes or more, else } 0 \\
    \tilde g &= \nabla L(w + \epsilon)

  If :math:`w_l` or :math:`g_l` is 0, :math:`\epsilon_l = 0`. A factor on the
  loss does not change :math:`\epsilon`. In adversarial training let `value_fn`
  be the loss of adversarial examples, computed at the unperturbed parameters.

  Args:
    gamma: length of the perturbation over that of the leaf, at least 0, or a
      schedule; the authors use 0.01, and with TRADES 0 for 10 epochs, then
      0.005.
    mask, axis_name, sync_ascent: see `optax_sam.sharpness_aware`.

  Returns:
    A gradient transformation to place first in `optax.chain`, whose `update`
    needs `value_fn` or `grad_fn`; stateless. It costs 2 gradients.

  .. note:: In the authors' code the perturbed pass does not update the running
    statistics of batch norm, only leaves named "weight" are perturbed, and
    weight decay uses the perturbed weights.

  References:
    Wu, Xia, Wang, `Adversarial Weight Perturbation Helps Robust Generalization
    <https://arxiv.org/abs/2004.05884>`_, NeurIPS 2020.

  >>> import jax.numpy as jnp, optax_sam
  >>> w = {'kernel': jnp.array([[3.0, 4.0]]), 'bias': jnp.ones(2)}
  >>> g = {'kernel': jnp.array([[0.0, 8.0]]), 'bias': jnp.ones(2)}
  >>> tx = optax_sam.adversarial_weight_perturbation(0.1)
  >>> u, _ = tx.update(g, tx.init(w), w, grad_fn=lambda w: w)
  >>> u['kernel'].tolist(), u['bias'].tolist()  # 0.1 of the norm 5
  ([[3.0, 4.5]], [1.0, 1.0])
  """
  validation.check_radius(gamma, 'gamma')
  matrix = lambda g: g if g.ndim > 1 else jnp.zeros_like(g)
  only_matrices = optax.stateless(lambda g, _: jax.tree.map(matrix, g))
  radius = scale_by_trust_ratio_radius(gamma, rule='relative')
  perturbation = optax.chain(only_matrices, radius)
  return compose(Choices(perturbation), mask, axis_name, sync_ascent)
