"""Late-phase SAM."""

import optax_sam
from tests.oracles.cases import cases, rising
from tests.oracles.step import of_length


def late_sam(step, rho=0.05, *, start, end=None):
  if step.skips(step.t >= start and (end is None or step.t < end)):
    return step.gradients()
  return step.gradients(of_length(step.number(rho), step.ascent()))


CASES = cases(
  optax_sam.late_sam,
  late_sam,
  {'rho': 0.1, 'start': 4},
  {'start': 2, 'end': 5},
  {'rho': rising(0.05, 0.01)},
)
