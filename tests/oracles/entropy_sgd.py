"""Entropy-SGD."""

import numpy as np

import optax_sam
from tests.oracles.cases import cases, rising
from tests.oracles.step import Update


def entropy_sgd(
  step,
  learning_rate=1.0,
  inner_steps=20,
  inner_learning_rate=0.1,
  gamma=0.03,
  scoping=0.001,
  noise=0.0001,
  weight_decay=0.0,
  *,
  key,
):
  memory, w = step.memory, step.w
  x, mu, v, n = memory.get('walk', (w, w, np.zeros(len(w)), 1))
  eta = step.number(inner_learning_rate)
  g = step.gradients().mean(axis=0)
  v = 0.9 * v + g
  pull = gamma * (1 + scoping) ** n * (x - w)
  jump = np.sqrt(2 * eta) * noise * step.normal(key, step.t)
  w = w - eta * (g + 0.9 * v - pull + weight_decay * w) + jump
  mu = 0.75 * mu + 0.25 * w
  if step.t % inner_steps == inner_steps - 1:
    x = x - step.number(learning_rate) * (x - mu)
    w = mu = x
    v, n = np.zeros(len(w)), n + 1
  memory['walk'] = x, mu, v, n
  return Update(w - step.w)


CASES = cases(
  optax_sam.entropy_sgd,
  entropy_sgd,
  {'inner_steps': 4, 'noise': 0.01, 'key': 1},
  {
    'learning_rate': rising(0.1, 0.05),
    'inner_steps': 3,
    'inner_learning_rate': rising(0.3, -0.02),
    'gamma': 0.2,
    'scoping': 0.5,
    'noise': 0.02,
    'weight_decay': 0.03,
  },
)
