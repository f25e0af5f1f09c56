"""CR-SAM."""

import optax_sam
from tests.oracles.cases import cases
from tests.oracles.step import of_length


def cr_sam(step, rho=0.1, gamma=0.1, beta=0.01):
  g = step.ascent()
  epsilon = of_length(rho, g)
  gp, gm = step.gradients(epsilon), step.gradients(-epsilon)
  return gp + gamma * (gp + gm - 2 * g) + beta * (gp - gm)


CASES = cases(optax_sam.cr_sam, cr_sam, {'rho': 0.1})
