"""Gradient-norm penalty."""

import optax_sam
from tests.oracles.cases import cases
from tests.oracles.step import of_length


def gradient_norm_penalty(step, rho=0.1, alpha=0.8, *, normalize_clean=False):
  g = step.ascent()
  gp = step.gradients(of_length(rho, g))
  if normalize_clean:
    g = of_length(1, g)
  return g + alpha * (gp - g)


CASES = cases(
  optax_sam.gradient_norm_penalty,
  gradient_norm_penalty,
  {'rho': 0.1},
  {'normalize_clean': True},
)
