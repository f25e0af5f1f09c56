"""VaSSO."""

import optax_sam
from tests.oracles.cases import cases
from tests.oracles.step import of_length, rounded


def vasso(step, rho=0.05, theta=0.9, accumulator_dtype=None):
  """Averages the own gradient into the average of all devices."""
  g = step.ascent()
  average = step.memory.get('average')
  mix = lambda x: x if average is None else (1 - theta) * average + theta * x
  d, after = mix(g), mix(g.mean(axis=0))
  step.memory['average'] = rounded(after, accumulator_dtype)
  return step.gradients(of_length(rho, d))


CASES = cases(
  optax_sam.vasso,
  vasso,
  {'rho': 0.1},
  {'theta': 0.3},
  rounded=[{'theta': 0.5, 'accumulator_dtype': 'bfloat16'}],
)
