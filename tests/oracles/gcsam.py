"""GCSAM."""

import numpy as np

import optax_sam
from tests.oracles.cases import cases
from tests.oracles.step import norm, of_length


def centralized(step, rows):
  """Subtracts the mean over the inputs of every output, the last axis."""
  found = np.array(rows, np.float64)
  for name, leaf in step.problem.slices.items():
    shape = step.problem.shapes[name]
    if len(shape) > 1:
      by_unit = found[:, leaf].reshape(len(found), -1, shape[-1])
      less = by_unit - by_unit.mean(axis=1, keepdims=True)
      found[:, leaf] = less.reshape(len(found), -1)
  return found


def gcsam(step, rho=0.05, order='paper'):
  g = step.ascent()
  if order == 'official':
    return step.gradients(rho * centralized(step, g) / norm(g))
  gp = step.gradients(of_length(rho, centralized(step, g)))
  return centralized(step, gp)


CASES = cases(optax_sam.gcsam, gcsam, {'rho': 0.1}, {'order': 'official'})
