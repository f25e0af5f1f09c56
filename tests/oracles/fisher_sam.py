"""Fisher SAM."""

import numpy as np

import optax_sam
from tests.oracles.cases import cases
from tests.oracles.step import dot


def fisher_sam(step, rho=0.1, eta=1.0):
  g = step.ascent()
  natural = g / (1 + eta * g**2)
  return step.gradients(rho * natural / np.sqrt(dot(g, natural)))


CASES = cases(optax_sam.fisher_sam, fisher_sam, {'rho': 0.1}, {'eta': 0.3})
