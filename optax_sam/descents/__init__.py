"""Descents: which direction goes on to the base optimizer?

A descent has `init(params)`, `on_ascent(clean, perturbed, state)` for the
steps that took the second gradient, and `on_skip(clean, state)` for the
others, whose direction is the clean gradient unless a descent says otherwise;
both return (direction, new state). A descent with state is given gradients
that are averaged over the devices. Pass one to `optax_sam.sharpness_aware`.
"""

from optax_sam.descents.descent import Descent
from optax_sam.descents.every_step import (
  mix,
  perturbed_gradient,
  regularize_curvature,
  surrogate_gap,
)
from optax_sam.descents.kept import ReuseOrthogonalState, reuse_orthogonal

__all__ = [
  'Descent',
  'ReuseOrthogonalState',
  'mix',
  'perturbed_gradient',
  'regularize_curvature',
  'reuse_orthogonal',
  'surrogate_gap',
]
