"""bSAM."""

import numpy as np

import optax_sam
from tests.oracles.cases import cases, rising
from tests.oracles.step import Update


def b_sam(
  step,
  learning_rate=0.5,
  rho=0.01,
  b1=0.9,
  b2=0.999,
  damping=0.1,
  prior_precision=40.0,
  initial_precision=1.0,
  micro_batches=8,
  *,
  num_data,
  key,
):
  size = len(step.w)
  start = (np.zeros(size), np.full(size, initial_precision))
  m, s = step.memory.get('moments', start)
  rho, decay = step.number(rho), prior_precision / num_data
  rows = np.arange(len(next(iter(step.parts[0].values()))))
  part = -(-len(rows) // micro_batches)
  descent, ascent = 0.0, 0.0
  for number, first in enumerate(range(0, len(rows), part)):
    noise = step.normal(key, step.t, number) / np.sqrt(num_data * s)
    chosen = rows[first : first + part]
    some, fraction = [chosen] * len(step.parts), len(chosen) / len(rows)
    g = step.gradients(noise, some)
    ascent = ascent + fraction * np.abs(g)
    descent = descent + fraction * step.gradients(rho * g / s, some)
  m = b1 * m + (1 - b1) * (descent.mean(axis=0) + decay * step.w)
  past = np.sqrt(s) * ascent.mean(axis=0) + damping + decay
  step.memory['moments'] = m, b2 * s + (1 - b2) * past
  return Update(-step.number(learning_rate) * m / s)


CASES = cases(
  optax_sam.b_sam,
  b_sam,
  {'rho': 0.1, 'micro_batches': 3, 'num_data': 900, 'key': 1},
  {
    'learning_rate': rising(0.3, -0.02),
    'rho': rising(0.1, 0.05),
    'b1': 0.8,
    'b2': 0.9,
    'damping': 0.2,
    'prior_precision': 3.0,
    'initial_precision': 0.7,
    'micro_batches': 1,
    'num_data': 50,
  },
  {'micro_batches': 99},
)
