"""MESA on a linear network; the average is updated before its use."""

import numpy as np

from tests.oracles.saf import term_and_gradient


def mesa(x, w, steps, rate, decay, tau, weight):
  """Yields (auxiliary loss, weights, average) of every step."""
  average = w.copy()
  for _ in range(steps):
    average = decay * average + (1 - decay) * w
    term, change = term_and_gradient(x @ w, x @ average, tau, weight)
    w = w - rate * (x.T @ change + np.cos(w))
    yield term, w, average
