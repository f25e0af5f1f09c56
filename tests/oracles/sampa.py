"""SAMPa."""

import numpy as np

import optax_sam
from tests.oracles.cases import cases, rising
from tests.oracles.step import Update, of_length


def sampa(step, rho=0.1, mix=0.2):
  memory, w = step.memory, step.w
  ahead = memory.get('ahead', np.zeros(len(w)))
  now, step.parts = step.parts, memory.get('parts', step.parts)
  epsilon = of_length(step.number(rho), step.kept * ahead)
  first = step.gradients(epsilon)
  step.parts = now
  second = step.gradients(step.base.guess(ahead, w) if step.t else 0.0)
  mixed = (1 - mix) * first + mix * second
  memory['ahead'], memory['parts'] = second.mean(axis=0), now
  return Update(step.base.update(mixed.mean(axis=0), w))


CASES = cases(
  optax_sam.sampa,
  sampa,
  {'rho': 0.1},
  {'rho': rising(0.1, 0.05), 'mix': 0.3},
)
