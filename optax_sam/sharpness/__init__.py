"""Measures of sharpness: the rise of the loss nearby, and its curvature.

Use evaluation mode, fixed data without augmentation, and float32 or wider.
"""

from optax_sam.sharpness.adaptive import (
  adaptive_sharpness,
  average_adaptive_sharpness,
)
from optax_sam.sharpness.eigenvalues import top_eigenvalue, top_eigenvalues
from optax_sam.sharpness.neighborhood import epsilon_sharpness, sam_sharpness
from optax_sam.sharpness.rounding import round_weights, rounding_rise
from optax_sam.sharpness.spectrum import (
  Density,
  Estimate,
  hessian_trace,
  spectral_density,
)

__all__ = [
  'Density',
  'Estimate',
  'adaptive_sharpness',
  'average_adaptive_sharpness',
  'epsilon_sharpness',
  'hessian_trace',
  'round_weights',
  'rounding_rise',
  'sam_sharpness',
  'spectral_density',
  'top_eigenvalue',
  'top_eigenvalues',
]
