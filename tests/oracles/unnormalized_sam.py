"""Unnormalized SAM."""

import numpy as np

import optax_sam
from tests.oracles.cases import cases
from tests.oracles.step import norm


def unnormalized_sam(step, rho, *, clip=False):
  g = step.ascent()
  return step.gradients(rho * g / (np.maximum(norm(g), 1) if clip else 1))


CASES = cases(
  optax_sam.unnormalized_sam, unnormalized_sam, {'rho': 0.1}, {'clip': True}
)
