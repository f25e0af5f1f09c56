"""GSAM."""

import numpy as np

import optax_sam
from tests.oracles.cases import cases, rising
from tests.oracles.step import dot, norm, of_length


def gsam(step, rho=0.05, alpha=0.4, *, adaptive=False, minimize_fp=True):
  g = step.ascent()
  epsilon = of_length(step.number(rho), g)
  if adaptive:
    epsilon = epsilon * np.abs(step.w)
  gp = step.shared(step.gradients(epsilon))
  if not minimize_fp:
    return g + alpha * (gp - dot(g, gp) / norm(g) ** 2 * g)
  return gp - alpha * (g - dot(g, gp) / norm(gp) ** 2 * gp)


_COUPLED = optax_sam.rho_like_learning_rate(
  rising(0.3, -0.02), rho_max=0.2, rho_min=0.05, lr_max=0.3, lr_min=0.2
)
CASES = cases(
  optax_sam.gsam,
  gsam,
  {'rho': 0.1},
  {'rho': _COUPLED},
  {'adaptive': True},
  {'minimize_fp': False, 'rho': _COUPLED},
)
