"""ZSharp."""

import numpy as np

import optax_sam
from tests.oracles.cases import cases
from tests.oracles.step import of_length


def outliers(leaf, shape, quantile):
  """Zeroes all but the outliers of a leaf with two axes or more, by sorting."""
  if len(shape) < 2:
    return leaf
  centred = leaf - leaf.mean(axis=-1, keepdims=True)
  z = np.abs(centred / (leaf.std(axis=-1, ddof=1, keepdims=True) + 1e-12))
  return leaf * (z > np.quantile(z, quantile, axis=-1, keepdims=True))


def z_sharp(step, rho=0.05, quantile=0.95, radius='global'):
  g, kept = step.ascent(), np.zeros((len(step.parts), len(step.w)))
  slices, shapes = step.problem.slices, step.problem.shapes
  for name, leaf in slices.items():
    kept[:, leaf] = outliers(g[:, leaf], shapes[name], quantile)
  if radius == 'global':
    return step.gradients(of_length(rho, kept))
  epsilon = of_length(rho, g)
  for name, leaf in slices.items():
    if len(shapes[name]) > 1:
      epsilon[:, leaf] = of_length(rho, kept[:, leaf])
  return step.gradients(epsilon)


CASES = cases(
  optax_sam.z_sharp,
  z_sharp,
  {'rho': 0.1, 'quantile': 0.5},
  {'quantile': 0.8, 'radius': 'per_tensor'},
)
