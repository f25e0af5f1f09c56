"""Sharpness-aware minimization for Optax: exact, composable, fast."""

from optax_sam import descents, perturbations, policies, selections
from optax_sam.averaging.swa import averaged_params, swa
from optax_sam.averaging.swad import swad
from optax_sam.convolution import conv_general_dilated
from optax_sam.losses import (
  MesaLoss,
  MesaState,
  SafLoss,
  SafState,
  mesa_loss,
  saf_loss,
)
from optax_sam.masking import norm_layers_only
from optax_sam.methods.both_gradients import gradient_norm_penalty, gsam, wsam
from optax_sam.methods.curvature import cr_sam, eigen_sam
from optax_sam.methods.earlier_gradients import async_sam, momentum_sam
from optax_sam.methods.every_step import asam, friendly_sam, sam
from optax_sam.methods.other_lengths import (
  fisher_sam,
  le_sam,
  unnormalized_sam,
)
from optax_sam.methods.parts_of_batch import m_sam, subset_sam
from optax_sam.methods.random_points import frob_sam
from optax_sam.methods.reused_steps import (
  ae_look_sam,
  look_layer_sam,
  look_sam,
)
from optax_sam.methods.smoothed_loss import lpf_sgd
from optax_sam.methods.some_entries import (
  sparse_sam_dynamic,
  sparse_sam_fisher,
  z_sharp,
)
from optax_sam.methods.some_examples import esam, k_sam, ordered_sgd
from optax_sam.methods.some_steps import ae_sam, ss_sam
from optax_sam.metrics import metrics
from optax_sam.noise import anti_pgd, without_noise
from optax_sam.schedules import rho_like_learning_rate
from optax_sam.sharpness_aware import sharpness_aware
from optax_sam.step import SharpnessAwareInfo, SharpnessAwareState
from optax_sam.wrappers.bayes import b_sam
from optax_sam.wrappers.decoupled import wsam_decoupled
from optax_sam.wrappers.entropy import entropy_sgd, outer_params
from optax_sam.wrappers.lookbehind import lookbehind
from optax_sam.wrappers.sampa import sampa

__version__ = '0.1.0'

__all__ = [
  'MesaLoss',
  'MesaState',
  'SafLoss',
  'SafState',
  'SharpnessAwareInfo',
  'SharpnessAwareState',
  'ae_look_sam',
  'ae_sam',
  'anti_pgd',
  'asam',
  'async_sam',
  'averaged_params',
  'b_sam',
  'conv_general_dilated',
  'cr_sam',
  'descents',
  'eigen_sam',
  'entropy_sgd',
  'esam',
  'fisher_sam',
  'friendly_sam',
  'frob_sam',
  'gradient_norm_penalty',
  'gsam',
  'k_sam',
  'le_sam',
  'look_layer_sam',
  'look_sam',
  'lookbehind',
  'lpf_sgd',
  'm_sam',
  'mesa_loss',
  'metrics',
  'momentum_sam',
  'norm_layers_only',
  'ordered_sgd',
  'outer_params',
  'perturbations',
  'policies',
  'rho_like_learning_rate',
  'saf_loss',
  'sam',
  'sampa',
  'selections',
  'sharpness_aware',
  'sparse_sam_dynamic',
  'sparse_sam_fisher',
  'ss_sam',
  'subset_sam',
  'swa',
  'swad',
  'unnormalized_sam',
  'without_noise',
  'wsam',
  'wsam_decoupled',
  'z_sharp',
]
