"""ASAM."""

import numpy as np

import optax_sam
from tests.oracles.cases import cases
from tests.oracles.step import norm

_UNSCALED = ('bias', 'offset', 'fc.bias')


def asam(step, rho=0.5, eta=0.01, scaled=None):
  scale = np.abs(step.w) + eta
  for name, leaf in step.problem.slices.items():
    if not scaled and (name in _UNSCALED or scaled is False):
      scale[leaf] = 1
  g = step.ascent()
  return step.gradients(rho * scale**2 * g / norm(scale * g))


CASES = cases(optax_sam.asam, asam, {'rho': 0.1}, {'eta': 0.3, 'scaled': True})
