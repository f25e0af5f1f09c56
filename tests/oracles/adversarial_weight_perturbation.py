"""Adversarial weight perturbation."""

import numpy as np

import optax_sam
from tests.oracles.cases import cases, rising
from tests.oracles.step import norm


def adversarial_weight_perturbation(step, gamma=0.01):
  g, gamma = step.ascent(), step.number(gamma)
  epsilon = np.zeros_like(g)
  for name, leaf in step.problem.slices.items():
    part = g[:, leaf]
    if len(step.problem.shapes[name]) > 1 and part.any():
      epsilon[:, leaf] = gamma * norm(step.w[leaf]) * part / norm(part)
  return step.gradients(epsilon)


CASES = cases(
  optax_sam.adversarial_weight_perturbation,
  adversarial_weight_perturbation,
  {'gamma': 0.1},
  {'gamma': rising(0.05, 0.01)},
)
