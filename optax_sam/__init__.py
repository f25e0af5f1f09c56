"""Sharpness-aware minimization for Optax: exact, composable, fast."""

from optax_sam import descents, perturbations, policies, selections
from optax_sam.masking import norm_layers_only
from optax_sam.methods.every_step import asam, friendly_sam, sam
from optax_sam.methods.parts_of_batch import subset_sam
from optax_sam.methods.reused_steps import ae_look_sam, look_sam
from optax_sam.methods.some_examples import k_sam
from optax_sam.methods.some_steps import ae_sam, ss_sam
from optax_sam.metrics import metrics
from optax_sam.sharpness_aware import sharpness_aware
from optax_sam.step import SharpnessAwareInfo, SharpnessAwareState

__version__ = '0.1.0'

__all__ = [
  'SharpnessAwareInfo',
  'SharpnessAwareState',
  'ae_look_sam',
  'ae_sam',
  'asam',
  'descents',
  'friendly_sam',
  'k_sam',
  'look_sam',
  'metrics',
  'norm_layers_only',
  'perturbations',
  'policies',
  'sam',
  'selections',
  'sharpness_aware',
  'ss_sam',
  'subset_sam',
]
