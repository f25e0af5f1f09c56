"""Losses of every kind, and which examples they choose."""

import numpy as np
from hypothesis import strategies as st

SCORES = st.sampled_from([0.0, 1.0, 2.0, 3.0, -1.0, np.nan, np.inf, -np.inf])
# Batch size, ascent and descent sizes: few, since each is compiled for.
SIZES = [
  (1, 1, 1.0),
  (1, 0.01, 5),
  (2, 0.75, 1),
  (5, 0.5, 3),
  (7, 0.5, 0.3),
  (7, 9, 0.9),
]


def scores_of(batch_size):
  scores = st.lists(SCORES, min_size=batch_size, max_size=batch_size)
  return scores.map(lambda x: np.asarray(x, np.float32))


def ranked(scores, size):
  """Positions by score, largest first; ties by position, not finite last."""
  scores = np.asarray(scores)
  finite = np.where(np.isfinite(scores), scores, -np.inf)
  return np.argsort(-finite, kind='stable')[:size]


def mean_of_units(rows, batch_size):
  """Returns the mean gradient of examples whose gradients are unit vectors."""
  return np.bincount(rows, minlength=batch_size) / len(rows)
