"""Combination rules: from the gradients to the update direction."""

from optax_sam.engine.descent import (
  Descent,
  add_change,
  mix,
  perturbed_gradient,
)
from optax_sam.methods.cr_sam import regularize_curvature
from optax_sam.methods.gsam import surrogate_gap
from optax_sam.methods.look_sam import ReuseOrthogonalState, reuse_orthogonal
from optax_sam.methods.stable_sam import clean_length

__all__ = [
  'Descent',
  'ReuseOrthogonalState',
  'add_change',
  'clean_length',
  'mix',
  'perturbed_gradient',
  'regularize_curvature',
  'reuse_orthogonal',
  'surrogate_gap',
]
