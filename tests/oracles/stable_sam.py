"""StableSAM."""

import optax_sam
from tests.oracles.cases import cases, rising
from tests.oracles.step import norm, of_length


def stable_sam(step, rho=0.05):
  ascent = step.ascent()
  clean = step.shared(step.gradients())
  gp = step.shared(step.gradients(of_length(step.number(rho), ascent)))
  return of_length(norm(clean), gp)


CASES = cases(
  optax_sam.stable_sam, stable_sam, {'rho': 0.1}, {'rho': rising(0.05, 0.01)}
)
