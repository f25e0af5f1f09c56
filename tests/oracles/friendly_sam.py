"""Friendly SAM."""

import numpy as np

import optax_sam
from tests.oracles.cases import cases
from tests.oracles.step import of_length, rounded


def noise(step, g, decay=0.9, sigma=1.0, order='paper', dtype=None):
  """Subtracts the average over the gradients of all devices."""
  before = step.memory.get('ema', np.zeros(len(step.w)))
  after = decay * before + (1 - decay) * g.mean(axis=0)
  if order == 'official' and not step.t:
    after = g.mean(axis=0)
  step.memory['ema'] = rounded(after, dtype)
  return g - sigma * (after if order == 'paper' else before)


def friendly_sam(
  step, rho=0.05, sigma=1.0, decay=0.9, order='paper', accumulator_dtype=None
):
  d = noise(step, step.ascent(), decay, sigma, order, accumulator_dtype)
  return step.gradients(of_length(rho, d))


CASES = cases(
  optax_sam.friendly_sam,
  friendly_sam,
  {'rho': 0.1},
  {'order': 'official'},
  {'sigma': 0.5, 'decay': 0.6},
  {'sigma': 0.5, 'order': 'official'},
  rounded=[{'accumulator_dtype': 'bfloat16'}],
)
