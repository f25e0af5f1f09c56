"""ESAM."""

import optax_sam
from tests.oracles.cases import cases
from tests.oracles.step import count, largest, of_length


def esam(step, rho=0.05, beta=0.6, gamma=0.5, *, key):
  kept = step.coins_of_leaves(beta, key, step.t)
  epsilon = of_length(rho / beta, kept * step.ascent())
  before, after = step.losses(), step.losses(epsilon)
  rows = [
    largest(y - x, count(gamma, len(x)))
    for x, y in zip(before, after, strict=True)
  ]
  return step.gradients(epsilon, rows)


CASES = cases(optax_sam.esam, esam, {'rho': 0.1, 'key': 1}, {'gamma': 3})
