"""m-SAM."""

import numpy as np

import optax_sam
from tests.oracles.cases import cases
from tests.oracles.step import of_length


def m_sam(step, rho=0.05, *, micro_batch_size):
  rows = np.arange(len(step.parts[0]['y']))
  total = 0.0
  for start in range(0, len(rows), micro_batch_size):
    part = [rows[start : start + micro_batch_size]] * len(step.parts)
    perturbed = step.gradients(of_length(rho, step.ascent(rows=part)), part)
    total = total + len(part[0]) / len(rows) * perturbed
  return total


CASES = cases(
  optax_sam.m_sam,
  m_sam,
  {'rho': 0.1, 'micro_batch_size': 3},
  {'micro_batch_size': 4},
)
