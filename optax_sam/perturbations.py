"""Perturbations: from the ascent gradient to the perturbation epsilon."""

from optax_sam.engine.perturbation import (
  RadiusState,
  RandomState,
  keep_random_tensors,
  scale_to_radius,
)
from optax_sam.methods.asam import scale_to_adaptive_radius
from optax_sam.methods.async_sam import DelayState, delay
from optax_sam.methods.eigen_sam import (
  EigenvectorState,
  scale_toward_eigenvector,
)
from optax_sam.methods.fisher_sam import scale_to_fisher_radius
from optax_sam.methods.friendly_sam import SubtractEmaState, subtract_ema
from optax_sam.methods.le_sam import scale_to_loss_rise
from optax_sam.methods.look_sam import scale_by_trust_ratio_radius
from optax_sam.methods.sam import ascend_repeatedly
from optax_sam.methods.sparse_sam_dynamic import DynamicState, keep_dynamic
from optax_sam.methods.sparse_sam_fisher import (
  TopFisherState,
  keep_n_of_m,
  keep_top_fisher,
)
from optax_sam.methods.unnormalized_sam import scale_by_radius
from optax_sam.methods.vasso import AverageGradientState, average_gradient
from optax_sam.methods.z_sharp import keep_outliers, scale_outliers_to_radius

__all__ = [
  'AverageGradientState',
  'DelayState',
  'DynamicState',
  'EigenvectorState',
  'RadiusState',
  'RandomState',
  'SubtractEmaState',
  'TopFisherState',
  'ascend_repeatedly',
  'average_gradient',
  'delay',
  'keep_dynamic',
  'keep_n_of_m',
  'keep_outliers',
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
