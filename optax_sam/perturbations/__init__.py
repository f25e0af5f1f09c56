"""Perturbations: from the ascent gradient to the perturbation epsilon.

Each is an ordinary `optax.GradientTransformationExtraArgs`, so pieces join
with `optax.chain`. `optax_sam.sharpness_aware` calls `update` with the ascent
gradient, with the parameters that may be perturbed, and with these extra
arguments: `axis_name` (what a piece stores must be averaged over it),
`is_synced` (whether the ascent gradient was averaged already),
`ascent_grad_fn` (from a perturbation to the ascent gradient there) and
`objective` (the loss of the batch as a function of these parameters). What
comes out has the shapes and dtypes of the ascent gradient; inside, a piece
computes in float32, or in float64 for leaves in float64.
"""

from optax_sam.perturbations.earlier import DelayState, delay
from optax_sam.perturbations.eigenvector import (
  EigenvectorState,
  scale_toward_eigenvector,
)
from optax_sam.perturbations.fisher import TopFisherState, keep_top_fisher
from optax_sam.perturbations.noise import SubtractEmaState, subtract_ema
from optax_sam.perturbations.other_lengths import (
  scale_by_trust_ratio_radius,
  scale_to_adaptive_radius,
  scale_to_fisher_radius,
)
from optax_sam.perturbations.outliers import (
  keep_outliers,
  scale_outliers_to_radius,
)
from optax_sam.perturbations.radius import (
  ascend_repeatedly,
  scale_by_radius,
  scale_to_loss_rise,
  scale_to_radius,
)
from optax_sam.perturbations.random import (
  RandomState,
  keep_random_entries,
  keep_random_tensors,
)
from optax_sam.perturbations.scheduled import RadiusState
from optax_sam.perturbations.sparse import (
  DynamicState,
  keep_dynamic,
  keep_n_of_m,
)

__all__ = [
  'DelayState',
  'DynamicState',
  'EigenvectorState',
  'RadiusState',
  'RandomState',
  'SubtractEmaState',
  'TopFisherState',
  'ascend_repeatedly',
  'delay',
  'keep_dynamic',
  'keep_n_of_m',
  'keep_outliers',
  'keep_random_entries',
  'keep_random_tensors',
  'keep_top_fisher',
  'scale_by_radius',
  'scale_by_trust_ratio_radius',
  'scale_outliers_to_radius',
  'scale_to_adaptive_radius',
  'scale_to_fisher_radius',
  'scale_to_loss_rise',
  'scale_to_radius',
  'scale_toward_eigenvector',
  'subtract_ema',
]
