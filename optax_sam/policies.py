"""Policies: does this step compute the perturbed gradient?"""

from optax_sam.engine.policy import (
  AfterState,
  EveryState,
  Policy,
  after,
  always,
  between,
  every,
)
from optax_sam.methods.ae_sam import SharpGradientsState, on_sharp_gradients
from optax_sam.methods.ss_sam import BernoulliState, bernoulli

__all__ = [
  'AfterState',
  'BernoulliState',
  'EveryState',
  'Policy',
  'SharpGradientsState',
  'after',
  'always',
  'bernoulli',
  'between',
  'every',
  'on_sharp_gradients',
]
