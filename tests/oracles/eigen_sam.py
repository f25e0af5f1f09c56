"""Eigen-SAM."""

import numpy as np

import optax_sam
from tests.oracles.cases import cases
from tests.oracles.step import dot, of_length


def top_eigenvector(step, refresh_every, power_steps, key):
  """Refreshes it with exact Hessian-vector products by complex steps."""
  v = step.memory.get('eigenvector')
  if v is None:
    v = of_length(1, 2 * step.coins(0.5, key) - 1)
  if step.t % refresh_every == 0:
    for _ in range(power_steps):
      product = step.gradients(1e-30j * v).imag.mean(axis=0)
      v = of_length(1, product)
  step.memory['eigenvector'] = v
  return v


def eigen_sam(
  step, rho=0.1, alpha=0.2, refresh_every=100, power_steps=5, key=0, v=None
):
  if v is None:
    v = top_eigenvector(step, refresh_every, power_steps, key)
  g = step.ascent()
  h = of_length(1, g)
  turn = alpha * np.sign(dot(g, v))
  return step.gradients(rho * (h + turn * (v - dot(h, v) * h)))


CASES = cases(
  optax_sam.eigen_sam,
  eigen_sam,
  {'rho': 0.1, 'refresh_every': 2, 'power_steps': 2, 'key': 1},
)
