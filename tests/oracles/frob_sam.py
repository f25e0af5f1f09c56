"""Frob-SAM."""

import numpy as np

import optax_sam
from tests.oracles.cases import cases


def frob_sam(step, rho=0.005, penalty=0.005, num_samples=2, key=0):
  values, gradients = [], []
  for sample in range(num_samples):
    z = step.normal(key, step.t, sample)
    means = np.array([[part.mean()] for part in step.losses(rho * z)])
    values.append(step.shared(means))
    gradients.append(step.ascent(rho * z))
  values, gradients = np.array(values), np.array(gradients)
  parts = (values - values.mean(axis=0)) * (gradients - gradients.mean(axis=0))
  total = parts.sum(axis=0) / (num_samples - 1)
  return step.gradients() + penalty / rho**2 * total


CASES = cases(
  optax_sam.frob_sam,
  frob_sam,
  {'rho': 0.1, 'num_samples': 2, 'key': 1},
  {'num_samples': 3},
)
