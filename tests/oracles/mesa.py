"""MESA on a linear network; the average is updated before its use.

The average runs from the first step, the term from a later epoch.
"""

import numpy as np

from tests.oracles.saf import term_and_gradient


def mesa(x, w, epochs, rate, decay, tau, weight, start=5):
  """Yields (auxiliary loss, weights, average) of every step."""
  average = w.copy()
  for epoch in epochs:
    average = decay * average + (1 - decay) * w
    active = weight if epoch >= start else 0.0
    term, change = term_and_gradient(x @ w, x @ average, tau, active)
    w = w - rate * (x.T @ change + np.cos(w))
    yield term, w, average
