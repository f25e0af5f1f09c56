"""Lookbehind-SAM."""

import optax_sam
from tests.oracles.cases import cases, rising
from tests.oracles.step import Update, of_length


def lookbehind(step, rho=0.05, steps=2, alpha=0.5):
  rho, h, point, gone = step.number(rho), step.ascent(), 0.0, 0.0
  for _ in range(steps):
    point = point + of_length(rho, h)
    found = step.gradients(point)
    h = step.kept * step.shared(found)
    gone = gone + step.base.update(found.mean(axis=0), step.w + gone)
  return Update(alpha * gone)


CASES = cases(
  optax_sam.lookbehind,
  lookbehind,
  {'rho': 0.1},
  {'rho': rising(0.1, 0.05), 'steps': 3, 'alpha': 0.7},
)
