"""m-SAM: perturbs each part of the batch by its own gradient."""

from typing import Any

import optax

from optax_sam import validation
from optax_sam.engine.perturbation import scale_to_radius
from optax_sam.engine.selection import Selection, all_examples
from optax_sam.engine.sharpness_aware import Choices, Mask, compose


def micro_batches(size: int) -> Selection:
  """Perturbs every `size` examples by their own gradient: `optax_sam.m_sam`."""
  validation.check_static_integer('size', size)
  return all_examples()._replace(micro_batch_size=size, needs_examples=True)


@validation.method('micro_batch_size')
def m_sam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  micro_batch_size: int,
  mask: Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""SAM on micro-batches (m-SAM), independent of the number of devices.

  m-SAM perturbs consecutive parts of the batch by their own gradients, like
  `sam` on devices with one part each. Parts run one by one, to save memory.

  .. math::
    \epsilon_k &= \rho\, g / (\|g\| + 10^{-12}), \quad g = \nabla L_k(w) \\
    u &= \text{mean of } \nabla L_k(w + \epsilon_k) \text{ over } k

  :math:`L_k` is the loss of part k, and the mean weights parts by examples. The
  last part may be smaller. Batch norm normalizes each part separately.

  Args:
    rho: radius, at least 0, or a schedule of it by the step; 0.05 is SAM's.
    micro_batch_size: examples of a part, at least 1; the authors use 32 to 128.
    mask, axis_name, sync_ascent: see `optax_sam.sharpness_aware`. Each device
      splits its own examples.

  Returns:
    A gradient transformation to place first in `optax.chain`, whose `update`
    needs `per_example_value_fn` and `batch`; stateless. It costs 2 gradients,
    1 / 3 more if you use the loss at `w`.

  References:
    Foret et al., `Sharpness-Aware Minimization for Efficiently Improving
    Generalization <https://arxiv.org/abs/2010.01412>`_, ICLR 2021.

  >>> import jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.m_sam(rho=0.5, micro_batch_size=1)
  >>> f = lambda w, x: jnp.square(w - x)
  >>> w, x = jnp.float32(0.0), jnp.array([1.0, -3.0])
  >>> u, _ = tx.update(w, tx.init(w), w, per_example_value_fn=f, batch=x)
  >>> float(u)  # the mean of -3 at -0.5 and of 7 at 0.5
  2.0
  """
  validation.check_static_integer('micro_batch_size', micro_batch_size)
  selection = micro_batches(micro_batch_size)
  choices = Choices(scale_to_radius(rho), selection=selection)
  return compose(choices, mask, axis_name, sync_ascent)
