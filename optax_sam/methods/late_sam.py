"""Late-phase SAM: SAM in the last part of the training."""

import warnings
from typing import Any

import optax

from optax_sam import validation
from optax_sam.engine.perturbation import scale_to_radius
from optax_sam.engine.policy import between
from optax_sam.engine.sharpness_aware import Choices, Mask, compose


@validation.method()
def late_sam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  start: int,
  end: int | None = None,
  total_steps: int | None = None,
  mask: Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""Late-phase SAM: SAM from a step on, the base optimizer before.

  .. math::
    u &= \nabla L(w + \epsilon) \text{ if start} \le t < \text{end, else } g \\
    \epsilon &= \rho\, g / (\|g\| + 10^{-12}), \quad g = \nabla L(w)

  SAM selects flat minima late, so few epochs at the end give most of its gain.

  Args:
    rho: radius, at least 0, or a schedule counted from step 0; 0.05 is SAM's.
    start: first step of SAM, from 0; compute it from the steps that will run.
    end: step after the last one of SAM; None is the end of the training.
    total_steps: steps of the training, if known; a later `start` warns.
    mask, axis_name, sync_ascent: see `optax_sam.sharpness_aware`.

  Returns:
    A gradient transformation to place first in `optax.chain`, whose `update`
    needs `value_fn` or `grad_fn`; state: a counter. Cost: 1 gradient or 2.

  .. note:: The authors' code has two optimizers, which do not share their
    momentum, and counts epochs: 150 to 160 of 160 with `rho=2`.

  References:
    Zhou et al., `Sharpness-Aware Minimization Efficiently Selects Flatter
    Minima Late in Training <https://arxiv.org/abs/2410.10373>`_, ICLR 2025.

  >>> import jax.numpy as jnp, optax_sam
  >>> tx, w = optax_sam.late_sam(rho=5.0, start=1), jnp.array([3.0, 4.0])
  >>> state = tx.init(w)
  >>> for _ in range(2):
  ...   u, state = tx.update(w, state, w, grad_fn=lambda w: w)
  ...   print([round(x, 3) for x in u.tolist()])
  [3.0, 4.0]
  [6.0, 8.0]
  """
  if total_steps is not None:
    validation.check_count('total_steps', total_steps)
    known = map(validation.is_python_number, (total_steps, start))
    if all(known) and total_steps <= start:
      warnings.warn(
        f'start={start} is not before the end of the training, '
        f'total_steps={total_steps}: no step is one of SAM.',
        stacklevel=2,
      )
  choices = Choices(scale_to_radius(rho), policy=between(start, end))
  return compose(choices, mask, axis_name, sync_ascent)
