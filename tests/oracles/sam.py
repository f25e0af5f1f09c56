"""SAM."""

import numpy as np

import optax_sam
from tests.oracles.cases import cases
from tests.oracles.step import norm, of_length


def sam(step, rho=0.05, p=2, ascent_steps=1):
  delta = 0.0
  for _ in range(ascent_steps):
    h = step.ascent(delta)
    if p == 2:
      delta = delta + of_length(rho, h)
      # Rounding must not move the point out of the ball.
      delta = delta * np.minimum(1, rho / np.maximum(norm(delta), 1e-300))
    else:
      delta = np.clip(delta + rho * np.sign(h), -rho, rho)
  return step.gradients(delta)


CASES = cases(
  optax_sam.sam, sam, {'rho': 0.1}, {'ascent_steps': 2}, {'p': np.inf}
)
