"""MSAM."""

import numpy as np

import optax_sam
from tests.oracles.cases import cases
from tests.oracles.step import of_length


def momentum_sam(step, rho=3.0, decay=0.9):
  v = step.memory.get('momentum', np.zeros((1, len(step.w))))
  gp = step.gradients(-of_length(rho, v))
  step.memory['momentum'] = decay * v + gp.mean(axis=0)
  return gp


CASES = cases(
  optax_sam.momentum_sam, momentum_sam, {'rho': 0.1}, {'decay': 0.5}
)
