"""LE-SAM."""

import numpy as np

import optax_sam
from tests.oracles.cases import cases
from tests.oracles.step import norm, of_length


def le_sam(step, sigma=0.35, rho_max=0.5):
  g = step.ascent()
  return step.gradients(of_length(np.minimum(sigma / norm(g), rho_max), g))


CASES = cases(optax_sam.le_sam, le_sam, {'sigma': 0.1}, {'rho_max': 0.08})
