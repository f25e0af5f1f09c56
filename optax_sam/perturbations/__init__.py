"""Perturbations: from the ascent gradient to the perturbation epsilon.

Each is an ordinary `optax.GradientTransformationExtraArgs`, so pieces join
with `optax.chain`. `optax_sam.sharpness_aware` calls `update` with the ascent
gradient, with the parameters that may be perturbed, and with these extra
arguments: `axis_name` (what a piece stores must be averaged over it) and
`ascent_grad_fn` (from a perturbation to the ascent gradient there).
"""

from optax_sam.perturbations.noise import SubtractEmaState, subtract_ema
from optax_sam.perturbations.radius import (
  RadiusState,
  ascend_repeatedly,
  scale_to_adaptive_radius,
  scale_to_radius,
)

__all__ = [
  'RadiusState',
  'SubtractEmaState',
  'ascend_repeatedly',
  'scale_to_adaptive_radius',
  'scale_to_radius',
  'subtract_ema',
]
