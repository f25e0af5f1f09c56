"""SAGM."""

import optax_sam
from tests.oracles.cases import cases, rising
from tests.oracles.step import norm


def sagm(step, rho=0.05, alpha=0.001):
  g = step.ascent()
  epsilon = (step.number(rho) / norm(g) - alpha) * g
  return (step.gradients() + step.gradients(epsilon)) / 2


CASES = cases(
  optax_sam.sagm,
  sagm,
  {'rho': 0.1},
  {'alpha': 0.05},
  {'alpha': 0.3, 'rho': rising(0.05, 0.01)},
)
