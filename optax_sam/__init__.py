"""Sharpness-aware minimization for Optax: exact, composable, fast."""

import importlib
from typing import Any

from optax_sam import descents, perturbations, policies, selections
from optax_sam.alternation import (
  AlternatingState,
  alternating,
  unperturbed_params,
)
from optax_sam.chain_order import check
from optax_sam.convolution import conv_general_dilated
from optax_sam.engine.extra_arguments import hide_arguments
from optax_sam.engine.info import (
  SharpnessAwareInfo,
  SharpnessAwareState,
  metrics,
)
from optax_sam.engine.partition import norm_layers_only
from optax_sam.engine.sharpness_aware import sharpness_aware
from optax_sam.engine.trainable import trainable
from optax_sam.functional import functional_grad_fn
from optax_sam.methods.adversarial_weight_perturbation import (
  adversarial_weight_perturbation,
)
from optax_sam.methods.ae_sam import ae_look_sam, ae_sam
from optax_sam.methods.anti_pgd import anti_pgd, without_noise
from optax_sam.methods.asam import asam
from optax_sam.methods.async_sam import async_sam
from optax_sam.methods.b_sam import b_sam
from optax_sam.methods.cr_sam import cr_sam
from optax_sam.methods.eigen_sam import eigen_sam
from optax_sam.methods.entropy_sgd import entropy_sgd, outer_params
from optax_sam.methods.esam import esam
from optax_sam.methods.fisher_sam import fisher_sam
from optax_sam.methods.friendly_sam import friendly_sam
from optax_sam.methods.frob_sam import frob_sam
from optax_sam.methods.gcsam import gcsam
from optax_sam.methods.gradient_norm_penalty import gradient_norm_penalty
from optax_sam.methods.gsam import gsam, rho_like_learning_rate
from optax_sam.methods.k_sam import k_sam
from optax_sam.methods.late_sam import late_sam
from optax_sam.methods.le_sam import le_sam
from optax_sam.methods.look_sam import look_layer_sam, look_sam
from optax_sam.methods.lookbehind import lookbehind
from optax_sam.methods.lpf_sgd import lpf_sgd
from optax_sam.methods.m_sam import m_sam
from optax_sam.methods.mesa import MesaLoss, MesaState, mesa_loss
from optax_sam.methods.momentum_sam import momentum_sam
from optax_sam.methods.ordered_sgd import ordered_sgd
from optax_sam.methods.saf import SafLoss, SafState, saf_loss
from optax_sam.methods.sagm import sagm
from optax_sam.methods.sam import sam
from optax_sam.methods.sampa import sampa
from optax_sam.methods.sparse_sam_dynamic import sparse_sam_dynamic
from optax_sam.methods.sparse_sam_fisher import sparse_sam_fisher
from optax_sam.methods.sparse_sam_layers import (
  choose_leaves,
  sparse_sam_layers,
)
from optax_sam.methods.ss_sam import ss_sam
from optax_sam.methods.stable_sam import stable_sam
from optax_sam.methods.subset_sam import subset_sam
from optax_sam.methods.swa import averaged_params, swa
from optax_sam.methods.swad import swad
from optax_sam.methods.tsam import tsam
from optax_sam.methods.unnormalized_sam import unnormalized_sam
from optax_sam.methods.vasso import vasso
from optax_sam.methods.wsam import wsam, wsam_decoupled
from optax_sam.methods.z_sharp import z_sharp
from optax_sam.training_step import StepOutput, make_step

__version__ = '0.1.0'

__all__ = [
  'AlternatingState',
  'MesaLoss',
  'MesaState',
  'SafLoss',
  'SafState',
  'SharpnessAwareInfo',
  'SharpnessAwareState',
  'StepOutput',
  'adversarial_weight_perturbation',
  'ae_look_sam',
  'ae_sam',
  'alternating',
  'anti_pgd',
  'asam',
  'async_sam',
  'averaged_params',
  'b_sam',
  'check',
  'choose_leaves',
  'conv_general_dilated',
  'cr_sam',
  'descents',
  'eigen_sam',
  'entropy_sgd',
  'esam',
  'fisher_sam',
  'friendly_sam',
  'frob_sam',
  'functional_grad_fn',
  'gcsam',
  'gradient_norm_penalty',
  'gsam',
  'hide_arguments',
  'k_sam',
  'late_sam',
  'le_sam',
  'look_layer_sam',
  'look_sam',
  'lookbehind',
  'lpf_sgd',
  'm_sam',
  'make_step',
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
  'sagm',
  'sam',
  'sampa',
  'selections',
  'sharpness_aware',
  'sparse_sam_dynamic',
  'sparse_sam_fisher',
  'sparse_sam_layers',
  'ss_sam',
  'stable_sam',
  'subset_sam',
  'swa',
  'swad',
  'trainable',
  'tsam',
  'unnormalized_sam',
  'unperturbed_params',
  'vasso',
  'without_noise',
  'wsam',
  'wsam_decoupled',
  'z_sharp',
]

# Imported at first use, because they need further packages or more time.
_MODULES = ('equinox', 'flax', 'landscape', 'lora', 'sharpness', 'train')


def __getattr__(name: str) -> Any:
  if name in _MODULES:
    return importlib.import_module(f'{__name__}.{name}')
  msg = f'module {__name__!r} has no attribute {name!r}'
  raise AttributeError(msg)
