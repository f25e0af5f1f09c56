"""K-SAM."""

import optax_sam
from tests.oracles.cases import cases
from tests.oracles.step import count, largest, of_length


def top(step, size):
  return [largest(x, count(size, len(x))) for x in step.losses()]


def k_sam(step, rho=0.05, *, ascent, descent):
  epsilon = of_length(rho, step.ascent(rows=top(step, ascent)))
  return step.gradients(epsilon, top(step, descent))


CASES = cases(optax_sam.k_sam, k_sam, {'rho': 0.1, 'ascent': 2, 'descent': 0.5})
