"""K-SAM: both gradients are over the examples with the largest losses."""

from typing import Any

import optax

from optax_sam import validation
from optax_sam.engine.perturbation import scale_to_radius
from optax_sam.engine.selection import check_size, top_k
from optax_sam.engine.sharpness_aware import Choices, Mask, compose


@validation.method('ascent', 'descent')
def k_sam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  ascent: float,
  descent: float,
  mask: Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""K-SAM: both gradients are over the examples with the largest losses.

  .. math::
    g_1 &= \text{mean of } \nabla \ell_i(w) \text{ over } Q_1 \\
    \epsilon &= \rho\, g_1 / (\|g_1\| + 10^{-12}) \\
    \tilde g &= \text{mean of } \nabla \ell_i(w + \epsilon) \text{ over } Q_2

  :math:`Q_1` and :math:`Q_2` have the `ascent` and the `descent` examples with
  the largest losses :math:`\ell_i(w)`. Losses that are not finite rank last,
  and equal losses by position. So shuffle the data: a network that fits them
  has nearly equal losses. Padding must have a loss of 0. The incoming gradient
  is unused: in a jitted step XLA drops its backward pass, and the forward pass
  gives the losses to rank by.

  Args:
    rho: radius, at least 0, or a schedule of it by the step; 0.05 is SAM's.
    ascent: size of Q1: a number of examples if an int of at least 1, a
      fraction of the batch in (0, 1] if a float. 1 is one example, 1.0 all.
    descent: size of Q2, like `ascent`. With a third for each, a step costs as
      much as one of SGD.
    mask, axis_name, sync_ascent: see `optax_sam.sharpness_aware`. Each
      device ranks its own examples; under jit the ranking is global.

  Returns:
    A gradient transformation to place first in `optax.chain`, whose `update`
    needs `per_example_value_fn` and `batch`; stateless. It costs 1 / 3 +
    `ascent` + `descent` gradients, with sizes as fractions.

  .. warning:: Mislabelled examples dominate both gradients. Losses that depend
    on other examples differ in each set: with normalized advantages,
    contrastive terms or batch norm, which needs more than one example. So does
    noise drawn by row. No code is public, and the paper's sizes could not be
    read. Unverified: the mean, not the sum. In the paper, random subsets were
    harmful.

  References:
    Ni et al., `K-SAM: Sharpness-Aware Minimization at the Speed of SGD
    <https://arxiv.org/abs/2210.12864>`_, 2022.

  >>> import jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.k_sam(rho=0.5, ascent=1, descent=2)
  >>> f = lambda w, x: jnp.square(w - x)
  >>> w, x = jnp.float32(0.0), jnp.array([1.0, -3.0, 2.0])
  >>> u, _ = tx.update(w, tx.init(w), w, per_example_value_fn=f, batch=x)
  >>> float(u)  # the mean of 2 * (0.5 + 3) and 2 * (0.5 - 2)
  2.0
  """
  check_size('ascent', ascent)
  choices = Choices(scale_to_radius(rho), selection=top_k(ascent, descent))
  return compose(choices, mask, axis_name, sync_ascent)
