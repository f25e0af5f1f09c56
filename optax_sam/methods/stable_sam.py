"""StableSAM: SAM's direction with the length of the unperturbed gradient."""

from typing import Any

import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine.descent import At, Descent, stateless
from optax_sam.engine.perturbation import scale_to_radius
from optax_sam.engine.sharpness_aware import Choices, Mask, compose
from optax_sam.trees import tree_math


def clean_length() -> Descent:
  """Scales the perturbed gradient to the norm of g: `optax_sam.stable_sam`."""

  def combine(clean: optax.Updates, at: At) -> optax.Updates:
    perturbed = at(1)
    size = tree_math.norm(perturbed)
    scaled = tree_math.scale_to(tree_math.norm(clean), perturbed, size)
    return tree_math.nan_unless(jnp.isfinite(size), scaled)

  return stateless(combine)


@validation.method()
def stable_sam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  mask: Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""StableSAM: SAM's direction with the length of the unperturbed gradient.

  SAM's gradient may grow near a saddle or with a large learning rate. StableSAM
  changes the direction of the step only.

  .. math::
    \epsilon &= \rho\, g / (\|g\| + 10^{-12}), \quad g = \nabla L(w) \\
    \tilde g &= \nabla L(w + \epsilon) \\
    u &= \|g\|\, \tilde g / (\|\tilde g\| + 10^{-12})

  The norms are over all leaves, also those that `mask` excludes. For another
  perturbation write `sharpness_aware(..., descent=descents.clean_length())`.

  Args:
    rho: radius, at least 0, or a schedule of it; 0.05 is of the authors' class.
    mask, axis_name, sync_ascent: see `optax_sam.sharpness_aware`. By default
      each device scales its own gradients.

  Returns:
    A gradient transformation to place first in `optax.chain`, whose `update`
    needs `value_fn` or `grad_fn`; stateless. It costs 2 gradients.

  .. note:: The rule is that of the authors' code, where a limit of 1 on the
    factor is commented out. The paper also calls it SSAM, the name of Sparse
    SAM.

  References:
    Tan et al., `Stabilizing Sharpness-Aware Minimization Through a Simple
    Renormalization Strategy <https://arxiv.org/abs/2401.07250>`_, JMLR 2025.

  >>> import jax.numpy as jnp, optax_sam
  >>> tx, w = optax_sam.stable_sam(rho=0.5), jnp.zeros(2)
  >>> g, grad_fn = jnp.array([3.0, 4.0]), lambda _: jnp.array([0.0, 2.0])
  >>> u, _ = tx.update(g, tx.init(w), w, grad_fn=grad_fn)
  >>> [round(x, 3) for x in u.tolist()]
  [0.0, 5.0]
  """
  choices = Choices(scale_to_radius(rho), descent=clean_length())
  return compose(choices, mask, axis_name, sync_ascent)
