"""TSAM."""

import numpy as np

import optax_sam
from tests.oracles.cases import cases
from tests.oracles.step import norm, of_length


def tsam(step, rho=0.05, num_perturbations=3, tilt=1.0, noise=20.0, key=0):
  losses, gradients = [], []
  for sample in range(num_perturbations):
    n = step.kept * noise * rho * step.normal(key, step.t, sample)
    n = n * min(1, noise * rho / norm(n)[0])
    point = n + of_length(rho, step.ascent(n))
    means = np.array([[part.mean()] for part in step.losses(point)])
    losses.append(step.shared(means))
    gradients.append(step.gradients(point))
  weights = np.exp(tilt * np.array(losses))
  weights = weights / weights.sum(axis=0)
  return np.sum(weights * np.array(gradients), axis=0)


CASES = cases(
  optax_sam.tsam,
  tsam,
  {'rho': 0.1, 'noise': 2.0, 'key': 1},
  {'num_perturbations': 2, 'tilt': 20.0},
)
