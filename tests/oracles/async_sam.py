"""AsyncSAM."""

import numpy as np

import optax_sam
from tests.oracles.cases import cases
from tests.oracles.step import of_length


def async_sam(step, rho=0.05):
  last = step.memory.get('last', np.zeros((1, len(step.w))))
  step.memory['last'] = step.gradients().mean(axis=0, keepdims=True)
  return step.gradients(of_length(rho, last))


CASES = cases(optax_sam.async_sam, async_sam, {'rho': 0.1})
